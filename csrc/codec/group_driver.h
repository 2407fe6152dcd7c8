// Cuts a job of groups into tasks and a task into batches, and reads groups back.
#pragma once
#include "codec/group_codes.h"
#include "codec/group_search.h"

namespace quantkit {
namespace QK_TIER {

// A tile of a transposed source holds whole groups.
inline int64_t tile_width(const GroupJob& job) { return std::max(job.group_size, TILE_COLS); }
inline int64_t tile_height(const GroupJob& job) {
    return std::max<int64_t>(16, TILE_ROWS * TILE_COLS / tile_width(job) / 16 * 16);
}
inline int64_t groups_at_once(const GroupJob& job) { return std::max<int64_t>(16, TASK_ELEMENTS / job.group_size); }

static int64_t group_tasks(const GroupJob& job) {
    const EncodeJob& rows = job.rows;
    if (is_transposed(rows)) return ceil_div(rows.rows, tile_height(job)) * ceil_div(rows.cols, tile_width(job));
    return ceil_div(rows.rows * (rows.cols / job.group_size), groups_at_once(job));
}

inline void store_scalar(Scalar type, uint8_t* to, int64_t index, float x) {
    if (type == Scalar::f32) {
        std::memcpy(to + 4 * index, &x, 4);
    } else {
        const uint16_t h = type == Scalar::f16 ? f32_to_f16(x) : f32_to_bf16(x);
        std::memcpy(to + 2 * index, &h, 2);
    }
}

// Each lane's to its group's place.
inline void store_scalars(Scalar type, uint8_t* to, const int64_t (&groups)[L], F x) {
    bool side_by_side = true;
    for (int l = 1; l < L; l++) side_by_side &= groups[l] == groups[0] + l;
    if (side_by_side) {
        to += groups[0] * SCALAR_BYTES[static_cast<int>(type)];
        return type == Scalar::f32 ? store_f32(to, x) : type == Scalar::f16 ? store_f16(to, x) : store_bf16(to, x);
    }
    float values[L];
    store(values, x);
    for (int l = 0; l < L; l++)
        if (groups[l] >= 0) store_scalar(type, to, groups[l], values[l]);
}

inline float read_scalar(Scalar type, const uint8_t* from, int64_t index) {
    float x;
    uint16_t h;
    if (type == Scalar::f32) {
        std::memcpy(&x, from + 4 * index, 4);
        return x;
    }
    std::memcpy(&h, from + 2 * index, 2);
    return type == Scalar::f16 ? f16_to_f32(h) : bf16_to_f32(h);
}

template <bool SYMMETRIC, class W>
void encode_groups(const GroupBatch& b, W w, const GroupJob& job, const int64_t (&groups)[L]) {
    const GroupSearch<SYMMETRIC, W> found(b, w, job);
    const int64_t group_bytes = job.group_size / 8 * job.bits;
    uint8_t* out[L];
    static thread_local std::vector<uint8_t> spill;
    spill.resize(std::max(spill.size(), static_cast<size_t>(group_bytes)));
    for (int l = 0; l < L; l++) out[l] = groups[l] < 0 ? spill.data() : job.rows.out + groups[l] * group_bytes;
    store_scalars(job.scale_type, job.scales, groups, found.scale);
    store_scalars(job.scale_type, job.biases, groups, found.bias);
    store_codes(job.bits, b.x, b.n, found.coder(), out);
}

// groups: which group of the matrix each lane holds, or -1.
inline bool encode_group_batch(GroupBatch& b, const GroupJob& job, const int64_t (&groups)[L],
                               const float* const (&columns)[L]) {
    if (any(bits(set1(group_limit(job.scale_type))) < bits(b.max_abs))) return false;
    if (job.rows.importance) {
        weigh_groups(b, columns);
        job.symmetric ? encode_groups<true>(b, Given{b.w}, job, groups)
                      : encode_groups<false>(b, Given{b.w}, job, groups);
    } else {
        job.symmetric ? encode_groups<true>(b, Ones{}, job, groups) : encode_groups<false>(b, Ones{}, job, groups);
    }
    return true;
}

template <Scalar S>
bool encode_group_runs(const GroupJob& job, int64_t task) {
    const EncodeJob& rows = job.rows;
    const int64_t n = job.group_size, per_row = rows.cols / n, size = SCALAR_BYTES[static_cast<int>(S)];
    const int64_t first = task * groups_at_once(job), last = std::min(rows.rows * per_row, first + groups_at_once(job));
    GroupBatch b(n);
    for (int64_t k = first; k < last; k += L) {
        const uint8_t* runs[L];
        const float* columns[L];
        int64_t groups[L];
        for (int l = 0; l < L; l++) {
            const int64_t group = k + l < last ? k + l : k, row = group / per_row, col = group % per_row * n;
            groups[l] = k + l < last ? group : -1;
            runs[l] = rows.source + (row * rows.row_stride + col) * size;
            columns[l] = rows.importance ? rows.importance + col : nullptr;
        }
        load_group_runs<S>(b, runs);
        // the lanes' runs, read side by side, are no pattern that the processor foresees
        const int64_t next = std::min<int64_t>(k + L, last - 1);
        b.next = rows.source + (next / per_row * rows.row_stride + next % per_row * n) * size;
        b.next_step = n <= 128 ? static_cast<int>(size) * L : 0;
        if (!encode_group_batch(b, job, groups, columns)) return false;
    }
    return true;
}

template <Scalar S>
bool encode_group_tile(const GroupJob& job, int64_t task) {
    const EncodeJob& rows = job.rows;
    const int64_t n = job.group_size, per_row = rows.cols / n, size = SCALAR_BYTES[static_cast<int>(S)];
    const Tile tile(rows, task, tile_height(job), tile_width(job));
    GroupBatch b(n);
    for (int64_t c = 0; c < tile.cols; c += n)
        for (int64_t r = 0; r < tile.rows; r += L) {
            const float* columns[L];
            int64_t groups[L];
            for (int l = 0; l < L; l++) {
                columns[l] = rows.importance ? rows.importance + tile.col + c : nullptr;
                groups[l] = r + l < tile.rows ? (tile.row + r + l) * per_row + (tile.col + c) / n : -1;
            }
            load_group_lanes<S>(b, tile.bytes + c * tile.pitch_bytes + r * size, tile.pitch_bytes);
            if (!encode_group_batch(b, job, groups, columns)) return false;
        }
    return true;
}

static bool group_task(const GroupJob& job, int64_t task) {
    const bool t = is_transposed(job.rows);
    switch (job.rows.scalar) {
        case Scalar::f32:
            return t ? encode_group_tile<Scalar::f32>(job, task) : encode_group_runs<Scalar::f32>(job, task);
        case Scalar::f16:
            return t ? encode_group_tile<Scalar::f16>(job, task) : encode_group_runs<Scalar::f16>(job, task);
        default:
            return t ? encode_group_tile<Scalar::bf16>(job, task) : encode_group_runs<Scalar::bf16>(job, task);
    }
}

template <int BITS>
inline void read_row(const GroupReadJob& job, int64_t row) {
    const int64_t n = job.group_size, per_row = job.cols / n;
    for (int64_t g = row * per_row; g < (row + 1) * per_row; g++)
        read_group<BITS>(job.codes + g * (n / 8 * BITS), n, read_scalar(job.scale_type, job.scales, g),
                         read_scalar(job.scale_type, job.biases, g), job.out + g * n);
}

static void read_groups(const GroupReadJob& job, int64_t row) {
    switch (job.bits) {
        case 2:
            return read_row<2>(job, row);
        case 3:
            return read_row<3>(job, row);
        case 4:
            return read_row<4>(job, row);
        case 5:
            return read_row<5>(job, row);
        case 6:
            return read_row<6>(job, row);
        default:
            return read_row<8>(job, row);
    }
}

}  // namespace QK_TIER
}  // namespace quantkit
