// Vocabulary, eight lanes: AVX2 and F16C. See scalar.h for the meaning of each word.
#pragma once
#include <immintrin.h>

#include "formats/scalars.h"

namespace quantkit {
namespace QK_TIER {

constexpr int L = 8;

struct F {
    __m256 v;
};
struct I {
    __m256i v;
};
struct M {
    __m256 v;
};

#define QK_FUSED  // products of many rows, in float_panel.h
constexpr int FLOAT_VECTORS = 3, FLOAT_COLUMNS = 4, FLOAT_CHUNK = 256;
inline F fused(F a, F b, F c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline F broadcast(const float* p) { return {_mm256_broadcast_ss(p)}; }
inline F set1(float x) { return {_mm256_set1_ps(x)}; }
inline F load(const float* p) { return {_mm256_loadu_ps(p)}; }
inline void store(float* p, F a) { _mm256_storeu_ps(p, a.v); }
inline F operator+(F a, F b) { return {_mm256_add_ps(a.v, b.v)}; }
inline F operator-(F a, F b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline F operator*(F a, F b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline F operator/(F a, F b) { return {_mm256_div_ps(a.v, b.v)}; }
inline F min(F a, F b) { return {_mm256_min_ps(a.v, b.v)}; }
inline F max(F a, F b) { return {_mm256_max_ps(a.v, b.v)}; }
inline F sqrt(F a) { return {_mm256_sqrt_ps(a.v)}; }
inline F abs(F a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v)}; }
inline F round(F a) { return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
inline F f16_round(F a) { return {_mm256_cvtph_ps(_mm256_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT))}; }
inline I f16_bits(F a) { return {_mm256_cvtepu16_epi32(_mm256_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT))}; }

inline M operator<(F a, F b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ)}; }
inline M operator<=(F a, F b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_LE_OQ)}; }
inline M operator==(F a, F b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_EQ_OQ)}; }
inline M operator&(M a, M b) { return {_mm256_and_ps(a.v, b.v)}; }
inline M operator|(M a, M b) { return {_mm256_or_ps(a.v, b.v)}; }
inline F select(M m, F a, F b) { return {_mm256_blendv_ps(b.v, a.v, m.v)}; }
inline I select(M m, I a, I b) { return {_mm256_blendv_epi8(b.v, a.v, _mm256_castps_si256(m.v))}; }
inline bool any(M m) { return _mm256_movemask_ps(m.v) != 0; }

inline I set1i(int32_t x) { return {_mm256_set1_epi32(x)}; }
inline I operator+(I a, I b) { return {_mm256_add_epi32(a.v, b.v)}; }
inline I operator-(I a, I b) { return {_mm256_sub_epi32(a.v, b.v)}; }
inline I operator&(I a, I b) { return {_mm256_and_si256(a.v, b.v)}; }
inline I operator|(I a, I b) { return {_mm256_or_si256(a.v, b.v)}; }
inline I operator^(I a, I b) { return {_mm256_xor_si256(a.v, b.v)}; }
template <int N>
inline I shl(I a) {
    return {_mm256_slli_epi32(a.v, N)};
}
template <int N>
inline I shr(I a) {
    return {_mm256_srli_epi32(a.v, N)};
}
inline I shr(I a, I n) { return {_mm256_srlv_epi32(a.v, n.v)}; }
inline I lanes() { return {_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)}; }
inline I max(I a, I b) { return {_mm256_max_epi32(a.v, b.v)}; }
inline I min(I a, I b) { return {_mm256_min_epi32(a.v, b.v)}; }
inline M operator<(I a, I b) { return {_mm256_castsi256_ps(_mm256_cmpgt_epi32(b.v, a.v))}; }
inline M operator==(I a, I b) { return {_mm256_castsi256_ps(_mm256_cmpeq_epi32(a.v, b.v))}; }
inline I to_int(F a) { return {_mm256_cvttps_epi32(a.v)}; }
inline F to_float(I a) { return {_mm256_cvtepi32_ps(a.v)}; }
inline I bits(F a) { return {_mm256_castps_si256(a.v)}; }
inline F from_bits(I a) { return {_mm256_castsi256_ps(a.v)}; }
inline void store(int32_t* p, I a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a.v); }
inline F look_up(const float (&table)[16], I index) {
    const __m256 low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table), index.v);
    const __m256 high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table + 8), index.v);
    return {_mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(index.v, 28)))};
}

inline __m128i load_eight(const uint8_t* p) { return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)); }
inline I load_u8(const uint8_t* p) { return {_mm256_cvtepu8_epi32(load_eight(p))}; }
inline I load_i8(const uint8_t* p) { return {_mm256_cvtepi8_epi32(load_eight(p))}; }
inline F load_f32(const void* p) { return {_mm256_loadu_ps(static_cast<const float*>(p))}; }
inline F load_f16(const void* p) { return {_mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(p)))}; }
inline F load_bf16(const void* p) {
    return {_mm256_castsi256_ps(
        _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p))), 16))};
}
// Of two bf16 in a lane.
inline F low_bf16(F a) { return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(a.v), 16))}; }
inline F high_bf16(F a) { return {_mm256_and_ps(a.v, _mm256_castsi256_ps(_mm256_set1_epi32(-65536)))}; }
inline void store_f32(void* p, F a) { _mm256_storeu_ps(static_cast<float*>(p), a.v); }
inline void store_f16(void* p, F a) {
    _mm_storeu_si128(static_cast<__m128i*>(p), _mm256_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}
inline void store_bf16(void* p, F a) {
    const __m256i u = _mm256_castps_si256(a.v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    const __m256i r = _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7fff)), odd), 16);
    const __m256i p16 = _mm256_permute4x64_epi64(_mm256_packus_epi32(r, r), 0x08);
    _mm_storeu_si128(static_cast<__m128i*>(p), _mm256_castsi256_si128(p16));
}

inline void transpose(F (&r)[L]) {
    const __m256 a0 = _mm256_unpacklo_ps(r[0].v, r[1].v), a1 = _mm256_unpackhi_ps(r[0].v, r[1].v);
    const __m256 a2 = _mm256_unpacklo_ps(r[2].v, r[3].v), a3 = _mm256_unpackhi_ps(r[2].v, r[3].v);
    const __m256 a4 = _mm256_unpacklo_ps(r[4].v, r[5].v), a5 = _mm256_unpackhi_ps(r[4].v, r[5].v);
    const __m256 a6 = _mm256_unpacklo_ps(r[6].v, r[7].v), a7 = _mm256_unpackhi_ps(r[6].v, r[7].v);
    const __m256 b0 = _mm256_shuffle_ps(a0, a2, 0x44), b1 = _mm256_shuffle_ps(a0, a2, 0xee);
    const __m256 b2 = _mm256_shuffle_ps(a1, a3, 0x44), b3 = _mm256_shuffle_ps(a1, a3, 0xee);
    const __m256 b4 = _mm256_shuffle_ps(a4, a6, 0x44), b5 = _mm256_shuffle_ps(a4, a6, 0xee);
    const __m256 b6 = _mm256_shuffle_ps(a5, a7, 0x44), b7 = _mm256_shuffle_ps(a5, a7, 0xee);
    r[0].v = _mm256_permute2f128_ps(b0, b4, 0x20);
    r[1].v = _mm256_permute2f128_ps(b1, b5, 0x20);
    r[2].v = _mm256_permute2f128_ps(b2, b6, 0x20);
    r[3].v = _mm256_permute2f128_ps(b3, b7, 0x20);
    r[4].v = _mm256_permute2f128_ps(b0, b4, 0x31);
    r[5].v = _mm256_permute2f128_ps(b1, b5, 0x31);
    r[6].v = _mm256_permute2f128_ps(b2, b6, 0x31);
    r[7].v = _mm256_permute2f128_ps(b3, b7, 0x31);
}

// Eight vectors at a time: pack to bytes, then an 8x8 byte transposition.
inline void store_bytes(const I* v, int count, uint8_t* const* out, int offset) {
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    for (int i = 0; i < count; i += 8) {
        const __m256i p0 =
            _mm256_packus_epi16(_mm256_packs_epi32(v[i].v, v[i + 1].v), _mm256_packs_epi32(v[i + 2].v, v[i + 3].v));
        const __m256i p1 =
            _mm256_packus_epi16(_mm256_packs_epi32(v[i + 4].v, v[i + 5].v), _mm256_packs_epi32(v[i + 6].v, v[i + 7].v));
        // dwords of p: v0[0..3] v1[0..3] v2[0..3] v3[0..3] | v0[4..7] ...; order puts rows of eight bytes side by side
        const __m256i q0 = _mm256_permutevar8x32_epi32(p0, order), q1 = _mm256_permutevar8x32_epi32(p1, order);
        const __m128i a = _mm256_castsi256_si128(q0), b = _mm256_extracti128_si256(q0, 1);  // rows 0,1 and 2,3
        const __m128i c = _mm256_castsi256_si128(q1), d = _mm256_extracti128_si256(q1, 1);  // rows 4,5 and 6,7
        const __m128i t0 = _mm_unpacklo_epi8(a, _mm_srli_si128(a, 8)), t1 = _mm_unpacklo_epi8(b, _mm_srli_si128(b, 8));
        const __m128i t2 = _mm_unpacklo_epi8(c, _mm_srli_si128(c, 8)), t3 = _mm_unpacklo_epi8(d, _mm_srli_si128(d, 8));
        const __m128i u0 = _mm_unpacklo_epi16(t0, t1), u1 = _mm_unpackhi_epi16(t0, t1);
        const __m128i u2 = _mm_unpacklo_epi16(t2, t3), u3 = _mm_unpackhi_epi16(t2, t3);
        const __m128i w[4] = {_mm_unpacklo_epi32(u0, u2), _mm_unpackhi_epi32(u0, u2), _mm_unpacklo_epi32(u1, u3),
                              _mm_unpackhi_epi32(u1, u3)};
        for (int k = 0; k < 4; k++) {
            _mm_storel_epi64(reinterpret_cast<__m128i*>(out[2 * k] + offset + i), w[k]);
            _mm_storel_epi64(reinterpret_cast<__m128i*>(out[2 * k + 1] + offset + i), _mm_srli_si128(w[k], 8));
        }
    }
}

// Four words for each lane, transposed in halves of four lanes. Then one by one.
inline void store_words(const I* v, int count, uint8_t* const* out, int offset) {
    int i = 0;
    for (; i + 4 <= count; i += 4) {
        const __m256i a0 = _mm256_unpacklo_epi32(v[i].v, v[i + 1].v), a1 = _mm256_unpackhi_epi32(v[i].v, v[i + 1].v);
        const __m256i a2 = _mm256_unpacklo_epi32(v[i + 2].v, v[i + 3].v),
                      a3 = _mm256_unpackhi_epi32(v[i + 2].v, v[i + 3].v);
        const __m256i lanes[4] = {_mm256_unpacklo_epi64(a0, a2), _mm256_unpackhi_epi64(a0, a2),
                                  _mm256_unpacklo_epi64(a1, a3), _mm256_unpackhi_epi64(a1, a3)};
        for (int k = 0; k < 4; k++) {
            _mm_storeu_si128(reinterpret_cast<__m128i*>(out[k] + offset + 4 * i), _mm256_castsi256_si128(lanes[k]));
            _mm_storeu_si128(reinterpret_cast<__m128i*>(out[4 + k] + offset + 4 * i),
                             _mm256_extracti128_si256(lanes[k], 1));
        }
    }
    for (; i < count; i++) {
        int32_t words[L];
        store(words, v[i]);
        for (int l = 0; l < L; l++) std::memcpy(out[l] + offset + 4 * i, &words[l], 4);
    }
}

}  // namespace QK_TIER
}  // namespace quantkit
