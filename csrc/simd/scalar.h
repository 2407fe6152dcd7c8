// Vocabulary, one lane: the reading of every operation. Wider tiers give the same bits lane by lane.
#pragma once
#include <cmath>

#include "formats/scalars.h"

namespace quantkit {
namespace QK_TIER {

constexpr int L = 1;  // lanes

struct F {
    float v;
};
struct I {
    int32_t v;
};
struct M {
    bool v;
};

inline F set1(float x) { return {x}; }
inline F load(const float* p) { return {*p}; }
inline void store(float* p, F a) { *p = a.v; }
inline F operator+(F a, F b) { return {a.v + b.v}; }
inline F operator-(F a, F b) { return {a.v - b.v}; }
inline F operator*(F a, F b) { return {a.v * b.v}; }
inline F operator/(F a, F b) { return {a.v / b.v}; }
inline F min(F a, F b) {
    return {a.v < b.v ? a.v : b.v};
}  // the second operand where they are equal or unordered, as on x86
inline F max(F a, F b) { return {a.v > b.v ? a.v : b.v}; }
inline F sqrt(F a) { return {std::sqrt(a.v)}; }
inline F abs(F a) { return {f32_from_bits(f32_bits(a.v) & 0x7fffffffu)}; }
inline F round(F a) {  // to nearest, ties to even, keeping the sign of zero
    const float m = f32_from_bits(f32_bits(a.v) & 0x7fffffffu);
    if (!(m < 8388608.0f)) return a;
    return {f32_from_bits(f32_bits((m + 8388608.0f) - 8388608.0f) | (f32_bits(a.v) & 0x80000000u))};
}
inline F f16_round(F a) { return {f16_to_f32(f32_to_f16(a.v))}; }  // to the value that an f16 stores
inline I f16_bits(F a) { return {f32_to_f16(a.v)}; }

inline M operator<(F a, F b) { return {a.v < b.v}; }
inline M operator<=(F a, F b) { return {a.v <= b.v}; }
inline M operator==(F a, F b) { return {a.v == b.v}; }
inline M operator&(M a, M b) { return {a.v && b.v}; }
inline M operator|(M a, M b) { return {a.v || b.v}; }
inline F select(M m, F a, F b) { return m.v ? a : b; }
inline I select(M m, I a, I b) { return m.v ? a : b; }
inline bool any(M m) { return m.v; }

inline I set1i(int32_t x) { return {x}; }
inline I operator+(I a, I b) { return {a.v + b.v}; }
inline I operator-(I a, I b) { return {a.v - b.v}; }
inline I operator&(I a, I b) { return {a.v & b.v}; }
inline I operator|(I a, I b) { return {a.v | b.v}; }
inline I operator^(I a, I b) { return {a.v ^ b.v}; }
template <int N>
inline I shl(I a) {
    return {static_cast<int32_t>(static_cast<uint32_t>(a.v) << N)};
}
template <int N>
inline I shr(I a) {
    return {static_cast<int32_t>(static_cast<uint32_t>(a.v) >> N)};
}  // logical
inline I shr(I a, I n) { return {static_cast<int32_t>(static_cast<uint32_t>(a.v) >> n.v)}; }  // each lane by its own n
inline I lanes() { return {0}; }                                                              // 0, 1, .. L - 1
inline I max(I a, I b) { return {a.v > b.v ? a.v : b.v}; }
inline I min(I a, I b) { return {a.v < b.v ? a.v : b.v}; }
inline M operator<(I a, I b) { return {a.v < b.v}; }
inline M operator==(I a, I b) { return {a.v == b.v}; }
inline I to_int(F a) { return {static_cast<int32_t>(a.v)}; }  // a holds a whole number
inline F to_float(I a) { return {static_cast<float>(a.v)}; }
inline I bits(F a) { return {static_cast<int32_t>(f32_bits(a.v))}; }
inline F from_bits(I a) { return {f32_from_bits(static_cast<uint32_t>(a.v))}; }
inline void store(int32_t* p, I a) { *p = a.v; }
inline F look_up(const float (&table)[16], I index) { return {table[index.v]}; }  // index 0..15

// L bytes that lie side by side.
inline I load_u8(const uint8_t* p) { return {*p}; }
inline I load_i8(const uint8_t* p) { return {static_cast<int8_t>(*p)}; }

// L source scalars that lie side by side.
inline F load_f32(const void* p) {
    float x;
    std::memcpy(&x, p, 4);
    return {x};
}
inline F load_f16(const void* p) {
    uint16_t h;
    std::memcpy(&h, p, 2);
    return {f16_to_f32(h)};
}
inline F load_bf16(const void* p) {
    uint16_t h;
    std::memcpy(&h, p, 2);
    return {bf16_to_f32(h)};
}
inline void store_f32(void* p, F a) { std::memcpy(p, &a.v, 4); }
inline void store_f16(void* p, F a) {
    const uint16_t h = f32_to_f16(a.v);
    std::memcpy(p, &h, 2);
}
inline void store_bf16(void* p, F a) {
    const uint16_t h = f32_to_bf16(a.v);
    std::memcpy(p, &h, 2);
}

inline void transpose(F (&)[L]) {}  // r[i] lane j <-> r[j] lane i

// count (a multiple of 8) vectors of values 0..255 become count bytes in a row for each lane.
inline void store_bytes(const I* v, int count, uint8_t* const* out, int offset) {
    for (int i = 0; i < count; i++) out[0][offset + i] = static_cast<uint8_t>(v[i].v);
}

// count vectors become count words in a row for each lane.
inline void store_words(const I* v, int count, uint8_t* const* out, int offset) {
    for (int i = 0; i < count; i++) std::memcpy(out[0] + offset + 4 * i, &v[i].v, 4);
}

}  // namespace QK_TIER
}  // namespace quantkit
