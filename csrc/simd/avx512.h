// Vocabulary, sixteen lanes: AVX-512 F, BW, VL and DQ. See scalar.h for the meaning of each word.
#pragma once
#include <immintrin.h>

#include "formats/scalars.h"

namespace quantkit {
namespace QK_TIER {

constexpr int L = 16;

struct F {
    __m512 v;
};
struct I {
    __m512i v;
};
struct M {
    __mmask16 v;
};

#define QK_FUSED  // products of many rows, in float_panel.h
constexpr int FLOAT_VECTORS = 3, FLOAT_COLUMNS = 8, FLOAT_CHUNK = 512;
inline F fused(F a, F b, F c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline F broadcast(const float* p) {
    F r = {_mm512_set1_ps(*p)};
#if defined(__GNUC__)
    __asm__("" : "+v"(r.v));  // once for all products, and not in each of them
#endif
    return r;
}
inline F set1(float x) { return {_mm512_set1_ps(x)}; }
inline F load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store(float* p, F a) { _mm512_storeu_ps(p, a.v); }
inline F operator+(F a, F b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F operator-(F a, F b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F operator*(F a, F b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F operator/(F a, F b) { return {_mm512_div_ps(a.v, b.v)}; }
inline F min(F a, F b) { return {_mm512_min_ps(a.v, b.v)}; }
inline F max(F a, F b) { return {_mm512_max_ps(a.v, b.v)}; }
inline F sqrt(F a) { return {_mm512_sqrt_ps(a.v)}; }
inline F abs(F a) { return {_mm512_andnot_ps(_mm512_set1_ps(-0.0f), a.v)}; }
inline F round(F a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
inline __m256i halves(F a) { return _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT); }
inline F f16_round(F a) { return {_mm512_cvtph_ps(halves(a))}; }
inline I f16_bits(F a) { return {_mm512_cvtepu16_epi32(halves(a))}; }

inline M operator<(F a, F b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
inline M operator<=(F a, F b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LE_OQ)}; }
inline M operator==(F a, F b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ)}; }
inline M operator&(M a, M b) { return {static_cast<__mmask16>(a.v & b.v)}; }
inline M operator|(M a, M b) { return {static_cast<__mmask16>(a.v | b.v)}; }
inline F select(M m, F a, F b) { return {_mm512_mask_blend_ps(m.v, b.v, a.v)}; }
inline I select(M m, I a, I b) { return {_mm512_mask_blend_epi32(m.v, b.v, a.v)}; }
inline bool any(M m) { return m.v != 0; }

inline I set1i(int32_t x) { return {_mm512_set1_epi32(x)}; }
inline I operator+(I a, I b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline I operator-(I a, I b) { return {_mm512_sub_epi32(a.v, b.v)}; }
inline I operator&(I a, I b) { return {_mm512_and_si512(a.v, b.v)}; }
inline I operator|(I a, I b) { return {_mm512_or_si512(a.v, b.v)}; }
inline I operator^(I a, I b) { return {_mm512_xor_si512(a.v, b.v)}; }
template <int N>
inline I shl(I a) {
    return {_mm512_slli_epi32(a.v, N)};
}
template <int N>
inline I shr(I a) {
    return {_mm512_srli_epi32(a.v, N)};
}
inline I shr(I a, I n) { return {_mm512_srlv_epi32(a.v, n.v)}; }
inline I lanes() { return {_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)}; }
inline I max(I a, I b) { return {_mm512_max_epi32(a.v, b.v)}; }
inline I min(I a, I b) { return {_mm512_min_epi32(a.v, b.v)}; }
inline M operator<(I a, I b) { return {_mm512_cmplt_epi32_mask(a.v, b.v)}; }
inline M operator==(I a, I b) { return {_mm512_cmpeq_epi32_mask(a.v, b.v)}; }
inline I to_int(F a) { return {_mm512_cvttps_epi32(a.v)}; }
inline F to_float(I a) { return {_mm512_cvtepi32_ps(a.v)}; }
inline I bits(F a) { return {_mm512_castps_si512(a.v)}; }
inline F from_bits(I a) { return {_mm512_castsi512_ps(a.v)}; }
inline void store(int32_t* p, I a) { _mm512_storeu_si512(p, a.v); }
inline F look_up(const float (&table)[16], I index) { return {_mm512_permutexvar_ps(index.v, _mm512_loadu_ps(table))}; }

inline __m128i load_sixteen(const uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
inline I load_u8(const uint8_t* p) { return {_mm512_cvtepu8_epi32(load_sixteen(p))}; }
inline I load_i8(const uint8_t* p) { return {_mm512_cvtepi8_epi32(load_sixteen(p))}; }
inline F load_f32(const void* p) { return {_mm512_loadu_ps(p)}; }
inline F load_f16(const void* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p)))}; }
inline F load_bf16(const void* p) {
    return {_mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(p))), 16))};
}
// Of two bf16 in a lane.
inline F low_bf16(F a) { return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(a.v), 16))}; }
inline F high_bf16(F a) {
    const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
    return {_mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(a.v), high))};
}
inline void store_f32(void* p, F a) { _mm512_storeu_ps(p, a.v); }
inline void store_f16(void* p, F a) { _mm256_storeu_si256(static_cast<__m256i*>(p), halves(a)); }
inline void store_bf16(void* p, F a) {
    const __m512i u = _mm512_castps_si512(a.v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    const __m512i r = _mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), odd);
    _mm256_storeu_si256(static_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_srli_epi32(r, 16)));
}

// Each group of four vectors becomes columns of four within its quarters, then the quarters change places.
inline void transpose(F (&r)[L]) {
    __m512 q[L];
    for (int i = 0; i < L; i += 4) {
        const __m512 a0 = _mm512_unpacklo_ps(r[i].v, r[i + 1].v), a1 = _mm512_unpackhi_ps(r[i].v, r[i + 1].v);
        const __m512 a2 = _mm512_unpacklo_ps(r[i + 2].v, r[i + 3].v), a3 = _mm512_unpackhi_ps(r[i + 2].v, r[i + 3].v);
        q[i] = _mm512_shuffle_ps(a0, a2, 0x44);
        q[i + 1] = _mm512_shuffle_ps(a0, a2, 0xee);
        q[i + 2] = _mm512_shuffle_ps(a1, a3, 0x44);
        q[i + 3] = _mm512_shuffle_ps(a1, a3, 0xee);
    }
    for (int k = 0; k < 4; k++) {  // quarter j of q[4 g + k] holds r[4 g ...], lane 4 j + k
        const __m512 low0 = _mm512_shuffle_f32x4(q[k], q[4 + k], 0x88),
                     low1 = _mm512_shuffle_f32x4(q[8 + k], q[12 + k], 0x88);
        const __m512 high0 = _mm512_shuffle_f32x4(q[k], q[4 + k], 0xdd),
                     high1 = _mm512_shuffle_f32x4(q[8 + k], q[12 + k], 0xdd);
        r[k].v = _mm512_shuffle_f32x4(low0, low1, 0x88);
        r[4 + k].v = _mm512_shuffle_f32x4(high0, high1, 0x88);
        r[8 + k].v = _mm512_shuffle_f32x4(low0, low1, 0xdd);
        r[12 + k].v = _mm512_shuffle_f32x4(high0, high1, 0xdd);
    }
}

// Four vectors of bytes in one: those of a lane lie side by side.
inline I join_bytes(const I* v) { return v[0] | shl<8>(v[1]) | (shl<16>(v[2]) | shl<24>(v[3])); }

// Calls put(quarter, its four lanes' 128 bits) for each quarter of a vector.
template <class Put>
inline void each_quarter(__m512i a, Put put) {
    put(0, _mm512_castsi512_si128(a));
    put(1, _mm512_extracti32x4_epi32(a, 1));
    put(2, _mm512_extracti32x4_epi32(a, 2));
    put(3, _mm512_extracti32x4_epi32(a, 3));
}

// Four words for each lane, transposed in quarters of four lanes. Two or one where no more are left.
inline void store_words(const I* v, int count, uint8_t* const* out, int offset) {
    int i = 0;
    for (; i + 4 <= count; i += 4) {
        const __m512i a0 = _mm512_unpacklo_epi32(v[i].v, v[i + 1].v), a1 = _mm512_unpackhi_epi32(v[i].v, v[i + 1].v);
        const __m512i a2 = _mm512_unpacklo_epi32(v[i + 2].v, v[i + 3].v),
                      a3 = _mm512_unpackhi_epi32(v[i + 2].v, v[i + 3].v);
        const __m512i lanes[4] = {_mm512_unpacklo_epi64(a0, a2), _mm512_unpackhi_epi64(a0, a2),
                                  _mm512_unpacklo_epi64(a1, a3), _mm512_unpackhi_epi64(a1, a3)};
        for (int k = 0; k < 4; k++)
            each_quarter(lanes[k], [&](int j, __m128i words) {
                _mm_storeu_si128(reinterpret_cast<__m128i*>(out[4 * j + k] + offset + 4 * i), words);
            });
    }
    if (i + 2 <= count) {
        const __m512i lanes[2] = {_mm512_unpacklo_epi32(v[i].v, v[i + 1].v), _mm512_unpackhi_epi32(v[i].v, v[i + 1].v)};
        for (int k = 0; k < 2; k++)
            each_quarter(lanes[k], [&](int j, __m128i words) {
                _mm_storel_epi64(reinterpret_cast<__m128i*>(out[4 * j + 2 * k] + offset + 4 * i), words);
                _mm_storel_epi64(reinterpret_cast<__m128i*>(out[4 * j + 2 * k + 1] + offset + 4 * i),
                                 _mm_unpackhi_epi64(words, words));
            });
        i += 2;
    }
    if (i < count) {
        int32_t words[L];
        store(words, v[i]);
        for (int l = 0; l < L; l++) std::memcpy(out[l] + offset + 4 * i, &words[l], 4);
    }
}

// Sixteen vectors at a time, eight where no more are left.
inline void store_bytes(const I* v, int count, uint8_t* const* out, int offset) {
    int i = 0;
    for (; i + 16 <= count; i += 16) {
        const I words[4] = {join_bytes(v + i), join_bytes(v + i + 4), join_bytes(v + i + 8), join_bytes(v + i + 12)};
        store_words(words, 4, out, offset + i);
    }
    if (i < count) {
        const I words[2] = {join_bytes(v + i), join_bytes(v + i + 4)};
        store_words(words, 2, out, offset + i);
    }
}

}  // namespace QK_TIER
}  // namespace quantkit
