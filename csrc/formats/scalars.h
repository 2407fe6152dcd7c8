// f16, bf16 and fp8 scalars, by integer arithmetic: the oracle of every tier's conversions.
#pragma once
#include <cstdint>
#include <cstring>

namespace quantkit {

inline uint32_t f32_bits(float x) {
    uint32_t u;
    std::memcpy(&u, &x, 4);
    return u;
}
inline float f32_from_bits(uint32_t u) {
    float x;
    std::memcpy(&x, &u, 4);
    return x;
}

// Without a branch, so that loops over it become vectors.
inline float f16_to_f32(uint16_t h) {
    const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16, exponent = (h >> 10) & 31u, mantissa = h & 1023u;
    const uint32_t normal = ((exponent + 112u) << 23) | (mantissa << 13);
    // mantissa * 2^-24, exact in f32
    const uint32_t subnormal = f32_bits(static_cast<float>(static_cast<int32_t>(mantissa)) * 5.9604644775390625e-8f);
    // infinity, or a NaN, which comes out quiet, as the hardware's conversion makes it
    const uint32_t special = 0x7f800000u | (mantissa << 13) | (mantissa ? 0x400000u : 0u);
    return f32_from_bits(sign | (exponent == 0 ? subnormal : exponent == 31 ? special : normal));
}

// Rounds to nearest, ties to even, as the hardware does.
inline uint16_t f32_to_f16(float x) {
    const uint32_t u = f32_bits(x), sign = (u >> 16) & 0x8000u, a = u & 0x7fffffffu;
    if (a > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u | ((a >> 13) & 0x3ffu));
    if (a >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65520 and more round to infinity
    if (a < 0x38800000u) {  // below 2^-14: adding 0.5 aligns the unit of the sum with 2^-24
        return static_cast<uint16_t>(sign | (f32_bits(f32_from_bits(a) + 0.5f) - 0x3f000000u));
    }
    return static_cast<uint16_t>(sign | ((a - 0x38000000u + 0xfffu + ((a >> 13) & 1u)) >> 13));
}

inline float bf16_to_f32(uint16_t h) { return f32_from_bits(static_cast<uint32_t>(h) << 16); }
inline uint16_t f32_to_bf16(float x) {  // finite x
    const uint32_t u = f32_bits(x);
    return static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

// OCP FP8 E4M3 ("fn": no infinity, 0x7f and 0xff are NaN).
inline float f8_e4m3_to_f32(uint8_t b) {
    const uint32_t sign = static_cast<uint32_t>(b & 0x80u) << 24, exponent = (b >> 3) & 15u, mantissa = b & 7u;
    if (exponent == 15 && mantissa == 7) return f32_from_bits(sign | 0x7fc00000u);
    if (exponent == 0) return f32_from_bits(f32_bits(static_cast<float>(mantissa) * 0.001953125f) | sign);
    return f32_from_bits(sign | ((exponent + 120u) << 23) | (mantissa << 20));
}

// 2^(e - 128): what mxfp4's codes, doubled, are multiplied by.
inline float half_of_e8m0(uint32_t e) { return f32_from_bits(e < 2 ? 0x00200000u << e : (e - 1) << 23); }

}  // namespace quantkit
