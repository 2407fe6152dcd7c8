// f32, f16 and bf16 outputs: one scalar a weight, rounded to nearest even.
#pragma once
#include "codec/driver.h"

namespace quantkit {
namespace QK_TIER {

struct to_f32 {
    static constexpr int BYTES = 4;
    static void put(uint8_t* p, F x) { store_f32(p, x); }
};
struct to_f16 {
    static constexpr int BYTES = 2;
    static void put(uint8_t* p, F x) { store_f16(p, x); }
};
struct to_bf16 {
    static constexpr int BYTES = 2;
    static void put(uint8_t* p, F x) { store_bf16(p, x); }
};

inline M beyond(F x, float limit) { return bits(set1(limit)) < magnitude_bits(x); }

template <class To, Scalar S>
bool cast_row(const EncodeJob& job, int64_t row, float limit) {
    constexpr int64_t IN = SCALAR_BYTES[static_cast<int>(S)], OUT = To::BYTES;
    const uint8_t* in = job.source + row * job.row_stride * IN;
    uint8_t* out = job.out + row * job.cols * OUT;
    const F scale = set1(job.row_scale ? job.row_scale[row] : 1.0f);
    bool bad = false;
    auto step = [&](const uint8_t* from, uint8_t* to) {
        F x = load_scalars<S>(from);
        if (job.row_scale) x = x * scale;
        bad |= any(beyond(x, limit));
        To::put(to, x);
    };
    int64_t c = 0;
    for (; c + L <= job.cols; c += L) step(in + c * IN, out + c * OUT);
    if (c < job.cols) {
        alignas(32) uint8_t from[L * IN] = {}, to[L * OUT];
        std::memcpy(from, in + c * IN, static_cast<size_t>((job.cols - c) * IN));
        step(from, to);
        std::memcpy(out + c * OUT, to, static_cast<size_t>((job.cols - c) * OUT));
    }
    return !bad;
}

template <class To, Scalar S>
bool cast_tile(const EncodeJob& job, int64_t task, float limit) {
    constexpr int64_t IN = SCALAR_BYTES[static_cast<int>(S)], OUT = To::BYTES;
    const Tile tile(job, task);
    // Where rows are put together: in the output, or here where some lanes or columns are none, or where there are more
    // rows than ways in a cache (a power of two apart, they share one set, and would leave it with lines half full).
    constexpr int64_t PITCH = TILE_COLS * OUT + 64;
    alignas(64) uint8_t buffer[L * PITCH];
    bool bad = false;
    for (int64_t r = 0; r < tile.rows; r += L) {
        const int64_t lanes = std::min<int64_t>(L, tile.rows - r), out_pitch = job.cols * OUT;
        const bool direct = L <= 8 && lanes == L && tile.cols % L == 0;
        uint8_t* out = job.out + (tile.row + r) * out_pitch + tile.col * OUT;
        uint8_t* rows = direct ? out : buffer;
        const int64_t pitch = direct ? out_pitch : PITCH;
        float scales[L];
        for (int l = 0; l < L; l++) scales[l] = job.row_scale && l < lanes ? job.row_scale[tile.row + r + l] : 1.0f;
        for (int64_t c = 0; c < tile.cols; c += L) {
            F x[L];
            for (int k = 0; k < L; k++) {
                x[k] =
                    c + k < tile.cols ? load_scalars<S>(tile.bytes + (c + k) * tile.pitch_bytes + r * IN) : set1(0.0f);
                if (job.row_scale) x[k] = x[k] * load(scales);
                bad |= any(beyond(x[k], limit));
            }
            transpose(x);
            for (int l = 0; l < L; l++) To::put(rows + l * pitch + c * OUT, x[l]);
        }
        if (!direct) {
            for (int64_t l = 0; l < lanes; l++)
                std::memcpy(out + l * out_pitch, buffer + l * PITCH, static_cast<size_t>(tile.cols * OUT));
        }
    }
    return !bad;
}

template <class To>
bool cast_with(const EncodeJob& job, int64_t task, float limit) {
    const bool t = is_transposed(job);
    switch (job.scalar) {
        case Scalar::f32:
            return t ? cast_tile<To, Scalar::f32>(job, task, limit) : cast_row<To, Scalar::f32>(job, task, limit);
        case Scalar::f16:
            return t ? cast_tile<To, Scalar::f16>(job, task, limit) : cast_row<To, Scalar::f16>(job, task, limit);
        case Scalar::bf16:
            return t ? cast_tile<To, Scalar::bf16>(job, task, limit) : cast_row<To, Scalar::bf16>(job, task, limit);
        default:
            return t ? cast_tile<To, Scalar::f8_e4m3>(job, task, limit)
                     : cast_row<To, Scalar::f8_e4m3>(job, task, limit);
    }
}

}  // namespace QK_TIER
}  // namespace quantkit
