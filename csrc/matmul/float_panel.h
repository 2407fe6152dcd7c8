// The float product of many rows of x: a panel of weights is decoded once for some hundreds of them, 256 columns at a
// time, and transposed to a tile in the first-level cache, in which a lane is a row of weights. What the next tile is
// made of is fetched meanwhile. Those columns of x lie together in the second-level cache: where they come from, rows
// are apart by a power of two often, and share a few places of a cache. Sums are fused and run over 128 columns in
// order, then add up in order: the same for any number of rows and threads, and on every tier that has them.
#pragma once
#include <algorithm>
#include <cstring>

#include "ahead.h"
#include "dispatch.h"

namespace quantkit {
namespace QK_TIER {

constexpr int PANEL = FLOAT_VECTORS * L;  // rows of weights
constexpr int COLUMNS = FLOAT_COLUMNS;    // rows of x at a time
constexpr int DEPTH = 128, DECODED = 2 * DEPTH;
constexpr int64_t CHUNK = FLOAT_CHUNK;  // rows of x for which a panel is decoded: 256 columns fill half a cache

static_assert(FLOAT_PANEL % PANEL == 0 &&
                  float_panels_scratch(2) >= DECODED * (CHUNK + PANEL) + DEPTH * PANEL + 2 * FLOAT_PANEL * CHUNK,
              "sizes");

// sums[column][row] += the tile's first `depth` columns times those of COLS rows of x, DEPTH apart.
template <int COLS>
static void add_columns(const float* tile, const float* x, int depth, float* sums) {
    F s[COLS][FLOAT_VECTORS];
    for (int c = 0; c < COLS; c++)
        for (int v = 0; v < FLOAT_VECTORS; v++) s[c][v] = set1(0.0f);
    int k = 0;
    do {  // at least once, or compilers keep the sums in memory before and after
        F w[FLOAT_VECTORS];
        for (int v = 0; v < FLOAT_VECTORS; v++) w[v] = load(tile + k * PANEL + v * L);
        for (int c = 0; c < COLS; c++) {
            const F xc = broadcast(x + c * DEPTH + k);
            for (int v = 0; v < FLOAT_VECTORS; v++) s[c][v] = fused(w[v], xc, s[c][v]);
        }
    } while (++k < depth);
    for (int c = 0; c < COLS; c++)
        for (int v = 0; v < FLOAT_VECTORS; v++) {
            float* to = sums + c * PANEL + v * L;
            store(to, load(to) + s[c][v]);
        }
}

template <int COLS>
static void add_some(int64_t cols, const float* tile, const float* x, int depth, float* sums) {
    if (cols == COLS)
        add_columns<COLS>(tile, x, depth, sums);
    else if constexpr (COLS > 1)
        add_some<COLS - 1>(cols, tile, x, depth, sums);
}

// A tile's weights: rows row .. row + rows, and columns col .. col + depth.
struct Place {
    int64_t row, rows, col;
    int depth;
};

// Of weights that lie input-major, where lanes are neighbours already.
template <Scalar S>
static void widen(const FloatJob& job, const Place& at, float* tile) {
    constexpr int64_t SIZE = SCALAR_BYTES[static_cast<int>(S)];
    const uint8_t* from = job.packed + at.col * job.pitch_bytes + at.row * SIZE;
    uint8_t padded[PANEL * SIZE] = {};
    for (int k = 0; k < at.depth; k++, from += job.pitch_bytes, tile += PANEL) {
        if (at.rows < PANEL) std::memcpy(padded, from, static_cast<size_t>(at.rows * SIZE));
        const uint8_t* lanes = at.rows < PANEL ? padded : from;
        for (int v = 0; v < FLOAT_VECTORS; v++) store(tile + v * L, load_scalars<S>(lanes + v * L * SIZE));
    }
}

// Of rows that were decoded.
static void turn(const float* decoded, float* tile) {
    for (int r = 0; r < PANEL; r += L)
        for (int j = 0; j < DEPTH; j += L) {
            F square[L];
            for (int l = 0; l < L; l++) square[l] = load(decoded + (r + l) * DECODED + j);
            transpose(square);
            for (int l = 0; l < L; l++) store(tile + (j + l) * PANEL + r, square[l]);
        }
}

// Of rows of bf16, two in a lane. Rows beyond repeat the last.
static void turn_pairs(const FloatJob& job, const Place& at, float* tile) {
    const uint8_t* from = job.packed + at.row * job.pitch_bytes + 2 * at.col;
    for (int r = 0; r < PANEL; r += L)
        for (int j = 0; j < DEPTH; j += 2 * L) {
            F square[L];
            for (int l = 0; l < L; l++)
                square[l] = load_f32(from + std::min<int64_t>(r + l, at.rows - 1) * job.pitch_bytes + 2 * j);
            transpose(square);
            for (int l = 0; l < L; l++) {
                store(tile + (j + 2 * l) * PANEL + r, low_bf16(square[l]));
                store(tile + (j + 2 * l + 1) * PANEL + r, high_bf16(square[l]));
            }
        }
}

static void fill(const FloatJob& job, const Place& at, const float* decoded, float* tile) {
    if (!job.input_major)
        decoded ? turn(decoded, tile) : turn_pairs(job, at, tile);
    else if (job.format == Format::f32)
        widen<Scalar::f32>(job, at, tile);
    else if (job.format == Format::f16)
        widen<Scalar::f16>(job, at, tile);
    else
        widen<Scalar::bf16>(job, at, tile);
}

// During `steps` steps, what a tile is made of.
static Ahead ahead_of(const FloatJob& job, const Place& next, int64_t steps) {
    const FormatRow& f = FORMATS[static_cast<int>(job.format)];
    const int64_t runs = job.input_major ? next.col : next.row, in_run = job.input_major ? next.row : next.col;
    const int64_t length = job.input_major ? next.rows : next.depth;
    const int64_t blocks = (length + f.block_size - 1) / f.block_size;  // whole ones: a tile may have half of one
    return {job.packed + runs * job.pitch_bytes + in_run / f.block_size * f.block_bytes, job.pitch_bytes,
            blocks * f.block_bytes, job.input_major ? next.depth : next.rows, steps};
}

// The first `cols` columns of n rows of x, at most DEPTH of them of all rows, then the next.
static void bring(const float* x, int64_t stride, int64_t n, int64_t cols, float* to) {
    constexpr int64_t LATER = 4, LINE = 16;  // rows, floats
    for (int64_t c = 0; c < n; c++, x += stride)
        for (int64_t k = 0; k < cols; k += DEPTH) {
            const int64_t m = std::min<int64_t>(DEPTH, cols - k);
            float* out = to + k * n + c * DEPTH;
            int64_t j = 0;
            for (; j + L <= m; j += L) {
                if (j % LINE == 0 && c + LATER < n)
                    fetch_ahead(reinterpret_cast<const uint8_t*>(x + LATER * stride + k + j));
                store(out + j, load(x + k + j));
            }
            for (; j < m; j++) out[j] = x[k + j];
        }
}

// Whether all that came out is finite.
static bool float_panels(const FloatJob& job, int64_t first, int64_t last, float* scratch) {
    const FormatRow& f = FORMATS[static_cast<int>(job.format)];
    float *x_here = scratch, *decoded = x_here + DECODED * CHUNK, *tile = decoded + DECODED * PANEL;
    float* all_sums = tile + DEPTH * PANEL;
    std::memset(decoded, 0, DECODED * PANEL * sizeof(float));
    const auto place = [&](int64_t row, int64_t col) -> Place {
        return {row, std::min<int64_t>(PANEL, last - row), col,
                static_cast<int>(std::max<int64_t>(0, std::min<int64_t>(DEPTH, job.cols - col)))};
    };
    uint32_t largest = 0;  // bits of a magnitude
    for (int64_t i = 0; i < job.n; i += CHUNK) {
        const int64_t n = std::min(CHUNK, job.n - i);
        const float* x = job.x + i * job.cols;
        std::memset(all_sums, 0, static_cast<size_t>((last - first + PANEL - 1) / PANEL * n * PANEL) * sizeof(float));
        for (int64_t at = 0; at < job.cols; at += DECODED) {
            const int64_t cols = std::min<int64_t>(DECODED, job.cols - at);
            const bool pairs = job.format == Format::bf16 && cols % DEPTH == 0;
            bring(x + at, job.cols, n, cols, x_here);
            float* sums = all_sums;
            for (int64_t row = first; row < last; row += PANEL, sums += n * PANEL) {
                const int64_t rows = std::min<int64_t>(PANEL, last - row);
                for (int64_t r = 0; r < rows && !job.input_major && !pairs; r++)
                    decode_blocks(job.format,
                                  job.packed + (row + r) * job.pitch_bytes + at / f.block_size * f.block_bytes,
                                  decoded + r * DECODED, cols / f.block_size);
                for (int64_t k = 0; k < cols; k += DEPTH) {
                    const Place here = place(row, at + k);
                    fill(job, here, pairs ? nullptr : decoded + k, tile);
                    const bool is_last = k + DEPTH >= cols;  // of this panel, for now
                    const bool has_right = row + PANEL < last;
                    const Place next = !is_last    ? place(row, at + k + DEPTH)
                                       : has_right ? place(row + PANEL, at)
                                                   : place(first, at + DECODED);
                    Ahead ahead = ahead_of(job, next, (n + COLUMNS - 1) / COLUMNS);
                    for (int64_t c = 0; c < n; c += COLUMNS) {
                        ahead.fetch();
                        add_some<COLUMNS>(std::min<int64_t>(COLUMNS, n - c), tile, x_here + k * n + c * DEPTH,
                                          here.depth, sums + c * PANEL);
                    }
                }
            }
        }
        const float* sums = all_sums;
        for (int64_t row = first; row < last; row += PANEL, sums += n * PANEL) {
            for (int64_t at = 0; at < n * PANEL; at++) {
                uint32_t bits;
                std::memcpy(&bits, sums + at, 4);
                largest = std::max(largest, bits & 0x7fffffffu);
            }
            for (int64_t c = 0; c < n; c++)
                std::memcpy(job.out + (i + c) * job.out_stride + row, sums + c * PANEL,
                            static_cast<size_t>(std::min<int64_t>(PANEL, last - row)) * sizeof(float));
        }
    }
    return largest < 0x7f800000u;
}

}  // namespace QK_TIER
}  // namespace quantkit
