// Integer dot products without VNNI. maddubs adds two products u8 * s8 in an int16 that saturates, so codes up to 63
// are u8 and added up only RUN times before they are widened; above that, codes are signed (|w| <= 128) and x takes
// their sign: |x| <= 127, and 2 * 128 * 127 = 32512 fits.
#pragma once
#include "simd/bytes_avx2.h"

namespace quantkit {
namespace QK_TIER {

constexpr bool SIGNED_BYTES = true;  // codes above 127 are stored minus 128
constexpr int PANEL_ROWS = 16, PANEL_COLS = 4, VECTORS = 2, VECTOR_COLS = 3;

// Sums of two products that an int16 holds: a power of two, at most 8 (a block of 32 has no more).
template <int MAX>
constexpr int run_length() {
    int run = 8;
    while (run * 2 * 127 * MAX > 32767) run /= 2;
    return run;
}

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

template <int MAX, int COLS, int STEPS>
inline void dots(const uint8_t* tile, const uint8_t* x, const int32_t* start, Counts (&r)[COLS][VECTORS]) {
    constexpr int RUN = MAX > 127 ? 1 : run_length<MAX>() < STEPS ? run_length<MAX>() : STEPS;
    static_assert(RUN * 2 * 127 * (MAX > 127 ? 128 : MAX) <= 32767, "an int16 overflows");
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i s[COLS][VECTORS], p[COLS][VECTORS];
#pragma GCC unroll 8
    for (int k = 0; k < STEPS; k++) {
        __m256i w[VECTORS];
        for (int v = 0; v < VECTORS; v++) w[v] = load_32(tile + (k * VECTORS + v) * 32);
#pragma GCC unroll 8
        for (int c = 0; c < COLS; c++) {
            int32_t four;
            std::memcpy(&four, x + 4 * (k * COLS + c), 4);
            const __m256i xc = _mm256_set1_epi32(four);
            for (int v = 0; v < VECTORS; v++) {
                const __m256i two = products<MAX>(w[v], xc);
                p[c][v] = k % RUN ? _mm256_add_epi16(p[c][v], two) : two;
                if (k % RUN == RUN - 1) {
                    const __m256i wide = _mm256_madd_epi16(p[c][v], ones);
                    s[c][v] = _mm256_add_epi32(k < RUN ? _mm256_set1_epi32(start[c]) : s[c][v], wide);
                }
            }
        }
    }
    for (int c = 0; c < COLS; c++)
        for (int v = 0; v < VECTORS; v++) r[c][v].v = s[c][v];
}

}  // namespace QK_TIER
}  // namespace quantkit
