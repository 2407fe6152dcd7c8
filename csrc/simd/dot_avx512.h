// Integer dot products on 512 bits: with VNNI (QK_VNNI), whose sums are int32 and do not saturate, so that every code
// is a u8; without it as dot_avx2.h, which explains the bounds.
#pragma once
#include "simd/bytes_avx2.h"

namespace quantkit {
namespace QK_TIER {

constexpr int PANEL_ROWS = 32, PANEL_COLS = 6, VECTORS = 2, VECTOR_COLS = 3;

#define QK_PAIRS

#if defined(QK_VNNI)
constexpr bool SIGNED_BYTES = false;
#else
constexpr bool SIGNED_BYTES = true;

template <int MAX>
constexpr int run_length() {
    int run = 8;
    while (run * 2 * 127 * MAX > 32767) run /= 2;
    return run;
}
#endif

template <int MAX>
inline Floats dot(Bytes codes, const int8_t* x, const int32_t* start) {
#if defined(QK_VNNI)
    return {_mm256_cvtepi32_ps(_mm256_dpbusd_epi32(load_32(start), codes.v, load_32(x)))};
#else
    __m256i two;
    if constexpr (MAX > 127) {
        two = _mm256_maddubs_epi16(_mm256_abs_epi8(codes.v), _mm256_sign_epi8(load_32(x), codes.v));
    } else {
        static_assert(2 * 127 * MAX <= 32767, "an int16 overflows");
        two = _mm256_maddubs_epi16(codes.v, load_32(x));
    }
    return {_mm256_cvtepi32_ps(_mm256_add_epi32(_mm256_madd_epi16(two, _mm256_set1_epi16(1)), load_32(start)))};
#endif
}

// Two blocks at a time: the even one in the low half, the odd one in the high half.
constexpr int PAIR_ROWS = 2;  // rows of weights in turn, so that one's additions do not wait for each other
struct Pair {
    __m512i v;
};
struct PairFloats {
    __m512 v;
};

inline Pair join(Bytes a, Bytes b) { return {_mm512_inserti64x4(_mm512_castsi256_si512(a.v), b.v, 1)}; }
inline Pair load_pair(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
inline Pair load_twice(const uint8_t* p) { return {_mm512_broadcast_i64x4(load_32(p))}; }
inline Pair operator|(Pair a, Pair b) { return {_mm512_or_si512(a.v, b.v)}; }
inline Pair operator^(Pair a, Pair b) { return {_mm512_xor_si512(a.v, b.v)}; }
inline Pair set_pair_bytes(uint8_t x) { return {_mm512_set1_epi8(static_cast<char>(x))}; }
inline Pair look_up(const uint8_t (&table)[16], Pair index) {
    return {_mm512_shuffle_epi8(_mm512_broadcast_i32x4(load_16(table)), index.v)};
}
// nibbles() of p for the even block and of q for the odd one.
inline Pair nibbles(const uint8_t* p, const uint8_t* q) {
    const __m512i even = _mm512_broadcast_i32x4(load_16(p));
    const __m512i both = _mm512_mask_broadcast_i32x4(even, 0xff00, load_16(q));
    const __m512i shift = _mm512_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4, 0, 0, 0, 0, 4, 4, 4, 4);
    return {_mm512_and_si512(_mm512_srlv_epi32(both, shift), _mm512_set1_epi8(15))};
}
// Bits MASK of each byte, once it has been shifted right by EVEN or ODD; both at least 0, or both at most 0: left.
template <int EVEN, int ODD, int MASK>
inline Pair fields(Pair a) {
    constexpr int E = EVEN < 0 ? -EVEN : EVEN, O = ODD < 0 ? -ODD : ODD;
    const __m512i by = _mm512_setr_epi32(E, E, E, E, E, E, E, E, O, O, O, O, O, O, O, O);
    if constexpr (EVEN < 0 || ODD < 0)
        a.v = _mm512_sllv_epi32(a.v, by);
    else if constexpr (EVEN || ODD)
        a.v = _mm512_srlv_epi32(a.v, by);
    return {_mm512_and_si512(a.v, _mm512_set1_epi8(MASK))};
}

inline PairFloats operator*(PairFloats a, PairFloats b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline PairFloats operator+(PairFloats a, PairFloats b) { return {_mm512_add_ps(a.v, b.v)}; }
inline PairFloats set_pair_floats(float x) { return {_mm512_set1_ps(x)}; }
inline Floats even_of(PairFloats a) { return {_mm512_castps512_ps256(a.v)}; }
inline Floats odd_of(PairFloats a) { return {_mm512_extractf32x8_ps(a.v, 1)}; }

// The scales of blocks 2 K and 2 K + 1 in the lanes that dot_pair gives them: SUBS each, of 8 SUBS in a register.
template <int SUBS, int K>
inline PairFloats spread_scales(PairFloats scales) {
    constexpr int A = 2 * SUBS * K, B = SUBS == 1 ? A : A + 1, C = SUBS == 1 ? A + 1 : A + 2,
                  D = SUBS == 1 ? A + 1 : A + 3;
    const __m512i from = _mm512_setr_epi32(A, A, A, A, B, B, B, B, C, C, C, C, D, D, D, D);
    return {_mm512_permutexvar_ps(from, scales.v)};
}
inline PairFloats join(Floats a, Floats b) { return {_mm512_insertf32x8(_mm512_castps256_ps512(a.v), b.v, 1)}; }

// dot() of both blocks.
template <int MAX>
inline PairFloats dot_pair(Pair codes, const int8_t* x, const int32_t* start) {
#if defined(QK_VNNI)
    return {_mm512_cvtepi32_ps(_mm512_dpbusd_epi32(_mm512_loadu_si512(start), codes.v, _mm512_loadu_si512(x)))};
#else
    __m512i xs = _mm512_loadu_si512(x);
    if constexpr (MAX > 127) {
        xs = _mm512_mask_sub_epi8(xs, _mm512_movepi8_mask(codes.v), _mm512_setzero_si512(), xs);
        codes.v = _mm512_abs_epi8(codes.v);
    }
    static_assert(2 * 127 * (MAX > 127 ? 128 : MAX) <= 32767, "an int16 overflows");
    const __m512i four = _mm512_madd_epi16(_mm512_maddubs_epi16(codes.v, xs), _mm512_set1_epi16(1));
    return {_mm512_cvtepi32_ps(_mm512_add_epi32(four, _mm512_loadu_si512(start)))};
#endif
}

struct Sums {
    __m512 v;
};
inline Sums load_sums(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store_sums(float* p, Sums a) { _mm512_storeu_ps(p, a.v); }
inline Sums set_sums(float x) { return {_mm512_set1_ps(x)}; }
inline Sums operator*(Sums a, Sums b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Sums operator+(Sums a, Sums b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Sums operator-(Sums a, Sums b) { return {_mm512_sub_ps(a.v, b.v)}; }

template <int MAX, int COLS, int STEPS>
inline void dots(const uint8_t* tile, const uint8_t* x, const int32_t* start, Sums (&r)[COLS][VECTORS]) {
#if defined(QK_VNNI)
    __m512i s[COLS][VECTORS];
    for (int c = 0; c < COLS; c++)
        for (int v = 0; v < VECTORS; v++) s[c][v] = _mm512_set1_epi32(start[c]);
#pragma GCC unroll 8
    for (int k = 0; k < STEPS; k++) {
        __m512i w[VECTORS];
        for (int v = 0; v < VECTORS; v++) w[v] = _mm512_loadu_si512(tile + (k * VECTORS + v) * 64);
#pragma GCC unroll 16
        for (int c = 0; c < COLS; c++) {
            int32_t four;
            std::memcpy(&four, x + 4 * (k * COLS + c), 4);
            const __m512i xc = _mm512_set1_epi32(four);
            for (int v = 0; v < VECTORS; v++) s[c][v] = _mm512_dpbusd_epi32(s[c][v], w[v], xc);
        }
    }
#else
    constexpr int RUN = MAX > 127 ? 1 : run_length<MAX>() < STEPS ? run_length<MAX>() : STEPS;
    static_assert(RUN * 2 * 127 * (MAX > 127 ? 128 : MAX) <= 32767, "an int16 overflows");
    const __m512i ones = _mm512_set1_epi16(1);
    __m512i s[COLS][VECTORS], p[COLS][VECTORS];
#pragma GCC unroll 8
    for (int k = 0; k < STEPS; k++) {
        __m512i w[VECTORS];
        __mmask64 negative[VECTORS];
        for (int v = 0; v < VECTORS; v++) {
            w[v] = _mm512_loadu_si512(tile + (k * VECTORS + v) * 64);
            if constexpr (MAX > 127) negative[v] = _mm512_movepi8_mask(w[v]), w[v] = _mm512_abs_epi8(w[v]);
        }
#pragma GCC unroll 16
        for (int c = 0; c < COLS; c++) {
            int32_t four;
            std::memcpy(&four, x + 4 * (k * COLS + c), 4);
            const __m512i xc = _mm512_set1_epi32(four);
            for (int v = 0; v < VECTORS; v++) {
                __m512i xs = xc;
                if constexpr (MAX > 127) xs = _mm512_mask_sub_epi8(xc, negative[v], _mm512_setzero_si512(), xc);
                const __m512i two = _mm512_maddubs_epi16(w[v], xs);
                p[c][v] = k % RUN ? _mm512_add_epi16(p[c][v], two) : two;
                if (k % RUN == RUN - 1) {
                    const __m512i wide = _mm512_madd_epi16(p[c][v], ones);
                    s[c][v] = _mm512_add_epi32(k < RUN ? _mm512_set1_epi32(start[c]) : s[c][v], wide);
                }
            }
        }
    }
#endif
    for (int c = 0; c < COLS; c++)
        for (int v = 0; v < VECTORS; v++) r[c][v].v = _mm512_cvtepi32_ps(s[c][v]);
}

}  // namespace QK_TIER
}  // namespace quantkit
