// Integer dot products on 512 bits: with VNNI (QK_VNNI), whose sums are int32 and do not saturate, so that every code
// is a u8; without it as dot_avx2.h, which explains the bounds.
#pragma once
#include "simd/bytes_avx2.h"

namespace quantkit {
namespace QK_TIER {

constexpr int PANEL_ROWS = 32, PANEL_COLS = 6, VECTORS = 2, VECTOR_COLS = 3;

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
