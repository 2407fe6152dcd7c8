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
    static_assert(R::MAX <= 63 || R::MAX > 127, "x and panels would be others for the class than for the format");
    if (!SIGNED_BYTES) return 255;
    return R::MAX <= 15 ? 15 : R::MAX <= 31 ? 31 : R::MAX <= 63 ? 63 : LIMITED_X<R> ? LIMITED : 255;
}

template <int MAX>
constexpr int PANEL_ROWS = VECTORS<MAX> * LANES;

template <int MAX>
struct Stretch {
    static constexpr int ROWS = PANEL_ROWS<MAX>, BLOCKS = 8 * STRETCH<MAX>;
    alignas(64) uint8_t codes[BLOCKS * 32 * ROWS];  // [block][step][row][4]
    alignas(64) float scales[BLOCKS * ROWS];        // [block][row]
    alignas(64) float mins[BLOCKS * ROWS];
};

template <int MAX>
struct SuperStretch;  // of super-blocks: super_panel.h

template <class R>
struct PanelScratch {
    static constexpr int MAX = code_class<R>();
    std::conditional_t<R::SUPER, SuperStretch<MAX>, Stretch<MAX>> tile;
    alignas(64) float sums[PANEL_COLUMNS * PANEL_ROWS<MAX>];
};

template <class R, int J>
inline void unpack_block(const uint8_t* const (&chunk)[8], uint8_t* out) {
    constexpr int ROWS = PANEL_ROWS<R::MAX>;
    Bytes rows[8];
    for (int r = 0; r < 8; r++) rows[r] = stored<R>(R::template codes<J>(chunk[r]));
    store_transposed(rows, out + J * 32 * ROWS, 4 * ROWS);
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
inline void unpack_repacked(const Weights& w, int64_t row, int64_t n_rows, int64_t first, int64_t last,
                            Stretch<code_class<R>()>& tile) {
    constexpr int ROWS = PANEL_ROWS<R::MAX>;
    for (int r = 0; r < ROWS; r += LANES) {
        RowsBlock<R> block = rows_of_panel<R>(w, row, n_rows, r, first);
        for (int64_t b = first; b < last; b++, block.step()) {
            const int64_t at = (b - first) * ROWS;
            for (int k = 0; k < 8; k++)
                store_words(tile.codes + 4 * (8 * at + k * ROWS + r), block.template codes<0>(k));
            const RowScales scales = block.scales();
            store_sums(tile.scales + at + r, scales.scale);
            if (R::MINS) store_sums(tile.mins + at + r, scales.min);
        }
    }
}

// Blocks first .. last of rows row .. row + n_rows; rows beyond repeat the last.
template <class R>
inline void unpack(const Weights& w, int64_t row, int64_t n_rows, int64_t first, int64_t last,
                   Stretch<code_class<R>()>& tile) {
    static_assert(R::SUBS == 1, "a block has one scale");
    constexpr int ROWS = PANEL_ROWS<R::MAX>;
    for (int64_t b = first; b < last; b += 8) {
        const int m = static_cast<int>(last - b < 8 ? last - b : 8);
        const int64_t at = b - first;
        for (int r = 0; r < ROWS; r += 8) {
            const uint8_t* chunk[8];
            alignas(64) float scale[8][8], min[8][8];
            for (int i = 0; i < 8; i++) {
                const Row from = row_of(w, row + (r + i < n_rows ? r + i : n_rows - 1));
                chunk[i] = from.codes + b / 8 * R::CHUNK_BYTES;
                R::scales(from, b / 8, m, scale[i], min[i]);
            }
            unpack_blocks<R>(chunk, m, tile.codes + (at * ROWS * 8 + r) * 4, std::make_integer_sequence<int, 8>());
            const auto transpose = [&](const float (&from)[8][8], float* to) {
                Bytes rows[8];
                for (int i = 0; i < 8; i++) rows[i] = load_bytes(reinterpret_cast<const uint8_t*>(from[i]));
                store_transposed(rows, reinterpret_cast<uint8_t*>(to + at * ROWS + r), 4 * ROWS);
            };
            transpose(scale, tile.scales);
            if (R::MINS) transpose(min, tile.mins);
        }
    }
}

// sums[column][row] += the tile times COLS columns, whose blocks lie at x.
template <int MAX, bool MINS, bool HALVES, int COLS>
static void multiply(const Stretch<MAX>& tile, const uint8_t* x, int blocks, float* sums) {
    constexpr int X = 8 * FOUR<MAX> * COLS;  // bytes of a block's codes
    constexpr int ROWS = PANEL_ROWS<MAX>, V = VECTORS<MAX>;
    const uint8_t* codes = tile.codes;
    const float *scales = tile.scales, *mins = tile.mins;
    for (int b = 0; b < blocks; b++) {
        const float* step = reinterpret_cast<const float*>(x + X);
        const int32_t* start = reinterpret_cast<const int32_t*>(step + COLS);
        const float* less = reinterpret_cast<const float*>(start + COLS);
        not_kept(sums);
        Counts r[COLS][V];
        dots<MAX, COLS, 8>(codes, x, start, r);
        for (int v = 0; v < V; v++) {
            const Sums scale = load_sums(scales + v * LANES);
            const Sums min = MINS ? load_sums(mins + v * LANES) : scale;
            for (int c = 0; c < COLS; c++) {
                Sums scaled = times_scale<HALVES>(r[c][v], scale);
                if (MINS) scaled = fused(min, set_sums(less[c]), scaled);
                float* to = sums + c * ROWS + v * LANES;
                store_sums(to, fused(scaled, set_sums(step[c]), load_sums(to)));
            }
        }
        codes += 32 * ROWS;
        scales += ROWS;
        mins += ROWS;
        x += X + (MINS ? 12 : 8) * COLS;
    }
}

template <class R, int COLS, class Tile>
inline void multiply_some(int cols, const Tile& tile, const uint8_t* x, int blocks, float* sums) {
    if (cols == COLS) {
        if constexpr (R::SUPER)
            multiply<R, COLS>(tile, x, blocks, sums);
        else
            multiply<code_class<R>(), R::MINS, R::HALF_SCALES, COLS>(tile, x, blocks, sums);
    } else if constexpr (COLS > 1)
        multiply_some<R, COLS - 1>(cols, tile, x, blocks, sums);
}

template <class R, bool REPACKED>
static bool panel(const PanelTask& task) {
    const Weights& w = *task.weights;
    constexpr int ROWS = PANEL_ROWS<R::MAX>, COLS = PANEL_COLS<R::MAX>, CHUNKS = STRETCH<R::MAX>, BLOCKS = 8 * CHUNKS;
    auto& scratch = *reinterpret_cast<PanelScratch<R>*>(task.scratch);
    const Cut tiles(task.n, COLS);
    const int64_t blocks = w.cols / 32;
    const int64_t first = tiles.first(task.first_tile), last = tiles.first(task.last_tile);
    std::memset(scratch.sums, 0, static_cast<size_t>((last - first) * ROWS) * sizeof(float));
    for (int64_t b = 0; b < blocks; b += BLOCKS) {
        const int m = static_cast<int>(blocks - b < BLOCKS ? blocks - b : BLOCKS);
        if constexpr (REPACKED)
            unpack_repacked<R>(w, task.first_row, task.n_rows, b, b + m, scratch.tile);
        else
            unpack<R>(w, task.first_row, task.n_rows, b, b + m, scratch.tile);
        // after the row's last stretch comes the next panel's first
        const int64_t ahead_row = task.first_row + (b + m < blocks ? 0 : ROWS), ahead_block = (b + m) % blocks;
        constexpr int64_t BESIDE = REPACKED ? 16 : 1;  // rows
        Ahead ahead(w.codes + ahead_row * w.row_bytes + ahead_block / 8 * R::CHUNK_BYTES * BESIDE, w.row_bytes * BESIDE,
                    CHUNKS * R::CHUNK_BYTES * BESIDE, ROWS / BESIDE, task.last_tile - task.first_tile);
        for (int64_t t = task.first_tile; t < task.last_tile; t++) {
            ahead.fetch();
            multiply_some<R, COLS>(static_cast<int>(tiles.size(t)), scratch.tile,
                                   task.x + place_of<R>(task.n, tiles.first(t), b, blocks), m,
                                   scratch.sums + (tiles.first(t) - first) * ROWS);
        }
    }
    for (int64_t c = first; c < last; c++) {
        const int64_t row = task.order ? task.order[c] : task.out_row + c;
        float* to = task.out + row * task.out_stride;
        const float* from = scratch.sums + (c - first) * ROWS;
        if (task.n_rows == ROWS)
            std::memcpy(to, from, ROWS * sizeof(float));  // of a known size, a few moves
        else
            std::memcpy(to, from, static_cast<size_t>(task.n_rows) * sizeof(float));
    }
    // what went out is in no near cache, its rows being far apart
    return all_finite(scratch.sums, (last - first) * ROWS);
}

}  // namespace QK_TIER
}  // namespace quantkit
