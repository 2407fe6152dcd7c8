// Integer dot products on 512 bits: with VNNI (QK_VNNI), whose sums are int32 and do not saturate, so that every code
// is a u8; without it as dot_avx2.h, which explains the bounds.
#pragma once
#include "simd/bytes_avx2.h"

namespace quantkit {
namespace QK_TIER {

constexpr int PANEL_ROWS = 48, PANEL_COLS = 4, VECTORS = 3, VECTOR_COLS = 3;

#define QK_PAIRS

#if defined(QK_VNNI)
constexpr bool SIGNED_BYTES = false;
#endif

template <int MAX>
inline Ints dot(Bytes codes, const int8_t* x) {
#if defined(QK_VNNI)
    return {_mm256_dpbusd_epi32(_mm256_setzero_si256(), codes.v, load_32(x))};
#else
    return dot_maddubs<MAX>(codes, x);
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
struct PairInts {
    __m512i v;
};
struct Words {
    uint16_t v[32];
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
// Where eight words at bytes at(i) lie in two loads, the second of which is `second` bytes behind the first.
template <class At>
constexpr Words words_from(At at, int second) {
    Words w = {};
    for (int i = 0; i < 8; i++) w.v[i] = static_cast<uint16_t>(at(i) <= 62 ? at(i) / 2 : 32 + (at(i) - second) / 2);
    return w;
}

template <int STRIDE>
inline Floats eight_halves(const uint8_t* p) {
    static_assert(STRIDE % 2 == 0, "words");
    if constexpr (3 * STRIDE + 2 <= 64) {
        constexpr int SECOND = 7 * STRIDE + 2 <= 128 ? 64 : 4 * STRIDE;
        alignas(64) static constexpr Words FROM = words_from([](int i) { return i * STRIDE; }, SECOND);
        const __m512i all =
            _mm512_permutex2var_epi16(_mm512_loadu_si512(p), _mm512_load_si512(FROM.v), _mm512_loadu_si512(p + SECOND));
        return {_mm256_cvtph_ps(_mm512_castsi512_si128(all))};
    } else {
        // the second load of the last two begins earlier, lest it end behind the eighth block
        constexpr int EARLIER = 2 * STRIDE < 66 ? 66 - 2 * STRIDE : 0;
        alignas(64) static constexpr Words FROM =
            words_from([](int i) { return i % 2 * STRIDE + i / 2 % 2 * (64 + EARLIER); }, 64);
        const __m512i from = _mm512_load_si512(FROM.v);
        const auto four = [&](__mmask32 mask, const uint8_t* q) {
            const __m512i next = _mm512_loadu_si512(q + 2 * STRIDE - EARLIER);
            return _mm512_maskz_permutex2var_epi16(mask, _mm512_loadu_si512(q), from, next);
        };
        return {_mm256_cvtph_ps(_mm512_castsi512_si128(_mm512_or_si512(four(0x0f, p), four(0xf0, p + 4 * STRIDE))))};
    }
}

// Four times 16 bytes, STRIDE apart. Fewer and wider loads are slower where weights come from memory: they cross lines
// and pages.
template <int STRIDE>
inline Pair load_fours(const uint8_t* p) {
    const auto at = [&](int i) { return load_16(p + i * STRIDE); };
    __m512i r = _mm512_castsi128_si512(at(0));
    r = _mm512_mask_broadcast_i32x4(r, 0x00f0, at(1));
    r = _mm512_mask_broadcast_i32x4(r, 0x0f00, at(2));
    return {_mm512_mask_broadcast_i32x4(r, 0xf000, at(3))};
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

inline PairFloats floats(PairInts a) { return {_mm512_cvtepi32_ps(a.v)}; }
inline PairInts operator+(PairInts a, PairInts b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline PairInts load_pair_ints(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
inline PairFloats load_pair_floats(const float* p) { return {_mm512_loadu_ps(p)}; }
// A super-block that begins with d, dmin and those twelve bytes: d * scales, then dmin * minima.
inline PairFloats scales_and_minima(const uint8_t* p) {
    int32_t both;
    std::memcpy(&both, p, 4);
    const __m512i spread = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
    const __m512 d = _mm512_castps128_ps512(_mm_cvtph_ps(_mm_cvtsi32_si128(both)));
    const __m512 sixteen = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(six_bits(p + 4)));
    return {_mm512_mul_ps(_mm512_permutexvar_ps(spread, d), sixteen)};
}

// Scales 4 K .. 4 K + 3, each in four lanes.
template <int K>
inline PairFloats spread(PairFloats scales) {
    constexpr int A = 4 * K, B = A + 1, C = A + 2, D = A + 3;
    const __m512i from = _mm512_setr_epi32(A, A, A, A, B, B, B, B, C, C, C, C, D, D, D, D);
    return {_mm512_permutexvar_ps(from, scales.v)};
}
inline PairFloats join(Floats a, Floats b) { return {_mm512_insertf32x8(_mm512_castps256_ps512(a.v), b.v, 1)}; }

// dot() of both blocks.
template <int MAX>
inline PairInts dot(Pair codes, Pair x) {
#if defined(QK_VNNI)
    return {_mm512_dpbusd_epi32(_mm512_setzero_si512(), codes.v, x.v)};
#else
    __m512i xs = x.v;
    if constexpr (MAX > 127) {
        xs = _mm512_mask_sub_epi8(xs, _mm512_movepi8_mask(codes.v), _mm512_setzero_si512(), xs);
        codes.v = _mm512_abs_epi8(codes.v);
    }
    static_assert(2 * 127 * (MAX > 127 ? 128 : MAX) <= 32767, "an int16 overflows");
    return {_mm512_madd_epi16(_mm512_maddubs_epi16(codes.v, xs), _mm512_set1_epi16(1))};
#endif
}

// Of four blocks, lanes l and l + 4 added. In FOURS they lie in different pairs, otherwise in the halves of one.
template <int MAX, bool FOURS>
inline PairInts dot_both(Pair first, Pair x, Pair second, Pair y) {
    const PairInts a = dot<MAX>(first, x), b = dot<MAX>(second, y);
    if constexpr (FOURS)
        return a + b;
    else
        return {_mm512_add_epi32(_mm512_shuffle_i64x2(a.v, b.v, 0x88), _mm512_shuffle_i64x2(a.v, b.v, 0xdd))};
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
template <int MAX, int COLS, int STEPS>
inline void dots(const uint8_t* tile, const uint8_t* x, const int32_t* start, Counts (&r)[COLS][VECTORS]) {
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
