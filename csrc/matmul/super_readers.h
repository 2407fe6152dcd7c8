// Readers of the super-blocks of 256; see readers.h. The codecs draw the layouts. Their scales are whole numbers of
// eight bits times one float, and so are their minima; their codes are made of RUNS times 32 bytes, the first at FIRST.
//   wholes(chunk)   scales and minima
//   code<J>(at)     block J, where at(i) are the 32 bytes at i
//   panel_code<J>(k, at)   step k of block J of several rows, where at(run, step) are four bytes of each
// and of LANES rows that are repacked, beside rows_code<J>(k, at) of readers.h:
//   rows_pairs(at, scales, mins)   two int16 in a lane: scales (and minima) of (sub-)blocks 0 and 1, 2 and 3 ..
//   rows_scales(odd, at)           what scales and what minima are multiplied by
#pragma once
#include "matmul/readers.h"

namespace quantkit {
namespace QK_TIER {

struct Wholes {
    Bytes scales;               // int8, sixteen, in the order of (sub-)blocks; or eight, and then their minima
    Floats d;                   // what scales are multiplied by, or in turn that and what minima are
    Bytes mins = set_bytes(0);  // int8: minima of sixteen sub-blocks
};

template <class R, int MAX, int OFFSET, int SUBS, bool MINS, int CHUNK_BYTES, int FIRST_, int RUNS_, int GROUPS_>
struct SuperShape : Shape<MAX, OFFSET, SUBS, MINS, CHUNK_BYTES> {
    static constexpr bool SUPER = true;
    static constexpr int FIRST = FIRST_, RUNS = RUNS_;
    static constexpr int GROUPS = GROUPS_;  // of runs that make the same blocks
    static constexpr int group_of(int run) { return run / (RUNS / GROUPS); }
    static constexpr int OFFSET_BITS = OFFSET == 32 ? 5 : OFFSET == 4 ? 2 : 0;  // OFFSET is a power of two
    template <int J, class At>
    static auto panel_code(int k, At at) {
        return R::template code<J>([&](int i) { return at((i - FIRST) / 32, k); });
    }
    template <int J, class At>
    static auto rows_code(int k, At at) {
        return R::template panel_code<J>(k, [&](int run, int step) { return at(FIRST / 4 + 8 * run + step); });
    }
};

// Four bytes of each row, as two pairs.
inline void put_pairs(Words four, Counts* to) { to[0] = pair_of<0>(four), to[1] = pair_of<1>(four); }

// Scales and minima of six bits, as sixes() reads them.
template <class R, int MAX, int CHUNK_BYTES, int RUNS, int GROUPS>
struct SixBitScales : SuperShape<R, MAX, 0, 1, true, CHUNK_BYTES, 16, RUNS, GROUPS> {
    static Wholes wholes(const uint8_t* p) { return {sixes(p), two_halves(p)}; }
    template <class At>
    static void rows_pairs(At at, Counts* scales, Counts* mins) {
        const Words a = at(1), b = at(2), last = at(3);
        put_pairs(field<0, 0, 63>(a), scales);
        put_pairs(field<0, 0, 15>(last) | field<6, 4, 3>(a), scales + 2);
        put_pairs(field<0, 0, 63>(b), mins);
        put_pairs(field<4, 0, 15>(last) | field<6, 4, 3>(b), mins + 2);
    }
    template <class At>
    static RowScales rows_scales(const uint8_t*, At at) {
        return {low_halves(at(0)), high_halves(at(0))};
    }
};

inline uint64_t join(uint32_t low, uint32_t high) { return low | static_cast<uint64_t>(high) << 32; }

inline uint64_t every_other(uint64_t bytes) {  // 0, 2 .. 6 of the result are bytes 0 .. 3
    bytes = ((bytes & 0xffffffffu) | bytes << 16) & 0x0000ffff0000ffffu;
    return (bytes | bytes << 8) & 0x00ff00ff00ff00ffu;
}

// Each byte, at most 63, less 32.
inline uint64_t less_32(uint64_t bytes) {
    constexpr uint64_t TOP = 0x8080808080808080u, HALF = 0x2020202020202020u;
    return ((bytes | TOP) - HALF) ^ TOP;
}

struct q2_k_reader : SuperShape<q2_k_reader, 3, 0, 2, true, 84, 16, 2, 2> {
    template <int J, class At>
    static auto code(At at) {
        return field<2 * (J % 4), 0, 3>(at(16 + 32 * (J / 4)));
    }
    static Wholes wholes(const uint8_t* p) {
        const Bytes both = load_two(p, p);
        return {field<0, 0, 15>(both), two_halves(p + 80), field<4, 0, 15>(both)};
    }
    template <class At>
    static void rows_pairs(At at, Counts* scales, Counts* mins) {
        for (int i = 0; i < 4; i++) {
            put_pairs(field<0, 0, 15>(at(i)), scales + 2 * i);
            put_pairs(field<4, 0, 15>(at(i)), mins + 2 * i);
        }
    }
    template <class At>
    static RowScales rows_scales(const uint8_t*, At at) {
        return {low_halves(at(20)), high_halves(at(20))};
    }
};

struct q3_k_reader : SuperShape<q3_k_reader, 7, 4, 2, false, 110, 0, 3, 1> {
    template <int J, class At>
    static auto code(At at) {
        return field<2 * (J % 4), 0, 3>(at(32 + 32 * (J / 4))) | field<J, 2, 1>(at(0));
    }
    static Wholes wholes(const uint8_t* p) {
        const uint32_t a = load_u32(p + 96), b = load_u32(p + 100), high = load_u32(p + 104);
        const auto six = [&](uint32_t nibble, int shift) {
            return (nibble & 0x0f0f0f0fu) | (high >> shift & 0x03030303u) << 4;
        };
        const uint64_t first = less_32(join(six(a, 0), six(b, 2))),
                       last = less_32(join(six(a >> 4, 4), six(b >> 4, 6)));
        return {two_words(first, last), same_halves(p + 108)};
    }
    template <class At>
    static void rows_pairs(At at, Counts* scales, Counts*) {
        const Words a = at(24), b = at(25), high = at(26);
        put_pairs(field<0, 0, 15>(a) | field<0, 4, 3>(high), scales);
        put_pairs(field<0, 0, 15>(b) | field<2, 4, 3>(high), scales + 2);
        put_pairs(field<4, 0, 15>(a) | field<4, 4, 3>(high), scales + 4);
        put_pairs(field<4, 0, 15>(b) | field<6, 4, 3>(high), scales + 6);
        for (int i = 0; i < 8; i++) scales[i] = pairs_less_32(scales[i]);
    }
    template <class At>
    static RowScales rows_scales(const uint8_t* odd, At) {
        return {row_halves(odd)};
    }
};

struct q4_k_reader : SixBitScales<q4_k_reader, 15, 144, 4, 4> {
    template <int J, class At>
    static auto code(At at) {
        return field<4 * (J % 2), 0, 15>(at(16 + 32 * (J / 2)));
    }
};

struct q5_k_reader : SixBitScales<q5_k_reader, 31, 176, 5, 1> {
    template <int J, class At>
    static auto code(At at) {
        return field<4 * (J % 2), 0, 15>(at(48 + 32 * (J / 2))) | field<J, 4, 1>(at(16));
    }
};

struct q6_k_reader : SuperShape<q6_k_reader, 63, 32, 2, false, 210, 0, 6, 2> {
    static constexpr int group_of(int run) { return run < 4 ? run / 2 : run - 4; }
    template <int J, class At>
    static auto code(At at) {
        constexpr int HALF = J / 4, G = J % 4;
        return field<4 * (G / 2), 0, 15>(at(64 * HALF + 32 * (G % 2))) | field<2 * G, 4, 3>(at(128 + 32 * HALF));
    }
    static Wholes wholes(const uint8_t* p) { return {load_two(p + 192, p + 192), same_halves(p + 208)}; }
    template <class At>
    static void rows_pairs(At at, Counts* scales, Counts*) {
        for (int i = 0; i < 8; i++)
            scales[i] = i % 2 ? signed_pair_of<1>(at(48 + i / 2)) : signed_pair_of<0>(at(48 + i / 2));
    }
    template <class At>
    static RowScales rows_scales(const uint8_t* odd, At) {
        return {row_halves(odd)};
    }
};

struct iq4_xs_reader : SuperShape<iq4_xs_reader, 255, 128, 1, false, 136, 8, 4, 4> {
    template <int J, class At>
    static auto panel_code(int k, At at) {  // a block has the low nibbles of 16 bytes, then the high ones
        const auto four = at(J / 2, J % 2 * 4 + k % 4);
        return look_up(NONLINEAR, k < 4 ? field<0, 0, 15>(four) : field<4, 0, 15>(four));
    }
    static void scales(const Row& row, int64_t chunk, int, float* scale, float*) {  // even blocks, then odd ones
        const uint8_t* p = row.codes + chunk * CHUNK_BYTES;
        store_floats(scale, same_halves(p) * floats_of_bytes(two_words(even_and_odd(p), 0)));
    }
    static Wholes wholes(const uint8_t* p) {
        const uint64_t all = even_and_odd(p);
        return {two_words(every_other(all) | every_other(all >> 32) << 8, 0), same_halves(p)};
    }
    static uint64_t even_and_odd(const uint8_t* p) {
        const uint32_t four = load_u32(p + 4), two = load_u32(p) >> 16;
        uint64_t high = join(two & 0x3333u, two >> 2 & 0x3333u);  // spread to one a byte
        high = (high | high << 8) & 0x00ff00ff00ff00ffu;
        high = (high | high << 4) & 0x0303030303030303u;
        return less_32(join(four & 0x0f0f0f0fu, four >> 4 & 0x0f0f0f0fu) | high << 4);
    }
    template <class At>
    static void rows_pairs(At at, Counts* scales, Counts*) {
        put_pair<0>(at, scales), put_pair<1>(at, scales), put_pair<2>(at, scales), put_pair<3>(at, scales);
    }
    template <class At>
    static RowScales rows_scales(const uint8_t*, At at) {
        return {low_halves(at(0))};
    }
    template <int P, class At>
    static void put_pair(At at, Counts* scales) {
        const Words high = at(0), low = at(1);
        const Counts four = bits<8 * P, 0, 15>(low) | bits<8 * P + 4, 16, 15>(low);
        scales[P] = pairs_less_32(four | bits<16 + 4 * P, 4, 3>(high) | bits<18 + 4 * P, 20, 3>(high));
    }
};

template <class Function>
static auto with_reader(const Weights& w, Function f) {
    switch (w.format) {
#define QK_FORMAT(name, ggml, elements, bytes) \
    case Format::name:                         \
        return f(name##_reader());
#include "formats/formats.def"
#undef QK_FORMAT
        default:
            return w.bits == 4 ? f(Groups<4>()) : f(Groups<8>());
    }
}

}  // namespace QK_TIER
}  // namespace quantkit
