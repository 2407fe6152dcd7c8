// Integer dot products on 512 bits: with VNNI (QK_VNNI), whose sums are int32 and do not saturate, so that every code
// is a u8; without it as dot_avx2.h, which explains the bounds.
#pragma once
#include "simd/bytes_avx2.h"

namespace quantkit {
namespace QK_TIER {

constexpr int LANES = 16, VECTOR_COLS = 3, REGISTERS = 32;
template <int MAX>
constexpr int VECTORS = 3;
template <int MAX>
constexpr int PANEL_COLS = 4;
template <int MAX>
constexpr int STRETCH = 2;

#if defined(QK_VNNI)
constexpr bool SIGNED_BYTES = false;
constexpr int LIMITED = 255;
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
inline Sums fused(Sums a, Sums b, Sums c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }

struct Counts {
    __m512i v;
};
inline Sums floats(Counts a) { return {_mm512_cvtepi32_ps(a.v)}; }
inline Sums with_bits(Counts a) { return {_mm512_castsi512_ps(a.v)}; }
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
inline Counts add(Counts a, Counts b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline Counts times(Counts a, Counts b) { return {_mm512_mullo_epi32(a.v, b.v)}; }
inline Counts low_of(Counts pair) { return {_mm512_srai_epi32(_mm512_slli_epi32(pair.v, 16), 16)}; }
inline Counts high_of(Counts pair) { return {_mm512_srai_epi32(pair.v, 16)}; }

struct Words {
    __m512i v;
};
inline Words load_words(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
inline void store_words(uint8_t* p, Words a) { _mm512_storeu_si512(p, a.v); }
inline Words set_words(uint8_t x) { return {_mm512_set1_epi8(static_cast<char>(x))}; }
inline void store_counts(int32_t* p, Counts a) { _mm512_storeu_si512(p, a.v); }
inline Words operator|(Words a, Words b) { return {_mm512_or_si512(a.v, b.v)}; }
inline Words operator^(Words a, Words b) { return {_mm512_xor_si512(a.v, b.v)}; }
inline Counts operator|(Counts a, Counts b) { return {_mm512_or_si512(a.v, b.v)}; }
template <int FROM, int TO, int MASK>
inline Words field(Words a) {
    if constexpr (FROM > TO) a.v = _mm512_srli_epi16(a.v, FROM - TO);
    if constexpr (FROM < TO) a.v = _mm512_slli_epi16(a.v, TO - FROM);
    return {_mm512_and_si512(a.v, _mm512_set1_epi8(static_cast<char>(MASK << TO)))};
}
inline Words look_up(const uint8_t (&table)[16], Words index) {
    return {_mm512_shuffle_epi8(_mm512_broadcast_i32x4(load_16(table)), index.v)};
}
template <int FROM, int TO, int MASK>
inline Counts bits(Words a) {
    const __m512i moved = FROM < TO ? _mm512_slli_epi32(a.v, TO - FROM) : _mm512_srli_epi32(a.v, FROM - TO);
    return {_mm512_and_si512(moved, _mm512_set1_epi32(MASK << TO))};
}
// Byte i of a lane from the byte of it that `places` has at i; 0 where that is 128.
inline __m512i lane_bytes(__m512i a, uint32_t places) {
    const int p = static_cast<int>(places);
    constexpr int NEXT = 0x04040404;  // 128 stays above 127
    return _mm512_shuffle_epi8(a, _mm512_broadcast_i32x4(_mm_setr_epi32(p, p + NEXT, p + 2 * NEXT, p + 3 * NEXT)));
}
inline Words sixteens_of_rows(Words bits, int k) {
    const __m512i spread = lane_bytes(bits.v, static_cast<uint32_t>(k / 2) * 0x01010101u);
    const __m512i bit = _mm512_set1_epi32(k % 2 ? static_cast<int>(0x80402010u) : 0x08040201);
    return {_mm512_maskz_set1_epi8(_mm512_test_epi8_mask(spread, bit), 16)};
}
template <int P>
inline Counts pair_of(Words a) {
    return {lane_bytes(a.v, 0x80018000u + P * 0x00020002u)};
}
template <int P>
inline Counts signed_pair_of(Words a) {
    return {_mm512_srai_epi16(lane_bytes(a.v, 0x01800080u + P * 0x02000200u), 8)};
}
inline Counts pairs_less_32(Counts a) { return {_mm512_sub_epi16(a.v, _mm512_set1_epi16(32))}; }
inline Sums row_halves(const uint8_t* p) { return {_mm512_cvtph_ps(load_32(p))}; }
inline Sums row_powers(const uint8_t* p) {
    const __m512i e = _mm512_cvtepu8_epi32(load_16(p));
    const __m512i normal = _mm512_slli_epi32(_mm512_sub_epi32(e, _mm512_set1_epi32(1)), 23);
    const __mmask16 small = _mm512_cmplt_epu32_mask(e, _mm512_set1_epi32(2));
    return {_mm512_castsi512_ps(_mm512_mask_sllv_epi32(normal, small, _mm512_set1_epi32(0x00200000), e))};
}
inline Sums low_halves(Words a) { return {_mm512_cvtph_ps(_mm512_cvtepi32_epi16(a.v))}; }
inline Sums high_halves(Words a) { return {_mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(a.v, 16)))}; }

#if defined(QK_VNNI)
template <int MAX, int COLS>
struct RowDots {
    __m512i all;
    void start(int32_t from) { all = _mm512_set1_epi32(from); }
    void add(int, Words codes, const uint8_t* x) {
        int32_t four;
        std::memcpy(&four, x, 4);
        all = _mm512_dpbusd_epi32(all, codes.v, _mm512_set1_epi32(four));
    }
    Counts total(int) const { return {all}; }
};

// Sums come back in registers: a compiler that has inlined much in a file may stop before this.
template <int MAX, int COLS, int STEPS, int V>
[[gnu::always_inline]] inline void dots(const uint8_t* tile, const uint8_t* x, const int32_t* start,
                                        Counts (&r)[COLS][V]) {
    __m512i s[COLS][V];
    for (int c = 0; c < COLS; c++)
        for (int v = 0; v < V; v++) s[c][v] = _mm512_set1_epi32(start[c]);
#pragma GCC unroll 8
    for (int k = 0; k < STEPS; k++) {
        __m512i w[V];
        for (int v = 0; v < V; v++) w[v] = _mm512_loadu_si512(tile + (k * V + v) * 64);
#pragma GCC unroll 16
        for (int c = 0; c < COLS; c++) {
            int32_t four;
            std::memcpy(&four, x + 4 * (k * COLS + c), 4);
            const __m512i xc = _mm512_set1_epi32(four);
            for (int v = 0; v < V; v++) s[c][v] = _mm512_dpbusd_epi32(s[c][v], w[v], xc);
        }
    }
    for (int c = 0; c < COLS; c++)
        for (int v = 0; v < V; v++) r[c][v].v = s[c][v];
}

inline Counts scale_of_dots(Counts scale) { return scale; }
template <int MAX, int COLS, int STEPS, int V>
[[gnu::always_inline]] inline void add_scaled_dots(const uint8_t* tile, const uint8_t* x, const int32_t* start,
                                                   const Counts (&scale)[V], Counts (&total)[COLS][V]) {
    Counts r[COLS][V];
    dots<MAX, COLS, STEPS>(tile, x, start, r);
    for (int c = 0; c < COLS; c++)
        for (int v = 0; v < V; v++) total[c][v] = add(total[c][v], times(r[c][v], scale[v]));
}

#else
inline Counts load_codes(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
inline Counts byte_products(Counts u8, Counts s8) { return {_mm512_maddubs_epi16(u8.v, s8.v)}; }
inline Counts either(Counts a, Counts b) { return {_mm512_xor_si512(a.v, b.v)}; }
inline Counts add_words(Counts a, Counts b) { return {_mm512_add_epi16(a.v, b.v)}; }
inline Counts pair_products(Counts a, Counts b) { return {_mm512_madd_epi16(a.v, b.v)}; }
inline Counts widened_pairs(Counts a) { return {_mm512_madd_epi16(a.v, _mm512_set1_epi16(1))}; }
inline Counts scale_of_dots(Counts scale) {  // in both halves
    return {_mm512_mask_blend_epi16(0xaaaaaaaau, scale.v, _mm512_slli_epi32(scale.v, 16))};
}
#endif

}  // namespace QK_TIER
}  // namespace quantkit

#if !defined(QK_VNNI)
#include "simd/dot_maddubs.h"
#endif
