// A batch: L blocks side by side, one per lane, X[element * L + lane]. Loads any source into that shape, checks range,
// makes the weights, and hands the batch to a codec.
//
// A codec is a struct with
//   N        elements per block        BYTES    bytes per block
//   static void encode(const Batch<N>&, Weights, uint8_t* const out[L])   Weights: Ones or Given
//   static void decode(const uint8_t* in, float* out)                     one block
#pragma once
#include <algorithm>
#include <cstring>

#include "codec/bytes.h"
#include "dispatch.h"

namespace quantkit {
namespace QK_TIER {

template <int N>
struct Batch {
    alignas(64) float x[N * L];
    alignas(64) float w[N * L];  // largest weight of a lane is 1; unset when the weights are Ones
    F max_abs;
    bool unbiased;
    F operator[](int i) const { return load(x + i * L); }
};

// The weight of element i in every lane.
struct Ones {
    F operator[](int) const { return set1(1.0f); }
};
struct Given {
    const float* w;
    F operator[](int i) const { return load(w + i * L); }
};

inline F load_f8_e4m3(const void* p) {
    float x[L];
    for (int l = 0; l < L; l++) x[l] = f8_e4m3_to_f32(static_cast<const uint8_t*>(p)[l]);
    return load(x);
}

template <Scalar S>
inline F load_scalars(const uint8_t* p) {
    if constexpr (S == Scalar::f32)
        return load_f32(p);
    else if constexpr (S == Scalar::f16)
        return load_f16(p);
    else if constexpr (S == Scalar::bf16)
        return load_bf16(p);
    else
        return load_f8_e4m3(p);
}

// Magnitudes compare as integers, and NaN and infinity above every finite one.
inline I magnitude_bits(F x) { return bits(x) & set1i(0x7fffffff); }

// Where L lanes' rows begin: either each lane has its own run of columns, or the lanes lie side by side `pitch`
// elements per column. The largest magnitudes are found on the way.
template <int N, Scalar S>
void load_runs(Batch<N>& b, const uint8_t* const (&runs)[L]) {
    constexpr int BYTES = SCALAR_BYTES[static_cast<int>(S)];
    I m = set1i(0);
    for (int i = 0; i < N; i += L) {
        F r[L];
        for (int l = 0; l < L; l++) r[l] = load_scalars<S>(runs[l] + i * BYTES);
        transpose(r);
        for (int k = 0; k < L; k++) {
            store(b.x + (i + k) * L, r[k]);
            m = max(m, magnitude_bits(r[k]));
        }
    }
    b.max_abs = from_bits(m);
}
template <int N, Scalar S>
void load_lanes(Batch<N>& b, const uint8_t* first, int64_t pitch_bytes) {
    I m = set1i(0);
    for (int i = 0; i < N; i++) {
        const F x = load_scalars<S>(first + i * pitch_bytes);
        store(b.x + i * L, x);
        m = max(m, magnitude_bits(x));
    }
    b.max_abs = from_bits(m);
}

// Multiplies the rows' scales in.
template <int N>
void rescale(Batch<N>& b, F scales) {
    I m = set1i(0);
    for (int i = 0; i < N; i++) {
        const F x = b[i] * scales;
        store(b.x + i * L, x);
        m = max(m, magnitude_bits(x));
    }
    b.max_abs = from_bits(m);
}

// w = importance (* magnitude term), scaled so that the largest of a lane is 1 (which keeps sums of squares in range);
// a lane whose weights are all zero is weighted evenly.
template <int N>
void weigh(Batch<N>& b, const float* const (&columns)[L], bool importance, bool magnitude) {
    if (importance) {
        for (int i = 0; i < N; i += L) {
            F r[L];
            for (int l = 0; l < L; l++) r[l] = load(columns[l] + i);
            transpose(r);
            for (int k = 0; k < L; k++) store(b.w + (i + k) * L, r[k]);
        }
    } else {
        for (int i = 0; i < N; i++) store(b.w + i * L, set1(1.0f));
    }
    // twice, because an importance that is tiny times a magnitude that is tiny may vanish before it is scaled
    const F zero = set1(0.0f), one = set1(1.0f);
    auto normalise = [&] {
        F top = zero;
        for (int i = 0; i < N; i++) top = max(top, load(b.w + i * L));
        const M none = top <= zero;
        // below 2^-100 an inverse may overflow
        const F up = select(top < set1(7.8886091e-31f), set1(1.2676506e30f), one);
        const F inverse = one / select(none, one, top * up);
        for (int i = 0; i < N; i++) store(b.w + i * L, select(none, one, load(b.w + i * L) * up * inverse));
    };
    if (importance) normalise();
    if (magnitude) {
        const F scale = one / select(b.max_abs <= set1(1e-30f), one, b.max_abs);
        F sum = zero;
        for (int i = 0; i < N; i++) {
            const F x = b[i] * scale;
            sum = sum + x * x;
        }
        const F mean = sum * set1(1.0f / N);
        for (int i = 0; i < N; i++) {
            const F x = b[i] * scale;
            store(b.w + i * L, load(b.w + i * L) * sqrt(mean + x * x));
        }
        normalise();
    }
}

template <class Codec>
bool encode_batch(Batch<Codec::N>& b, const EncodeJob& job, const float* scales, const float* const (&columns)[L],
                  uint8_t* const (&out)[L], float limit) {
    if (scales) rescale(b, load(scales));
    if (any(bits(set1(limit)) < bits(b.max_abs))) return false;  // not finite, or beyond the format's range
    b.unbiased = job.weighting == Weighting::unbiased;
    const bool magnitude = job.weighting == Weighting::magnitude;
    if (job.importance || magnitude) {
        weigh(b, columns, job.importance != nullptr, magnitude);
        Codec::encode(b, Given{b.w}, out);
    } else {
        Codec::encode(b, Ones{}, out);
    }
    return true;
}

}  // namespace QK_TIER
}  // namespace quantkit
