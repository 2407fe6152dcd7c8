// Cuts a job into tasks and a task into batches. Every lane stands alone, so the cut never shows in the bytes.
#pragma once
#include <vector>

#include "codec/batch.h"

namespace quantkit {
namespace QK_TIER {

constexpr int64_t TASK_ELEMENTS = 65536;  // contiguous rows: elements per task
constexpr int64_t TILE_ROWS = 256;  // transposed rows: 512-byte runs of bf16, and a tile that stays in a 256 KB cache
constexpr int64_t TILE_COLS = 256;

inline bool is_transposed(const EncodeJob& job) { return job.col_stride != 1; }

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline int64_t count_tasks(Format format, const EncodeJob& job) {
    if (is_transposed(job)) return ceil_div(job.rows, TILE_ROWS) * ceil_div(job.cols, TILE_COLS);
    const FormatRow& row = FORMATS[static_cast<int>(format)];
    if (row.block_size == 1) return job.rows;
    return ceil_div(job.rows * (job.cols / row.block_size), TASK_ELEMENTS / row.block_size);
}

// A tile of a transposed source, copied together: at the source's own pitch (a power of two) all its columns would fall
// on the same few cache sets. The pad keeps the copy off them too.
struct Tile {
    int64_t row, col, rows, cols, pitch_bytes;
    const uint8_t* bytes;  // this thread's, until its next tile

    Tile(const EncodeJob& job, int64_t task, int64_t height = TILE_ROWS, int64_t width = TILE_COLS) {
        const int64_t across = ceil_div(job.cols, width), size = SCALAR_BYTES[static_cast<int>(job.scalar)];
        row = task / across * height;
        col = task % across * width;
        rows = std::min(height, job.rows - row);
        cols = std::min(width, job.cols - col);
        pitch_bytes = height * size + 64;
        static thread_local std::vector<uint8_t> buffer;  // grown once: a fresh one would be zeroed for every tile
        buffer.resize(std::max(buffer.size(), static_cast<size_t>(cols * pitch_bytes + 64)));
        bytes = buffer.data();
        const size_t empty = static_cast<size_t>((ceil_div(rows, L) * L - rows) * size);  // lanes beyond the last row
        for (int64_t c = 0; c < cols; c++) {
            const uint8_t* from = job.source + (row * job.row_stride + (col + c) * job.col_stride) * size;
            uint8_t* to = buffer.data() + c * pitch_bytes;
            if (job.row_stride == 1) {
                std::memcpy(to, from, static_cast<size_t>(rows * size));
            } else {
                for (int64_t r = 0; r < rows; r++)
                    std::memcpy(to + r * size, from + r * job.row_stride * size, static_cast<size_t>(size));
            }
            std::memset(to + rows * size, 0, empty);
        }
    }
};

template <class Codec, Scalar S>
bool encode_transposed(const EncodeJob& job, int64_t task, float limit) {
    constexpr int N = Codec::N;
    const Tile tile(job, task);
    const int64_t row_bytes = job.cols / N * Codec::BYTES, size = SCALAR_BYTES[static_cast<int>(S)];
    Batch<N> b;
    uint8_t spill[Codec::BYTES + 16];
    for (int64_t c = 0; c < tile.cols; c += N)
        for (int64_t r = 0; r < tile.rows; r += L) {
            const float* columns[L];
            uint8_t* out[L];
            float scales[L];
            for (int l = 0; l < L; l++) {
                const bool live = r + l < tile.rows;
                columns[l] = job.importance ? job.importance + tile.col + c : nullptr;
                out[l] = live ? job.out + (tile.row + r + l) * row_bytes + (tile.col + c) / N * Codec::BYTES : spill;
                scales[l] = live && job.row_scale ? job.row_scale[tile.row + r + l] : 1.0f;
            }
            load_lanes<N, S>(b, tile.bytes + c * tile.pitch_bytes + r * size, tile.pitch_bytes);
            if (!encode_batch<Codec>(b, job, job.row_scale ? scales : nullptr, columns, out, limit)) return false;
        }
    return true;
}

template <class Codec, Scalar S>
bool encode_rows(const EncodeJob& job, int64_t task, float limit) {
    constexpr int N = Codec::N;
    constexpr int64_t STEP = TASK_ELEMENTS / N;
    const int64_t per_row = job.cols / N, blocks = job.rows * per_row, size = SCALAR_BYTES[static_cast<int>(S)];
    const int64_t first = task * STEP, last = std::min(blocks, first + STEP);
    Batch<N> b;
    uint8_t spill[Codec::BYTES + 16];
    for (int64_t k = first; k < last; k += L) {
        const uint8_t* runs[L];
        const float* columns[L];
        uint8_t* out[L];
        float scales[L];
        for (int l = 0; l < L; l++) {
            const bool live = k + l < last;
            const int64_t block = live ? k + l : k, row = block / per_row, col = block % per_row * N;
            runs[l] = job.source + (row * job.row_stride + col) * size;
            columns[l] = job.importance ? job.importance + col : nullptr;
            out[l] = live ? job.out + block * Codec::BYTES : spill;
            scales[l] = job.row_scale ? job.row_scale[row] : 1.0f;
        }
        load_runs<N, S>(b, runs);
        if (!encode_batch<Codec>(b, job, job.row_scale ? scales : nullptr, columns, out, limit)) return false;
    }
    return true;
}

template <class Codec, Scalar S>
bool encode_as(const EncodeJob& job, int64_t task, float limit) {
    return is_transposed(job) ? encode_transposed<Codec, S>(job, task, limit) : encode_rows<Codec, S>(job, task, limit);
}

template <class Codec>
bool encode_with(const EncodeJob& job, int64_t task, float limit) {
    switch (job.scalar) {
        case Scalar::f32:
            return encode_as<Codec, Scalar::f32>(job, task, limit);
        case Scalar::f16:
            return encode_as<Codec, Scalar::f16>(job, task, limit);
        case Scalar::bf16:
            return encode_as<Codec, Scalar::bf16>(job, task, limit);
        default:
            return encode_as<Codec, Scalar::f8_e4m3>(job, task, limit);
    }
}

}  // namespace QK_TIER
}  // namespace quantkit
