// Readers of the super-blocks of 256; see readers.h. The codecs draw the layouts. Their scales are whole numbers of
// eight bits times one float, and so are their minima; their codes are made of RUNS times 32 bytes, the first at FIRST.
//   wholes(chunk)   scales and minima
//   code<J>(at)     block J, where at(i) are the 32 bytes at i
//   panel_code<J>(k, at)   step k of block J of several rows, where at(run, step) are four bytes of each
#pragma once
#include "matmul/readers.h"

namespace quantkit {
namespace QK_TIER {

struct Wholes {
    uint64_t scale[2], min[2];  // int8, in the order of (sub-)blocks
    float d, dmin;
};

template <class R, int MAX, int OFFSET, int SUBS, bool MINS, int CHUNK_BYTES, int FIRST_, int RUNS_>
struct SuperShape : Shape<MAX, OFFSET, SUBS, MINS, CHUNK_BYTES> {
    static constexpr bool SUPER = true;
    static constexpr int FIRST = FIRST_, RUNS = RUNS_;
    static constexpr int OFFSET_BITS = OFFSET == 32 ? 5 : OFFSET == 4 ? 2 : 0;  // OFFSET is a power of two
    template <int J>
    static Bytes codes(const uint8_t* p) {
        return R::template code<J>([&](int i) { return load_bytes(p + i); });
    }
    template <int J, class At>
    static Bytes panel_code(int k, At at) {
        return R::template code<J>([&](int i) { return at((i - FIRST) / 32, k); });
    }
    static void scales(const Row& row, int64_t chunk, int, float* scale, float* min) {
        const Wholes from = R::wholes(row.codes + chunk * CHUNK_BYTES);
        for (int k = 0; k < SUBS; k++) {
            store_floats(scale + 8 * k, set_floats(from.d) * floats_of_i8(from.scale[k]));
            if (MINS) store_floats(min + 8 * k, set_floats(from.dmin) * floats_of_i8(from.min[k]));
        }
    }
};

inline uint64_t join(uint32_t low, uint32_t high) { return low | static_cast<uint64_t>(high) << 32; }

inline uint64_t load_u64(const uint8_t* p) {
    uint64_t x;
    std::memcpy(&x, p, 8);
    return x;
}

// Each byte, at most 63, less 32.
inline uint64_t less_32(uint64_t bytes) {
    constexpr uint64_t TOP = 0x8080808080808080u, HALF = 0x2020202020202020u;
    return ((bytes | TOP) - HALF) ^ TOP;
}

struct q2_k_reader : SuperShape<q2_k_reader, 3, 0, 2, true, 84, 16, 2> {
    template <int J, class At>
    static Bytes code(At at) {
        return field<2 * (J % 4), 0, 3>(at(16 + 32 * (J / 4)));
    }
    static Wholes wholes(const uint8_t* p) {
        constexpr uint64_t LOW = 0x0f0f0f0f0f0f0f0fu;
        const uint64_t a = load_u64(p), b = load_u64(p + 8);
        return {{a & LOW, b & LOW}, {a >> 4 & LOW, b >> 4 & LOW}, half(p + 80), half(p + 82)};
    }
};

struct q3_k_reader : SuperShape<q3_k_reader, 7, 4, 2, false, 110, 0, 3> {
    template <int J, class At>
    static Bytes code(At at) {
        return field<2 * (J % 4), 0, 3>(at(32 + 32 * (J / 4))) | field<J, 2, 1>(at(0));
    }
    static Wholes wholes(const uint8_t* p) {
        const uint32_t a = load_u32(p + 96), b = load_u32(p + 100), high = load_u32(p + 104);
        const auto six = [&](uint32_t nibble, int shift) {
            return (nibble & 0x0f0f0f0fu) | (high >> shift & 0x03030303u) << 4;
        };
        return {{less_32(join(six(a, 0), six(b, 2))), less_32(join(six(a >> 4, 4), six(b >> 4, 6)))},
                {},
                half(p + 108),
                0.0f};
    }
};

// d, dmin, and twelve bytes of scales and minima, of six bits each.
inline Wholes wholes_of_sixes(const uint8_t* p) {
    const uint32_t a = load_u32(p + 4), b = load_u32(p + 8), c = load_u32(p + 12);
    const auto last = [](uint32_t nibble, uint32_t high) { return (nibble & 0x0f0f0f0fu) | (high >> 2 & 0x30303030u); };
    return {{join(a & 0x3f3f3f3fu, last(c, a)), 0}, {join(b & 0x3f3f3f3fu, last(c >> 4, b)), 0}, half(p), half(p + 2)};
}

struct q4_k_reader : SuperShape<q4_k_reader, 15, 0, 1, true, 144, 16, 4> {
    template <int J, class At>
    static Bytes code(At at) {
        return field<4 * (J % 2), 0, 15>(at(16 + 32 * (J / 2)));
    }
    static Wholes wholes(const uint8_t* p) { return wholes_of_sixes(p); }
};

struct q5_k_reader : SuperShape<q5_k_reader, 31, 0, 1, true, 176, 16, 5> {
    template <int J, class At>
    static Bytes code(At at) {
        return field<4 * (J % 2), 0, 15>(at(48 + 32 * (J / 2))) | field<J, 4, 1>(at(16));
    }
    static Wholes wholes(const uint8_t* p) { return wholes_of_sixes(p); }
};

struct q6_k_reader : SuperShape<q6_k_reader, 63, 32, 2, false, 210, 0, 6> {
    template <int J, class At>
    static Bytes code(At at) {
        constexpr int HALF = J / 4, G = J % 4;
        return field<4 * (G / 2), 0, 15>(at(64 * HALF + 32 * (G % 2))) | field<2 * G, 4, 3>(at(128 + 32 * HALF));
    }
    static Wholes wholes(const uint8_t* p) { return {{load_u64(p + 192), load_u64(p + 200)}, {}, half(p + 208), 0.0f}; }
};

struct iq4_xs_reader : SuperShape<iq4_xs_reader, 255, 128, 1, false, 136, 8, 4> {
    template <int J>
    static Bytes codes(const uint8_t* p) {
        return look_up(NONLINEAR, nibbles(p + 8 + 16 * J));
    }
    template <int J, class At>
    static Bytes panel_code(int k, At at) {  // a block has the low nibbles of 16 bytes, then the high ones
        const Bytes four = at(J / 2, J % 2 * 4 + k % 4);
        return look_up(NONLINEAR, k < 4 ? field<0, 0, 15>(four) : field<4, 0, 15>(four));
    }
    static Wholes wholes(const uint8_t* p) {
        uint64_t low = load_u32(p + 4), high = load_u32(p) >> 16;  // spread to one a byte
        low = (low | low << 16) & 0x0000ffff0000ffffu;
        low = (low | low << 8) & 0x00ff00ff00ff00ffu;
        low = (low | low << 4) & 0x0f0f0f0f0f0f0f0fu;
        high = (high | high << 24) & 0x000000ff000000ffu;
        high = (high | high << 12) & 0x000f000f000f000fu;
        high = (high | high << 6) & 0x0303030303030303u;
        return {{less_32(low | high << 4), 0}, {}, half(p), 0.0f};
    }
};

}  // namespace QK_TIER
}  // namespace quantkit
