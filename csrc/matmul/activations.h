// Rows of x as the products read them: int8 codes of blocks of 32 columns, x ~ scale * code with scale = max |x| / 127,
// and the sums of codes that formats with an offset or a minimum need. A block below 2^-100 counts as zero.
#pragma once
#include "matmul/kernels.h"
#include "matmul/readers.h"

namespace quantkit {
namespace QK_TIER {

// What the stored codes of a format are too large by, negated.
template <class R>
constexpr int start_factor() {
    return (SIGNED_BYTES && R::MAX > 127 ? 128 : 0) - R::OFFSET;
}

inline int64_t chunks_of(int64_t cols) { return (cols + 255) / 256; }

// One row for a vector product: codes, then for each four of them their sum times start_factor, then for each
// (sub-)block the scale, then (MINS) scale * sum of codes; all padded with zeros to chunks of 256 columns.
template <class R>
struct Vector {
    const int8_t* codes;
    const int32_t* start;
    const float *scale, *sum;

    static int64_t bytes(int64_t cols) { return chunks_of(cols) * (256 + 256 + 32 * R::SUBS * (R::MINS ? 2 : 1)); }
    Vector(const uint8_t* p, int64_t cols) {
        const int64_t chunks = chunks_of(cols);
        codes = reinterpret_cast<const int8_t*>(p);
        start = reinterpret_cast<const int32_t*>(p + chunks * 256);
        scale = reinterpret_cast<const float*>(p + chunks * 512);
        sum = scale + chunks * 8 * R::SUBS;
    }
};

template <class R>
static bool prepare_vector(const float* x, int64_t cols, uint8_t* out) {
    std::memset(out, 0, static_cast<size_t>(Vector<R>::bytes(cols)));
    const Vector<R> to(out, cols);
    int8_t* codes = const_cast<int8_t*>(to.codes);
    int32_t* start = const_cast<int32_t*>(to.start);
    float *scale = const_cast<float*>(to.scale), *sum = const_cast<float*>(to.sum);
    for (int64_t b = 0; b < cols / 32; b++) {
        const uint32_t bits = largest_magnitude_bits(x + 32 * b);
        if (bits >= 0x7f800000u) return false;
        if (bits < 0x0d800000u) continue;
        float largest;
        std::memcpy(&largest, &bits, 4);
        const float step = largest / 127.0f;
        store_codes(x + 32 * b, 127.0f / largest, codes + 32 * b);
        int32_t* fours = start + 8 * b;
        store_sums(codes + 32 * b, fours);
        for (int s = 0; s < R::SUBS; s++) {
            scale[R::SUBS * b + s] = step;
            if (R::MINS) {
                int32_t total = 0;
                for (int l = 0; l < 8 / R::SUBS; l++) total += fours[8 / R::SUBS * s + l];
                sum[R::SUBS * b + s] = step * static_cast<float>(total);
            }
        }
        for (int l = 0; l < 8; l++) fours[l] *= start_factor<R>();
    }
    return true;
}

// One block of a tile of n rows for a panel: step k's four codes of each row (k = 0..7), the rows' scales, each
// (sub-)block's sums of codes times start_factor, and (MINS) the sums.
template <class R>
constexpr int64_t block_bytes() {
    return 32 + 4 + 4 * R::SUBS * (R::MINS ? 2 : 1);
}

template <class R>
static bool prepare_panel(const float* const* x, int n, int64_t cols, uint8_t* out, uint8_t* scratch) {
    const int64_t row = Vector<R>::bytes(cols);
    for (int c = 0; c < n; c++)
        if (!prepare_vector<R>(x[c], cols, scratch + c * row)) return false;
    for (int c = 0; c < n; c++) {
        const Vector<R> from(scratch + c * row, cols);
        uint8_t* to = out + 4 * c;
        for (int64_t b = 0; b < cols / 32; b++) {
            const auto put = [&](const void* p) {
                std::memcpy(to, p, 4);
                to += 4 * n;
            };
            for (int k = 0; k < 8; k++) put(from.codes + 32 * b + 4 * k);
            put(from.scale + R::SUBS * b);
            for (int s = 0; s < R::SUBS; s++) {
                int32_t total = 0;
                for (int l = 0; l < 8 / R::SUBS; l++) total += from.start[8 * b + 8 / R::SUBS * s + l];
                put(&total);
            }
            for (int s = 0; R::MINS && s < R::SUBS; s++) {
                int32_t total = 0;
                for (int i = 0; i < 32 / R::SUBS; i++) total += from.codes[32 * b + 32 / R::SUBS * s + i];
                const float sum = static_cast<float>(total);
                put(&sum);
            }
        }
    }
    return true;
}

}  // namespace QK_TIER
}  // namespace quantkit
