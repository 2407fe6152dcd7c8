// Integer dot products on 256 bits: see dot_maddubs.h.
#pragma once
#include "simd/bytes_avx2.h"

namespace quantkit {
namespace QK_TIER {

constexpr int PANEL_ROWS = 16, PANEL_COLS = 4, VECTORS = 2, VECTOR_COLS = 3, REGISTERS = 16;

inline Ints widened_words(__m256i a) { return {_mm256_madd_epi16(a, _mm256_set1_epi16(1))}; }

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
