// Words of the products on 32 bytes and 8 floats: AVX2 and F16C, shared by the wider tiers. See dot_scalar.h for
// meanings.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace quantkit {
namespace QK_TIER {

struct Bytes {
    __m256i v;
};
struct Floats {
    __m256 v;
};
struct Ints {
    __m256i v;
};

inline __m128i load_16(const uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
inline __m256i load_32(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline Bytes load_bytes(const uint8_t* p) { return {load_32(p)}; }
inline Bytes set_bytes(uint8_t x) { return {_mm256_set1_epi8(static_cast<char>(x))}; }
inline Bytes nibbles(const uint8_t* p) {
    const __m256i both = _mm256_broadcastsi128_si256(load_16(p));
    const __m256i shifted = _mm256_srlv_epi32(both, _mm256_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4));
    return {_mm256_and_si256(shifted, _mm256_set1_epi8(15))};
}
inline Bytes nibble_pairs(const uint8_t* p) {
    const __m256i x = _mm256_cvtepu8_epi16(load_16(p));
    return {_mm256_and_si256(_mm256_or_si256(x, _mm256_slli_epi16(x, 4)), _mm256_set1_epi8(15))};
}
template <int FROM, int TO, int MASK>
inline Bytes field(Bytes a) {
    if constexpr (FROM > TO) a.v = _mm256_srli_epi16(a.v, FROM - TO);
    if constexpr (FROM < TO) a.v = _mm256_slli_epi16(a.v, TO - FROM);
    return {_mm256_and_si256(a.v, _mm256_set1_epi8(static_cast<char>(MASK << TO)))};
}
inline Bytes sixteens(uint32_t bits) {
    const __m256i place = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const __m256i bit = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201u));
    const __m256i spread = _mm256_shuffle_epi8(_mm256_set1_epi32(static_cast<int32_t>(bits)), place);
    return {_mm256_and_si256(_mm256_cmpeq_epi8(_mm256_and_si256(spread, bit), bit), _mm256_set1_epi8(16))};
}
inline Bytes operator|(Bytes a, Bytes b) { return {_mm256_or_si256(a.v, b.v)}; }
inline Bytes operator^(Bytes a, Bytes b) { return {_mm256_xor_si256(a.v, b.v)}; }
inline Bytes look_up(const uint8_t (&table)[16], Bytes index) {
    return {_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(load_16(table)), index.v)};
}
inline void store_bytes(uint8_t* p, Bytes a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a.v); }
inline void store_transposed(const Bytes (&rows)[8], uint8_t* out, int64_t stride) {
    const auto lo = [](__m256i a, __m256i b) { return _mm256_unpacklo_epi32(a, b); };
    const auto hi = [](__m256i a, __m256i b) { return _mm256_unpackhi_epi32(a, b); };
    const __m256i a0 = lo(rows[0].v, rows[1].v), a1 = hi(rows[0].v, rows[1].v);
    const __m256i a2 = lo(rows[2].v, rows[3].v), a3 = hi(rows[2].v, rows[3].v);
    const __m256i a4 = lo(rows[4].v, rows[5].v), a5 = hi(rows[4].v, rows[5].v);
    const __m256i a6 = lo(rows[6].v, rows[7].v), a7 = hi(rows[6].v, rows[7].v);
    const __m256i b[8] = {_mm256_unpacklo_epi64(a0, a2), _mm256_unpackhi_epi64(a0, a2), _mm256_unpacklo_epi64(a1, a3),
                          _mm256_unpackhi_epi64(a1, a3), _mm256_unpacklo_epi64(a4, a6), _mm256_unpackhi_epi64(a4, a6),
                          _mm256_unpacklo_epi64(a5, a7), _mm256_unpackhi_epi64(a5, a7)};
    const auto put = [&](int k, __m256i v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + k * stride), v); };
    for (int k = 0; k < 4; k++) {
        put(k, _mm256_permute2x128_si256(b[k], b[k + 4], 0x20));
        put(k + 4, _mm256_permute2x128_si256(b[k], b[k + 4], 0x31));
    }
}

inline float half(const uint8_t* p) {
    uint16_t h;
    std::memcpy(&h, p, 2);
    return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(h)));
}
inline Floats set_floats(float x) { return {_mm256_set1_ps(x)}; }
inline Floats load_floats(const float* p) { return {_mm256_loadu_ps(p)}; }
inline void store_floats(float* p, Floats a) { _mm256_storeu_ps(p, a.v); }
inline Floats operator*(Floats a, Floats b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline Floats operator+(Floats a, Floats b) { return {_mm256_add_ps(a.v, b.v)}; }
inline Floats operator-(Floats a, Floats b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline Bytes two_words(uint64_t low, uint64_t high) {
    return {_mm256_castsi128_si256(_mm_set_epi64x(static_cast<int64_t>(high), static_cast<int64_t>(low)))};
}
inline Bytes widened(Bytes a) { return {_mm256_cvtepi8_epi16(_mm256_castsi256_si128(a.v))}; }
inline Bytes sixes(const uint8_t* p) {
    const auto both = [](int a, int b, int c, int d) { return _mm256_setr_epi32(a, b, c, d, a, b, c, d); };
    const __m256i all = _mm256_broadcastsi128_si256(load_16(p)), of_a = both(0, 2, 0, 2), of_c = both(0, 0, 0, 4);
    const __m256i six = both(0x3f3f3f3f, 0x30303030, 0x3f3f3f3f, 0x30303030), four = both(0, 0x0f0f0f0f, 0, 0x0f0f0f0f);
    const __m256i low = _mm256_and_si256(_mm256_srlv_epi32(_mm256_shuffle_epi32(all, 0xa5), of_a), six);
    const __m256i high = _mm256_and_si256(_mm256_srlv_epi32(_mm256_shuffle_epi32(all, 0xff), of_c), four);
    return {_mm256_or_si256(low, high)};
}
inline Floats floats_of_bytes(Bytes a) {
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm256_castsi256_si128(a.v)))};
}
// Each by a load of its own that has it where it belongs; with a stride of 18 two in a load.
template <int STRIDE>
inline Floats eight_halves(const uint8_t* p) {
    if constexpr (STRIDE == 18) {
        __m256i both = _mm256_blend_epi16(load_32(p), load_32(p + 32), 0x0c);
        both = _mm256_blend_epi16(both, load_32(p + 64), 0x30);
        both = _mm256_blend_epi16(both, load_32(p + 96), 0xc0);
        const __m128i even = _mm256_castsi256_si128(both), odd = _mm256_extracti128_si256(both, 1);
        return {_mm256_cvtph_ps(_mm_blend_epi16(even, odd, 0xaa))};
    }
    const auto at = [&](int i) { return load_16(p + (STRIDE - 2) * i); };
    const __m128i two = _mm_blend_epi16(at(0), at(1), 0x02), four = _mm_blend_epi16(at(2), at(3), 0x08);
    const __m128i six = _mm_blend_epi16(at(4), at(5), 0x20), eight = _mm_blend_epi16(at(6), at(7), 0x80);
    return {
        _mm256_cvtph_ps(_mm_blend_epi16(_mm_blend_epi16(two, four, 0x0c), _mm_blend_epi16(six, eight, 0xc0), 0xf0))};
}
inline Floats same_halves(const uint8_t* p) {
    int16_t h;
    std::memcpy(&h, p, 2);
    return {_mm256_cvtph_ps(_mm_set1_epi16(h))};
}
inline Floats two_halves(const uint8_t* p) {
    int32_t h;
    std::memcpy(&h, p, 4);
    return {_mm256_cvtph_ps(_mm_set1_epi32(h))};
}
inline Floats even(Floats a) { return {_mm256_moveldup_ps(a.v)}; }
inline Floats odd(Floats a) { return {_mm256_movehdup_ps(a.v)}; }
inline Floats some_halves(const uint8_t* p, int stride, int count) {
    alignas(16) uint16_t h[8] = {};
    for (int i = 0; i < 8; i++)
        if (i < count) std::memcpy(h + i, p + i * stride, 2);
    return {_mm256_cvtph_ps(_mm_load_si128(reinterpret_cast<const __m128i*>(h)))};
}
inline Floats each_of_group(const float* p, int shift) {
    if (shift == 0) return load_floats(p);
    if (shift == 1) {
        const __m256 four = _mm256_castps128_ps256(_mm_loadu_ps(p));
        return {_mm256_permutevar8x32_ps(four, _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3))};
    }
    return {_mm256_setr_m128(_mm_set1_ps(p[0]), _mm_set1_ps(p[shift == 2]))};
}
inline float sum(Floats a) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

inline Floats floats(Ints a) { return {_mm256_cvtepi32_ps(a.v)}; }
inline Ints operator+(Ints a, Ints b) { return {_mm256_add_epi32(a.v, b.v)}; }
inline Ints load_ints(const int32_t* p) { return {load_32(p)}; }
inline Ints operator-(Ints a, Ints b) { return {_mm256_sub_epi32(a.v, b.v)}; }
inline Ints set_ints(int32_t x) { return {_mm256_set1_epi32(x)}; }
template <int BY>
inline Ints times_two_to(Ints a) {
    return {_mm256_slli_epi32(a.v, BY)};
}

template <int MAX>
inline __m256i products(__m256i w, __m256i x) {
    if constexpr (MAX > 127) {
        return _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
    } else {
        static_assert(2 * 127 * MAX <= 32767, "an int16 overflows");
        return _mm256_maddubs_epi16(w, x);
    }
}
// The order of addition does not matter: all are whole numbers.
template <int MAX>
inline Ints add_dot(Ints to, Bytes codes, const int8_t* x) {
#if defined(QK_VNNI)
    return {_mm256_dpbusd_epi32(to.v, codes.v, load_32(x))};
#else
    return to + Ints{_mm256_madd_epi16(products<MAX>(codes.v, load_32(x)), _mm256_set1_epi16(1))};
#endif
}
template <int LARGEST>
inline Ints in_twos(Ints a, Ints b) {
    if constexpr (LARGEST <= 32767) return {_mm256_madd_epi16(_mm256_packs_epi32(a.v, b.v), _mm256_set1_epi16(1))};
    const __m256 one = _mm256_castsi256_ps(a.v), other = _mm256_castsi256_ps(b.v);  // hadd, which is slower by itself
    return Ints{_mm256_castps_si256(_mm256_shuffle_ps(one, other, 0x88))} +
           Ints{_mm256_castps_si256(_mm256_shuffle_ps(one, other, 0xdd))};
}
inline Ints halves_added(Ints a, Ints b) {
    return Ints{_mm256_permute2x128_si256(a.v, b.v, 0x20)} + Ints{_mm256_permute2x128_si256(a.v, b.v, 0x31)};
}
inline Ints dot_widened(Bytes a, const int16_t* x) { return {_mm256_madd_epi16(widened(a).v, load_32(x))}; }
inline Bytes load_two(const uint8_t* p, const uint8_t* q) {
    return {_mm256_inserti128_si256(_mm256_castsi128_si256(load_16(p)), load_16(q), 1)};
}
struct Scales {
    __m256i first, last;  // eight int16 in both halves, and with 16 scales the other eight; with 8 their bytes
};
template <int SUBS>
inline Scales scales_of(Bytes bytes) {
    if constexpr (SUBS == 1) return {bytes.v, bytes.v};
    const __m256i words = widened(bytes).v;
    return {_mm256_permute4x64_epi64(words, 0x44), _mm256_permute4x64_epi64(words, 0xee)};
}
// Scale A four times, then B, in the one half, and C and D in the other; int16.
template <int SUBS, int A, int B, int C, int D>
inline __m256i words_of(const Scales& scales) {
    constexpr auto four = [](int i) {  // of bytes: the byte, and one of zeros
        return SUBS == 1 ? static_cast<int64_t>(0x8000800080008000u + static_cast<uint64_t>(i) * 0x0001000100010001u)
                         : 0x0100010001000100 + i % 8 * 0x0202020202020202;
    };
    return _mm256_shuffle_epi8(A < 8 ? scales.first : scales.last,
                               _mm256_setr_epi64x(four(A), four(B), four(C), four(D)));
}
#if defined(QK_VNNI)
struct ScaledSums {
    Ints all = set_ints(0);
    Ints lanes() const { return all; }
};
template <int MAX, int SUBS, int K>
inline void add_scaled(ScaledSums& to, Bytes first, Bytes second, const int8_t* x, const Scales& scales) {
    static_assert(4 * 127 * MAX <= 32767, "an int16 overflows");
    const Ints a = add_dot<MAX>(set_ints(0), first, x), b = add_dot<MAX>(set_ints(0), second, x + 32);
    constexpr int A = 2 * K * SUBS, B = A + SUBS, NEXT = SUBS - 1;
    const __m256i words = words_of<SUBS, A, B, A + NEXT, B + NEXT>(scales);
    to.all.v = _mm256_dpwssd_epi32(to.all.v, _mm256_packs_epi32(a.v, b.v), words);
}
#else
struct ScaledSums {
    Ints even = set_ints(0), odd = set_ints(0);
    Ints lanes() const { return in_twos<INT32_MAX>(even, odd); }
};
template <int MAX, int SUBS, int K>
inline void add_scaled(ScaledSums& to, Bytes first, Bytes second, const int8_t* x, const Scales& scales) {
    constexpr int A = 2 * K * SUBS, B = A + SUBS, NEXT = SUBS - 1;
    const auto scaled = [&](Bytes codes, const int8_t* from, __m256i words) {
        return Ints{_mm256_madd_epi16(products<MAX>(codes.v, load_32(from)), words)};
    };
    to.even = to.even + scaled(first, x, words_of<SUBS, A, A, A + NEXT, A + NEXT>(scales));
    to.odd = to.odd + scaled(second, x + 32, words_of<SUBS, B, B, B + NEXT, B + NEXT>(scales));
}
#endif

// The compiler must not put it off: it would rather keep many products in memory than add each to a sum.
template <class V>
inline void computed(V& v) {
#if defined(__GNUC__)
    __asm__("" : "+v"(v));
#else
    (void)v;
#endif
}

// What lies at p is loaded anew: the compiler would rather keep it from one round of a loop to the next, and then has
// too few registers for the round.
inline void not_kept(float*& p) {
#if defined(__GNUC__)
    __asm__("" : "+r"(p));
#else
    (void)p;
#endif
}

template <int N>
inline uint32_t largest_magnitude_bits(const float* x) {
    const __m256i mask = _mm256_set1_epi32(0x7fffffff);
    __m256i m = _mm256_setzero_si256();
    for (int i = 0; i < N; i += 8) m = _mm256_max_epi32(m, _mm256_and_si256(load_32(x + i), mask));
    __m128i r = _mm_max_epi32(_mm256_castsi256_si128(m), _mm256_extracti128_si256(m, 1));
    r = _mm_max_epi32(r, _mm_shuffle_epi32(r, 0x4e));
    r = _mm_max_epi32(r, _mm_shuffle_epi32(r, 0xb1));
    return static_cast<uint32_t>(_mm_cvtsi128_si32(r));
}
inline void store_codes(const float* x, float inverse, int8_t* q) {
    const __m256 scale = _mm256_set1_ps(inverse);
    const auto at = [&](int i) { return _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i), scale)); };
    const __m256i p = _mm256_packs_epi16(_mm256_packs_epi32(at(0), at(8)), _mm256_packs_epi32(at(16), at(24)));
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(q), _mm256_permutevar8x32_epi32(p, order));
}
inline void store_sums(const int8_t* q, int32_t* out) {
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), load_32(q));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

}  // namespace QK_TIER
}  // namespace quantkit
