// Panels of super-blocks of 256. Their scales are whole numbers, and so are the sums that they scale: two of those, cut
// to sixteen bits each, take one integer product, where floats would take four. With x in blocks of 256 nothing becomes
// a float before the end of a super-block. Where x is limited (iq4_xs), sums are scaled as they are widened, and
// nothing is cut.
#pragma once
#include "matmul/panel.h"
#include "matmul/super_readers.h"

namespace quantkit {
namespace QK_TIER {

template <int MAX>
struct SuperStretch {
    static constexpr int ROWS = PANEL_ROWS<MAX>, CHUNKS = STRETCH<MAX>;
    alignas(64) uint8_t codes[CHUNKS * 256 * ROWS];  // [block][step][row][4]
    // [chunk][pair of scales, then of minima (LIMITED_X: each scale, for dots) from 8 on][row]
    alignas(64) int32_t pairs[CHUNKS * 16 * ROWS];
    alignas(64) float d[CHUNKS * ROWS];  // [chunk][row]; times what sums were shifted
    alignas(64) float dmin[CHUNKS * ROWS];
};

// Block J of all rows, from the bytes of its codes: [run][step][row][4].
template <class R, int J>
inline void unpack_block(const uint8_t* runs, uint8_t* out) {
    constexpr int WIDTH = 4 * PANEL_ROWS<R::MAX>;
    for (int k = 0; k < 8; k++)
        for (int i = 0; i < WIDTH; i += 32) {
            const auto at = [&](int run, int step) { return load_bytes(runs + (8 * run + step) * WIDTH + i); };
            store_bytes(out + (8 * J + k) * WIDTH + i, stored<R>(R::template panel_code<J>(k, at)));
        }
}

template <class R, int... J>
inline void unpack_blocks(const uint8_t* runs, uint8_t* out, std::integer_sequence<int, J...>) {
    (unpack_block<R, J>(runs, out), ...);
}

// The scales of LIMITED_X, one of each row in a lane.
template <class R>
inline void unpack_scales(int32_t* pairs) {
    constexpr int ROWS = PANEL_ROWS<R::MAX>;
    for (int i = 0; LIMITED_X<R> && i < 4 * ROWS; i += LANES) {
        const Counts two = load_counts(pairs + i);
        int32_t* each = pairs + (8 + i / ROWS * 2) * ROWS + i % ROWS;
        store_counts(each, scale_of_dots(low_of(two)));
        store_counts(each + ROWS, scale_of_dots(high_of(two)));
    }
}

template <class R>
inline void unpack(const Weights& w, int64_t row, int64_t n_rows, int64_t first, int64_t last,
                   SuperStretch<code_class<R>()>& tile) {
    constexpr int ROWS = PANEL_ROWS<R::MAX>;
    for (int64_t b = first; b < last; b += 8) {
        const int64_t chunk = (b - first) / 8;
        alignas(64) uint8_t runs[R::RUNS * 32 * ROWS];
        for (int r = 0; r < ROWS; r += 8) {
            const uint8_t* from[8];
            Bytes scales[8], mins[8];
            for (int i = 0; i < 8; i++) {
                from[i] =
                    w.codes + (row + (r + i < n_rows ? r + i : n_rows - 1)) * w.row_bytes + b / 8 * R::CHUNK_BYTES;
                const Wholes found = R::wholes(from[i]);
                alignas(32) float d[8];
                store_floats(d, found.d);
                tile.d[chunk * ROWS + r + i] = d[0] * (1 << shift_of<R>());
                tile.dmin[chunk * ROWS + r + i] = d[1];
                scales[i] = widened(found.scales), mins[i] = widened(found.mins);
            }
            uint8_t* pairs = reinterpret_cast<uint8_t*>(tile.pairs + chunk * 16 * ROWS + r);
            store_transposed(scales, pairs, 4 * ROWS);
            if (R::SUBS == 2 && R::MINS) store_transposed(mins, pairs + 8 * 4 * ROWS, 4 * ROWS);
            for (int run = 0; run < R::RUNS; run++) {
                Bytes rows[8];
                for (int i = 0; i < 8; i++) rows[i] = load_bytes(from[i] + R::FIRST + 32 * run);
                store_transposed(rows, runs + run * 32 * ROWS + 4 * r, 4 * ROWS);
            }
        }
        unpack_scales<R>(tile.pairs + chunk * 16 * ROWS);
        unpack_blocks<R>(runs, tile.codes + chunk * 256 * ROWS, std::make_integer_sequence<int, 8>());
    }
}

template <class R, int... J>
inline void unpack_codes(const RowsBlock<R>& block, uint8_t* out, std::integer_sequence<int, J...>) {
    constexpr int ROWS = PANEL_ROWS<R::MAX>;
    for (int k = 0; k < 8; k++) (store_words(out + 4 * (8 * J + k) * ROWS, block.template codes<J>(k)), ...);
}

template <class R>
inline void unpack_repacked(const Weights& w, int64_t row, int64_t n_rows, int64_t first, int64_t last,
                            SuperStretch<code_class<R>()>& tile) {
    constexpr int ROWS = PANEL_ROWS<R::MAX>;
    for (int r = 0; r < ROWS; r += LANES) {
        RowsBlock<R> block = rows_of_panel<R>(w, row, n_rows, r, first);
        for (int64_t chunk = 0; first + 8 * chunk < last; chunk++, block.step()) {
            unpack_codes<R>(block, tile.codes + 4 * (chunk * 64 * ROWS + r), std::make_integer_sequence<int, 8>());
            constexpr int PAIRS = 4 * R::SUBS;
            Counts pairs[2 * PAIRS];
            block.pairs(pairs, pairs + PAIRS);
            for (int p = 0; p < (R::MINS ? 2 : 1) * PAIRS; p++)
                store_counts(tile.pairs + (chunk * 16 + p) * ROWS + r, pairs[p]);
            const RowScales d = block.scales();
            store_sums(tile.d + chunk * ROWS + r, d.scale * set_sums(1 << shift_of<R>()));
            if (R::MINS) store_sums(tile.dmin + chunk * ROWS + r, d.min);
        }
    }
    for (int64_t chunk = 0; first + 8 * chunk < last; chunk++) unpack_scales<R>(tile.pairs + chunk * 16 * ROWS);
}

// sums[column][row] += the tile times COLS columns, whose blocks lie at x.
template <class R, int COLS>
static void multiply(const SuperStretch<code_class<R>()>& tile, const uint8_t* x, int blocks, float* sums) {
    constexpr int MAX = code_class<R>(), SUBS = R::SUBS, SHIFT = shift_of<R>();
    constexpr int STEPS = 8 / SUBS, X = FOUR<MAX> * COLS;  // bytes of a step
    constexpr int ROWS = PANEL_ROWS<MAX>, V = VECTORS<MAX>;
    constexpr bool MINS = R::MINS;
    const uint8_t* codes = tile.codes;
    for (int chunk = 0; 8 * chunk < blocks; chunk++) {
        const int32_t *scales = tile.pairs + chunk * 16 * ROWS, *mins = scales + 4 * SUBS * ROWS;
        const float *d = tile.d + chunk * ROWS, *dmin = tile.dmin + chunk * ROWS;
        Counts total[COLS][V];
        for (int c = 0; c < COLS; c++)
            for (int v = 0; v < V; v++) total[c][v] = set_counts(0);
        if constexpr (STARTS_APART<R>) {
            const int32_t* two = reinterpret_cast<const int32_t*>(x + 64 * X + 4 * COLS);
            for (int c = 0; c < COLS; c++)
                for (int v = 0; v < V; v++)
                    for (int p = 0; p < 4; p++)
                        total[c][v] = add_halves(total[c][v], load_counts(scales + p * ROWS + v * LANES),
                                                 set_counts(two[p * COLS + c]));
        }
        if constexpr (LIMITED_X<R>)
            for (int b = 0; b < 8; b++) {
                Counts scale[V];
                for (int v = 0; v < V; v++) scale[v] = load_counts(scales + (8 + b) * ROWS + v * LANES);
                add_scaled_dots<MAX, COLS, 8>(codes, x, reinterpret_cast<const int32_t*>(x + 8 * X), scale, total);
                codes += 32 * ROWS;
                x += bytes_of_block<R>() * COLS;
            }
        for (int p = 0; !LIMITED_X<R> && p < 4 * SUBS; p++) {
            Counts r[2][COLS][V];
            // (sub-)blocks 2 p and 2 p + 1: of two blocks, or of one
            constexpr int NEXT = SUBS == 1 ? 8 * X + 4 * COLS : STEPS * X;
            const int32_t* start = reinterpret_cast<const int32_t*>(x + 8 * X);
            dots<MAX, COLS, STEPS>(codes, x, start, r[0]);
            dots<MAX, COLS, STEPS>(codes + STEPS * 4 * ROWS, x + NEXT, start + (SUBS == 1 ? NEXT / 4 : COLS), r[1]);
            for (int v = 0; v < V; v++) {
                const Counts scale = load_counts(scales + p * ROWS + v * LANES);
                for (int c = 0; c < COLS; c++)
                    total[c][v] = add_halves(total[c][v], halves_of<SHIFT>(r[0][c][v], r[1][c][v]), scale);
            }
            codes += 2 * STEPS * 4 * ROWS;
            x += 2 * STEPS * X + 8 * COLS;
        }
        const float* step = reinterpret_cast<const float*>(x);
        not_kept(sums);
        const int32_t* two = reinterpret_cast<const int32_t*>(x + 4 * COLS);
        for (int c = 0; c < COLS; c++) {
            Counts below[V];
            for (int v = 0; v < V; v++) below[v] = set_counts(0);
            for (int p = 0; MINS && p < 4 * SUBS; p++)
                for (int v = 0; v < V; v++)
                    below[v] =
                        add_halves(below[v], load_counts(mins + p * ROWS + v * LANES), set_counts(two[p * COLS + c]));
            for (int v = 0; v < V; v++) {
                Sums all = floats(total[c][v]) * load_sums(d + v * LANES);
                if (MINS) all = all - floats(below[v]) * load_sums(dmin + v * LANES);
                float* to = sums + c * ROWS + v * LANES;
                store_sums(to, load_sums(to) + all * set_sums(step[c]));
            }
        }
        x += bytes_after_blocks<R>() * COLS;
    }
}

}  // namespace QK_TIER
}  // namespace quantkit
