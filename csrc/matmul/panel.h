// Many rows of x: a panel of weights is unpacked once for all of them, a stretch of columns at a time, into a tile that
// stays in the first-level cache, four codes of each row side by side, and multiplied by one kernel for all formats. A
// lane is a row of weights, so no float crosses lanes: each output is a sum over blocks in order, on every tier.
#pragma once
#include <type_traits>
#include <utility>

#include "ahead.h"
#include "matmul/rows_block.h"

namespace quantkit {
namespace QK_TIER {

template <class R>
constexpr int code_class() {  // formats that share a kernel
    static_assert(R::MAX <= 63 || R::MAX > 127, "x would lie otherwise for the class than for the format");
    return !SIGNED_BYTES ? 255 : R::MAX <= 15 ? 15 : R::MAX <= 31 ? 31 : R::MAX <= 63 ? 63 : 255;
}

struct Stretch {
    alignas(64) uint8_t codes[STRETCH_BLOCKS * 32 * PANEL_ROWS];  // [block][step][row][4]
    alignas(64) float scales[STRETCH_BLOCKS * 2 * PANEL_ROWS];    // [block][sub][row]
    alignas(64) float mins[STRETCH_BLOCKS * 2 * PANEL_ROWS];
};

struct SuperStretch;  // of super-blocks: super_panel.h

template <class Tile>
struct PanelScratch {
    Tile tile;
    alignas(64) float sums[PANEL_COLUMNS * PANEL_ROWS];
};

template <class R, int J>
inline void unpack_block(const uint8_t* const (&chunk)[8], uint8_t* out) {
    Bytes rows[8];
    for (int r = 0; r < 8; r++) rows[r] = stored<R>(R::template codes<J>(chunk[r]));
    store_transposed(rows, out + J * 32 * PANEL_ROWS, 4 * PANEL_ROWS);
}

template <class R, int... J>
inline void unpack_blocks(const uint8_t* const (&chunk)[8], int m, uint8_t* out, std::integer_sequence<int, J...>) {
    ((J < m ? unpack_block<R, J>(chunk, out) : void()), ...);
}

// LANES rows of weights from row + r on; beyond n_rows, the last ones.
template <class R>
inline RowsBlock<R> rows_of_panel(const Weights& w, int64_t row, int64_t n_rows, int r, int64_t first) {
    return rows_block<R>(w, row + (r < n_rows ? r : (n_rows - 1) / LANES * LANES), 32 * first);
}

template <class R>
inline void unpack_repacked(const Weights& w, int64_t row, int64_t n_rows, int64_t first, int64_t last, Stretch& tile) {
    for (int r = 0; r < PANEL_ROWS; r += LANES) {
        RowsBlock<R> block = rows_of_panel<R>(w, row, n_rows, r, first);
        for (int64_t b = first; b < last; b++, block.step()) {
            const int64_t at = (b - first) * PANEL_ROWS;
            for (int k = 0; k < 8; k++)
                store_words(tile.codes + 4 * (8 * at + k * PANEL_ROWS + r), block.template codes<0>(k));
            const RowScales scales = block.scales();
            store_sums(tile.scales + at + r, scales.scale);
            if (R::MINS) store_sums(tile.mins + at + r, scales.min);
        }
    }
}

// Blocks first .. last of rows row .. row + n_rows; rows beyond repeat the last.
template <class R>
inline void unpack(const Weights& w, int64_t row, int64_t n_rows, int64_t first, int64_t last, Stretch& tile) {
    for (int64_t b = first; b < last; b += 8) {
        const int m = static_cast<int>(last - b < 8 ? last - b : 8);
        const int64_t at = b - first;
        for (int r = 0; r < PANEL_ROWS; r += 8) {
            const uint8_t* chunk[8];
            alignas(64) float scale[8][8 * R::SUBS], min[8][8 * R::SUBS];
            for (int i = 0; i < 8; i++) {
                const Row from = row_of(w, row + (r + i < n_rows ? r + i : n_rows - 1));
                chunk[i] = from.codes + b / 8 * R::CHUNK_BYTES;
                R::scales(from, b / 8, m, scale[i], min[i]);
            }
            unpack_blocks<R>(chunk, m, tile.codes + (at * PANEL_ROWS * 8 + r) * 4,
                             std::make_integer_sequence<int, 8>());
            const auto transpose = [&](const float (&from)[8][8 * R::SUBS], float* to) {
                for (int s = 0; s < R::SUBS; s++) {
                    Bytes rows[8];
                    for (int i = 0; i < 8; i++) rows[i] = load_bytes(reinterpret_cast<const uint8_t*>(from[i] + 8 * s));
                    store_transposed(rows, reinterpret_cast<uint8_t*>(to + (at * R::SUBS + 8 * s) * PANEL_ROWS + r),
                                     4 * PANEL_ROWS);
                }
            };
            transpose(scale, tile.scales);
            if (R::MINS) transpose(min, tile.mins);
        }
    }
}

// sums[column][row] += the tile times COLS columns, whose blocks lie at x.
template <int MAX, int SUBS, bool MINS, int COLS>
static void multiply(const Stretch& tile, const uint8_t* x, int blocks, float* sums) {
    constexpr int STEPS = 8 / SUBS, X = FOUR<MAX> * COLS;  // bytes of a step
    const uint8_t* codes = tile.codes;
    const float *scales = tile.scales, *mins = tile.mins;
    for (int b = 0; b < blocks; b++) {
        const float* step = reinterpret_cast<const float*>(x + 8 * X);
        const int32_t* start = reinterpret_cast<const int32_t*>(step + COLS);
        const float* sum = reinterpret_cast<const float*>(start + SUBS * COLS);
        Sums total[COLS][VECTORS];
        not_kept(sums);
        for (int s = 0; s < SUBS; s++) {
            Counts r[COLS][VECTORS];
            dots<MAX, COLS, STEPS>(codes + s * STEPS * 4 * PANEL_ROWS, x + s * STEPS * X, start + s * COLS, r);
            for (int v = 0; v < VECTORS; v++) {
                const Sums scale = load_sums(scales + s * PANEL_ROWS + v * LANES);
                const Sums min = MINS ? load_sums(mins + s * PANEL_ROWS + v * LANES) : scale;
                for (int c = 0; c < COLS; c++) {
                    Sums scaled = floats(r[c][v]) * scale;
                    if (MINS) scaled = scaled - min * set_sums(sum[s * COLS + c]);
                    total[c][v] = s ? total[c][v] + scaled : scaled;
                    if (s + 1 < SUBS) continue;
                    float* to = sums + c * PANEL_ROWS + v * LANES;
                    store_sums(to, load_sums(to) + total[c][v] * set_sums(step[c]));
                }
            }
        }
        codes += 32 * PANEL_ROWS;
        scales += SUBS * PANEL_ROWS;
        mins += SUBS * PANEL_ROWS;
        x += 8 * X + (4 + 4 * SUBS * (MINS ? 2 : 1)) * COLS;
    }
}

template <class R, int COLS, class Tile>
inline void multiply_some(int cols, const Tile& tile, const uint8_t* x, int blocks, float* sums) {
    if (cols == COLS) {
        if constexpr (R::SUPER)
            multiply<code_class<R>(), R::SUBS, R::MINS, shift_of<R>(), COLS>(tile, x, blocks, sums);
        else
            multiply<code_class<R>(), R::SUBS, R::MINS, COLS>(tile, x, blocks, sums);
    } else if constexpr (COLS > 1)
        multiply_some<R, COLS - 1>(cols, tile, x, blocks, sums);
}

template <class R, bool REPACKED>
static void panel(const PanelTask& task) {
    const Weights& w = *task.weights;
    using Tile = std::conditional_t<R::SUPER, SuperStretch, Stretch>;
    auto& scratch = *reinterpret_cast<PanelScratch<Tile>*>(task.scratch);
    const Cut tiles(task.n, PANEL_COLS);
    const int64_t blocks = w.cols / 32;
    const int64_t first = tiles.first(task.first_tile), last = tiles.first(task.last_tile);
    std::memset(scratch.sums, 0, static_cast<size_t>((last - first) * PANEL_ROWS) * sizeof(float));
    for (int64_t b = 0; b < blocks; b += STRETCH_BLOCKS) {
        const int m = static_cast<int>(blocks - b < STRETCH_BLOCKS ? blocks - b : STRETCH_BLOCKS);
        if constexpr (REPACKED)
            unpack_repacked<R>(w, task.first_row, task.n_rows, b, b + m, scratch.tile);
        else
            unpack<R>(w, task.first_row, task.n_rows, b, b + m, scratch.tile);
        // after the row's last stretch comes the next panel's first
        const int64_t ahead_row = task.first_row + (b + m < blocks ? 0 : PANEL_ROWS), ahead_block = (b + m) % blocks;
        constexpr int64_t BESIDE = REPACKED ? 16 : 1;  // rows
        Ahead ahead(w.codes + ahead_row * w.row_bytes + ahead_block / 8 * R::CHUNK_BYTES * BESIDE, w.row_bytes * BESIDE,
                    STRETCH * R::CHUNK_BYTES * BESIDE, PANEL_ROWS / BESIDE, task.last_tile - task.first_tile);
        for (int64_t t = task.first_tile; t < task.last_tile; t++) {
            ahead.fetch();
            multiply_some<R, PANEL_COLS>(static_cast<int>(tiles.size(t)), scratch.tile,
                                         task.x + place_of<R>(task.n, tiles.first(t), b, blocks), m,
                                         scratch.sums + (tiles.first(t) - first) * PANEL_ROWS);
        }
    }
    for (int64_t c = first; c < last; c++) {
        const int64_t row = task.order ? task.order[c] : task.out_row + c;
        float* to = task.out + row * task.out_stride;
        const float* from = scratch.sums + (c - first) * PANEL_ROWS;
        if (task.n_rows == PANEL_ROWS)
            std::memcpy(to, from, PANEL_ROWS * sizeof(float));  // of a known size, a few moves
        else
            std::memcpy(to, from, static_cast<size_t>(task.n_rows) * sizeof(float));
    }
}

}  // namespace QK_TIER
}  // namespace quantkit
