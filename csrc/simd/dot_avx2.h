// Integer dot products on 256 bits: see dot_maddubs.h.
#pragma once
#include "simd/bytes_avx2.h"

namespace quantkit {
namespace QK_TIER {

constexpr int PANEL_ROWS = 16, PANEL_COLS = 4, VECTORS = 2, VECTOR_COLS = 3;

template <int MAX>
inline Ints dot(Bytes codes, const int8_t* x) {
    return dot_maddubs<MAX>(codes, x);
}

template <int STRIDE>
inline Floats eight_halves(const uint8_t* p) {
    const auto at = [&](int i) {
        uint16_t x;
        std::memcpy(&x, p + i * STRIDE, 2);
        return static_cast<short>(x);
    };
    return {_mm256_cvtph_ps(_mm_setr_epi16(at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7)))};
}

// Two blocks at a time.
#define QK_PAIRS
constexpr int PAIR_ROWS = 1;
struct Pair {
    __m256i a, b;
};
struct PairFloats {
    Floats a, b;
};
struct PairInts {
    Ints a, b;
};

inline Pair join(Bytes a, Bytes b) { return {a.v, b.v}; }
inline Pair load_pair(const uint8_t* p) { return {load_32(p), load_32(p + 32)}; }
inline Pair load_twice(const uint8_t* p) { return {load_32(p), load_32(p)}; }
inline Pair operator|(Pair x, Pair y) { return {_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)}; }
inline Pair operator^(Pair x, Pair y) { return {_mm256_xor_si256(x.a, y.a), _mm256_xor_si256(x.b, y.b)}; }
inline Pair set_pair_bytes(uint8_t x) { return join(set_bytes(x), set_bytes(x)); }
inline Pair look_up(const uint8_t (&table)[16], Pair index) {
    return join(look_up(table, Bytes{index.a}), look_up(table, Bytes{index.b}));
}
template <int STRIDE>
inline Pair load_fours(const uint8_t* p) {
    const auto two = [&](int i) {
        return _mm256_inserti128_si256(_mm256_castsi128_si256(load_16(p + i * STRIDE)), load_16(p + (i + 1) * STRIDE),
                                       1);
    };
    return {two(0), two(2)};
}
template <int BY, int MASK>
inline __m256i shifted(__m256i a) {
    if constexpr (BY > 0) a = _mm256_srli_epi32(a, BY);
    if constexpr (BY < 0) a = _mm256_slli_epi32(a, -BY);
    return _mm256_and_si256(a, _mm256_set1_epi8(MASK));
}
template <int EVEN, int ODD, int MASK>
inline Pair fields(Pair x) {
    return {shifted<EVEN, MASK>(x.a), shifted<ODD, MASK>(x.b)};
}

inline PairFloats operator*(PairFloats x, PairFloats y) { return {x.a * y.a, x.b * y.b}; }
inline PairFloats operator+(PairFloats x, PairFloats y) { return {x.a + y.a, x.b + y.b}; }
inline PairFloats set_pair_floats(float x) { return {set_floats(x), set_floats(x)}; }
inline Floats even_of(PairFloats x) { return x.a; }
inline Floats odd_of(PairFloats x) { return x.b; }
inline PairFloats load_pair_floats(const float* p) { return {load_floats(p), load_floats(p + 8)}; }
inline PairFloats join(Floats a, Floats b) { return {a, b}; }
template <int K>
inline PairFloats spread(PairFloats scales) {
    constexpr int A = 4 * K % 8;
    const __m256 from = K < 2 ? scales.a.v : scales.b.v;
    return {
        {_mm256_permutevar8x32_ps(from, _mm256_setr_epi32(A, A, A, A, A + 1, A + 1, A + 1, A + 1))},
        {_mm256_permutevar8x32_ps(from, _mm256_setr_epi32(A + 2, A + 2, A + 2, A + 2, A + 3, A + 3, A + 3, A + 3))}};
}
inline PairFloats scales_and_minima(const uint8_t* p) {
    const __m128i sixteen = six_bits(p + 4);
    const Floats scales = {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(sixteen))};
    const Floats minima = {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(sixteen, 8)))};
    return {set_floats(half(p)) * scales, set_floats(half(p + 2)) * minima};
}

inline PairFloats floats(PairInts x) { return {floats(x.a), floats(x.b)}; }
inline PairInts operator+(PairInts x, PairInts y) { return {x.a + y.a, x.b + y.b}; }
inline PairInts load_pair_ints(const int32_t* p) { return {load_ints(p), load_ints(p + 8)}; }
inline Ints widened_words(__m256i a) { return {_mm256_madd_epi16(a, _mm256_set1_epi16(1))}; }
template <int MAX>
inline PairInts dot(Pair codes, Pair x) {
    return {widened_words(products<MAX>(codes.a, x.a)), widened_words(products<MAX>(codes.b, x.b))};
}
template <int MAX, bool FOURS>
inline PairInts dot_both(Pair first, Pair x, Pair second, Pair y) {
    const __m256i a = products<MAX>(first.a, x.a), b = products<MAX>(first.b, x.b);
    const __m256i c = products<MAX>(second.a, y.a), d = products<MAX>(second.b, y.b);
    const auto add_up = [](__m256i p, __m256i q) {
        constexpr bool FITS = MAX <= 63;  // two sums of two products, in an int16
        return FITS ? widened_words(_mm256_add_epi16(p, q)) : widened_words(p) + widened_words(q);
    };
    const auto fold_up = [&](__m256i p, __m256i q) {
        return add_up(_mm256_permute2x128_si256(p, q, 0x20), _mm256_permute2x128_si256(p, q, 0x31));
    };
    if constexpr (FOURS)
        return {add_up(a, c), add_up(b, d)};
    else
        return {fold_up(a, b), fold_up(c, d)};
}

using Sums = Floats;
inline Sums load_sums(const float* p) { return load_floats(p); }
inline void store_sums(float* p, Sums a) { store_floats(p, a); }
inline Sums set_sums(float x) { return set_floats(x); }

using Counts = Ints;
inline Counts load_counts(const int32_t* p) { return load_ints(p); }
inline Counts set_counts(int32_t x) { return {_mm256_set1_epi32(x)}; }
template <int SHIFT>
inline Counts halves_of(Counts low, Counts high) {
    return {_mm256_blend_epi16(_mm256_srli_epi32(low.v, SHIFT), _mm256_slli_epi32(high.v, 16 - SHIFT), 0xaa)};
}
inline Counts add_halves(Counts total, Counts a, Counts b) {
    return {_mm256_add_epi32(total.v, _mm256_madd_epi16(a.v, b.v))};
}

inline Counts load_codes(const uint8_t* p) { return {load_32(p)}; }
template <int MAX>
inline Counts products(Counts codes, Counts x) {
    return {products<MAX>(codes.v, x.v)};
}
inline Counts add_words(Counts a, Counts b) { return {_mm256_add_epi16(a.v, b.v)}; }
inline Counts widened_pairs(Counts a) { return widened_words(a.v); }
inline Counts add(Counts a, Counts b) { return {_mm256_add_epi32(a.v, b.v)}; }

}  // namespace QK_TIER
}  // namespace quantkit

#include "simd/dot_maddubs.h"
