// Integer dot products on 256 bits: see dot_maddubs.h.
#pragma once
#include "simd/bytes_avx2.h"

namespace quantkit {
namespace QK_TIER {

constexpr int LANES = 8, VECTOR_COLS = 3, REGISTERS = 16;
// Signed codes can be operands from the tile, while x takes two loads: fewer rows of x, more of weights.
template <int MAX>
constexpr int VECTORS = MAX > 127 ? 4 : 2;
template <int MAX>
constexpr int PANEL_COLS = MAX > 127 ? 2 : 4;
template <int MAX>
constexpr int STRETCH = MAX > 127 ? 1 : 2;  // 8 KB of codes

inline Ints widened_words(__m256i a) { return {_mm256_madd_epi16(a, _mm256_set1_epi16(1))}; }

using Sums = Floats;
inline Sums load_sums(const float* p) { return load_floats(p); }
inline void store_sums(float* p, Sums a) { store_floats(p, a); }
inline Sums set_sums(float x) { return set_floats(x); }

inline Sums fused(Sums a, Sums b, Sums c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }

using Counts = Ints;
inline Sums with_bits(Counts a) { return {_mm256_castsi256_ps(a.v)}; }
inline Counts load_counts(const int32_t* p) { return load_ints(p); }
inline Counts set_counts(int32_t x) { return {_mm256_set1_epi32(x)}; }
template <int SHIFT>
inline Counts halves_of(Counts low, Counts high) {
    return {_mm256_blend_epi16(_mm256_srli_epi32(low.v, SHIFT), _mm256_slli_epi32(high.v, 16 - SHIFT), 0xaa)};
}
inline Counts add_halves(Counts total, Counts a, Counts b) {
    return {_mm256_add_epi32(total.v, _mm256_madd_epi16(a.v, b.v))};
}

inline Counts times(Counts a, Counts b) { return {_mm256_mullo_epi32(a.v, b.v)}; }
inline Counts low_of(Counts pair) { return {_mm256_srai_epi32(_mm256_slli_epi32(pair.v, 16), 16)}; }
inline Counts high_of(Counts pair) { return {_mm256_srai_epi32(pair.v, 16)}; }
inline Counts scale_of_dots(Counts scale) {  // in both halves
    return {_mm256_blend_epi16(scale.v, _mm256_slli_epi32(scale.v, 16), 0xaa)};
}

using Words = Bytes;
inline Words load_words(const uint8_t* p) { return load_bytes(p); }
inline void store_words(uint8_t* p, Words a) { store_bytes(p, a); }
inline Words set_words(uint8_t x) { return set_bytes(x); }
inline void store_counts(int32_t* p, Counts a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a.v); }
inline Counts operator|(Counts a, Counts b) { return {_mm256_or_si256(a.v, b.v)}; }
template <int FROM, int TO, int MASK>
inline Counts bits(Words a) {
    const __m256i moved = FROM < TO ? _mm256_slli_epi32(a.v, TO - FROM) : _mm256_srli_epi32(a.v, FROM - TO);
    return {_mm256_and_si256(moved, _mm256_set1_epi32(MASK << TO))};
}
// Byte i of a lane from the byte of it that `places` has at i; 0 where that is 128.
inline __m256i lane_bytes(__m256i a, uint32_t places) {
    const int p = static_cast<int>(places);
    constexpr int NEXT = 0x04040404;  // 128 stays above 127
    return _mm256_shuffle_epi8(
        a, _mm256_setr_epi32(p, p + NEXT, p + 2 * NEXT, p + 3 * NEXT, p, p + NEXT, p + 2 * NEXT, p + 3 * NEXT));
}
inline Words sixteens_of_rows(Words bits, int k) {
    const __m256i spread = lane_bytes(bits.v, static_cast<uint32_t>(k / 2) * 0x01010101u);
    const __m256i bit = _mm256_set1_epi32(k % 2 ? static_cast<int>(0x80402010u) : 0x08040201);
    return {_mm256_and_si256(_mm256_cmpeq_epi8(_mm256_and_si256(spread, bit), bit), _mm256_set1_epi8(16))};
}
template <int P>
inline Counts pair_of(Words a) {
    return {lane_bytes(a.v, 0x80018000u + P * 0x00020002u)};
}
template <int P>
inline Counts signed_pair_of(Words a) {
    return {_mm256_srai_epi16(lane_bytes(a.v, 0x01800080u + P * 0x02000200u), 8)};
}
inline Counts pairs_less_32(Counts a) { return {_mm256_sub_epi16(a.v, _mm256_set1_epi16(32))}; }
inline Sums row_halves(const uint8_t* p) { return {_mm256_cvtph_ps(load_16(p))}; }
inline Sums row_powers(const uint8_t* p) {
    const __m256i e = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
    const __m256i normal = _mm256_slli_epi32(_mm256_sub_epi32(e, _mm256_set1_epi32(1)), 23);
    const __m256i small = _mm256_sllv_epi32(_mm256_set1_epi32(0x00200000), e);
    return {_mm256_castsi256_ps(_mm256_blendv_epi8(normal, small, _mm256_cmpgt_epi32(_mm256_set1_epi32(2), e)))};
}
inline Sums halves_of_lanes(__m256i a) {
    return {_mm256_cvtph_ps(_mm_packus_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1)))};
}
inline Sums low_halves(Words a) { return halves_of_lanes(_mm256_and_si256(a.v, _mm256_set1_epi32(0xffff))); }
inline Sums high_halves(Words a) { return halves_of_lanes(_mm256_srli_epi32(a.v, 16)); }

inline Counts load_codes(const uint8_t* p) { return {load_32(p)}; }
inline Counts byte_products(Counts u8, Counts s8) { return {_mm256_maddubs_epi16(u8.v, s8.v)}; }
inline Counts either(Counts a, Counts b) { return {_mm256_xor_si256(a.v, b.v)}; }
inline Counts add_words(Counts a, Counts b) { return {_mm256_add_epi16(a.v, b.v)}; }
inline Counts pair_products(Counts a, Counts b) { return {_mm256_madd_epi16(a.v, b.v)}; }
inline Counts widened_pairs(Counts a) { return widened_words(a.v); }
inline Counts add(Counts a, Counts b) { return {_mm256_add_epi32(a.v, b.v)}; }

}  // namespace QK_TIER
}  // namespace quantkit

#include "simd/dot_maddubs.h"
