// Readers of the super-blocks of 256; see readers.h. The codecs draw the layouts.
#pragma once
#include "matmul/readers.h"

namespace quantkit {
namespace QK_TIER {

inline uint64_t join(uint32_t low, uint32_t high) { return low | static_cast<uint64_t>(high) << 32; }

struct q2_k_reader : Shape<3, 0, 2, true, 84> {
    template <int J>
    static Bytes codes(const uint8_t* p) {
        return field<2 * (J % 4), 0, 3>(load_bytes(p + 16 + 32 * (J / 4)));
    }
    static void scales(const Row& row, int64_t chunk, int, float* scale, float* min) {
        const uint8_t* p = row.codes + chunk * 84;
        const Floats d = set_floats(half(p + 80)), dmin = set_floats(half(p + 82));
        for (int k = 0; k < 2; k++) {
            uint64_t both;
            std::memcpy(&both, p + 8 * k, 8);
            store_floats(scale + 8 * k, d * floats_of_u8(both & 0x0f0f0f0f0f0f0f0fu));
            store_floats(min + 8 * k, dmin * floats_of_u8(both >> 4 & 0x0f0f0f0f0f0f0f0fu));
        }
    }
};

struct q3_k_reader : Shape<7, 4, 2, false, 110> {
    template <int J>
    static Bytes codes(const uint8_t* p) {
        return field<2 * (J % 4), 0, 3>(load_bytes(p + 32 + 32 * (J / 4))) | field<J, 2, 1>(load_bytes(p));
    }
    static void scales(const Row& row, int64_t chunk, int, float* scale, float*) {
        const uint8_t* p = row.codes + chunk * 110;
        const Floats d = set_floats(half(p + 108)), middle = set_floats(32);
        const uint32_t a = load_u32(p + 96), b = load_u32(p + 100), high = load_u32(p + 104);
        const auto six = [&](uint32_t nibble, int shift) {
            return (nibble & 0x0f0f0f0fu) | (high >> shift & 0x03030303u) << 4;
        };
        store_floats(scale, d * (floats_of_u8(join(six(a, 0), six(b, 2))) - middle));
        store_floats(scale + 8, d * (floats_of_u8(join(six(a >> 4, 4), six(b >> 4, 6))) - middle));
    }
};

// The twelve bytes of scales and mins of q4_k and q5_k, at offset 4 after d and dmin.
inline void scales_and_mins(const uint8_t* p, float* scale, float* min) {
    Floats scales, mins;
    sixes(p + 4, scales, mins);
    store_floats(scale, set_floats(half(p)) * scales);
    store_floats(min, set_floats(half(p + 2)) * mins);
}

struct q4_k_reader : Shape<15, 0, 1, true, 144> {
    template <int J>
    static Bytes codes(const uint8_t* p) {
        return field<4 * (J % 2), 0, 15>(load_bytes(p + 16 + 32 * (J / 2)));
    }
    static void scales(const Row& row, int64_t chunk, int, float* scale, float* min) {
        scales_and_mins(row.codes + chunk * 144, scale, min);
    }
};

struct q5_k_reader : Shape<31, 0, 1, true, 176> {
    template <int J>
    static Bytes codes(const uint8_t* p) {
        return field<4 * (J % 2), 0, 15>(load_bytes(p + 48 + 32 * (J / 2))) | field<J, 4, 1>(load_bytes(p + 16));
    }
    static void scales(const Row& row, int64_t chunk, int, float* scale, float* min) {
        scales_and_mins(row.codes + chunk * 176, scale, min);
    }
};

struct q6_k_reader : Shape<63, 32, 2, false, 210> {
    template <int J>
    static Bytes codes(const uint8_t* p) {
        constexpr int HALF = J / 4, G = J % 4;
        return field<4 * (G / 2), 0, 15>(load_bytes(p + 64 * HALF + 32 * (G % 2))) |
               field<2 * G, 4, 3>(load_bytes(p + 128 + 32 * HALF));
    }
    static void scales(const Row& row, int64_t chunk, int, float* scale, float*) {
        const uint8_t* p = row.codes + chunk * 210;
        const Floats d = set_floats(half(p + 208));
        for (int k = 0; k < 2; k++) {
            uint64_t s;
            std::memcpy(&s, p + 192 + 8 * k, 8);
            store_floats(scale + 8 * k, d * floats_of_i8(s));
        }
    }
};

struct iq4_xs_reader : Shape<255, 128, 1, false, 136> {
    template <int J>
    static Bytes codes(const uint8_t* p) {
        return look_up(NONLINEAR, nibbles(p + 8 + 16 * J));
    }
    static void scales(const Row& row, int64_t chunk, int, float* scale, float*) {
        const uint8_t* p = row.codes + chunk * 136;
        uint64_t low = load_u32(p + 4), high = load_u32(p) >> 16;  // spread to one a byte
        low = (low | low << 16) & 0x0000ffff0000ffffu;
        low = (low | low << 8) & 0x00ff00ff00ff00ffu;
        low = (low | low << 4) & 0x0f0f0f0f0f0f0f0fu;
        high = (high | high << 24) & 0x000000ff000000ffu;
        high = (high | high << 12) & 0x000f000f000f000fu;
        high = (high | high << 6) & 0x0303030303030303u;
        store_floats(scale, set_floats(half(p)) * (floats_of_u8(low | high << 4) - set_floats(32)));
    }
};

}  // namespace QK_TIER
}  // namespace quantkit
