// Integer dot products on 512 bits: with VNNI (QK_VNNI), whose sums are int32 and do not saturate, so that every code
// is a u8; without it as dot_avx2.h, which explains the bounds.
#pragma once
#include "simd/bytes_avx2.h"

namespace quantkit {
namespace QK_TIER {

constexpr int PANEL_ROWS = 48, PANEL_COLS = 4, VECTORS = 3, VECTOR_COLS = 3, REGISTERS = 32;

#if defined(QK_VNNI)
constexpr bool SIGNED_BYTES = false;
#endif

struct Sums {
    __m512 v;
};
inline Sums load_sums(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store_sums(float* p, Sums a) { _mm512_storeu_ps(p, a.v); }
inline Sums set_sums(float x) { return {_mm512_set1_ps(x)}; }
inline Sums operator*(Sums a, Sums b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Sums operator+(Sums a, Sums b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Sums operator-(Sums a, Sums b) { return {_mm512_sub_ps(a.v, b.v)}; }

struct Counts {
    __m512i v;
};
inline Sums floats(Counts a) { return {_mm512_cvtepi32_ps(a.v)}; }
inline Counts load_counts(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
inline Counts set_counts(int32_t x) { return {_mm512_set1_epi32(x)}; }
template <int SHIFT>
inline Counts halves_of(Counts low, Counts high) {
    return {
        _mm512_mask_blend_epi16(0xaaaaaaaau, _mm512_srli_epi32(low.v, SHIFT), _mm512_slli_epi32(high.v, 16 - SHIFT))};
}
inline Counts add_halves(Counts total, Counts a, Counts b) {
#if defined(QK_VNNI)
    return {_mm512_dpwssd_epi32(total.v, a.v, b.v)};
#else
    return {_mm512_add_epi32(total.v, _mm512_madd_epi16(a.v, b.v))};
#endif
}

#if defined(QK_VNNI)
// Sums come back in registers: a compiler that has inlined much in a file may stop before this.
template <int MAX, int COLS, int STEPS>
[[gnu::always_inline]] inline void dots(const uint8_t* tile, const uint8_t* x, const int32_t* start,
                                        Counts (&r)[COLS][VECTORS]) {
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
    for (int c = 0; c < COLS; c++)
        for (int v = 0; v < VECTORS; v++) r[c][v].v = s[c][v];
}

#else
inline Counts load_codes(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
template <int MAX>
inline Counts products(Counts codes, Counts x) {
    if constexpr (MAX > 127) {
        const __mmask64 negative = _mm512_movepi8_mask(codes.v);
        x.v = _mm512_mask_sub_epi8(x.v, negative, _mm512_setzero_si512(), x.v);
        codes.v = _mm512_abs_epi8(codes.v);
    }
    return {_mm512_maddubs_epi16(codes.v, x.v)};
}
inline Counts add_words(Counts a, Counts b) { return {_mm512_add_epi16(a.v, b.v)}; }
inline Counts widened_pairs(Counts a) { return {_mm512_madd_epi16(a.v, _mm512_set1_epi16(1))}; }
inline Counts add(Counts a, Counts b) { return {_mm512_add_epi32(a.v, b.v)}; }
#endif

}  // namespace QK_TIER
}  // namespace quantkit

#if !defined(QK_VNNI)
#include "simd/dot_maddubs.h"
#endif
