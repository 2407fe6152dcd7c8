// Formats of two codes a byte, as few rows of x take them: the bytes of two blocks of a chunk at once, first their low
// codes, then their high ones. x lies so too.
#pragma once
#include "matmul/super_readers.h"

namespace quantkit {
namespace QK_TIER {

enum class Nibbles {
    none,
    halves,  // byte i of a block has codes i and i + 16
    pairs,   // codes 2 i and 2 i + 1
};

template <class R>
constexpr Nibbles NIBBLES = Nibbles::none;
template <>
constexpr Nibbles NIBBLES<q4_0_reader> = Nibbles::halves;
template <>
constexpr Nibbles NIBBLES<q4_1_reader> = Nibbles::halves;
template <>
constexpr Nibbles NIBBLES<iq4_nl_reader> = Nibbles::halves;
template <>
constexpr Nibbles NIBBLES<iq4_xs_reader> = Nibbles::halves;
template <>
constexpr Nibbles NIBBLES<mxfp4_reader> = Nibbles::halves;
template <>
constexpr Nibbles NIBBLES<Groups<4>> = Nibbles::pairs;

template <class R>
constexpr bool IN_TWOS = NIBBLES<R> != Nibbles::none;

// The lane of a block's sums. Blocks K and K + 4 are taken together, but if blocks lie side by side 2 K and 2 K + 1.
template <class R>
constexpr int lane_of(int block) {
    return block;
}
template <>
constexpr int lane_of<iq4_xs_reader>(int block) {
    return block % 2 * 4 + block / 2;
}

// A chunk of x.
template <class R>
inline void order_twos(int8_t* codes) {
    int8_t from[256];
    std::memcpy(from, codes, 256);
    for (int block = 0; block < 8; block++) {
        const int8_t* block_codes = from + 32 * block;
        int8_t* low = codes + lane_of<R>(block) % 4 * 64 + lane_of<R>(block) / 4 * 16;
        for (int i = 0; i < 16; i++) {
            low[i] = block_codes[NIBBLES<R> == Nibbles::halves ? i : 2 * i];
            low[i + 32] = block_codes[NIBBLES<R> == Nibbles::halves ? i + 16 : 2 * i + 1];
        }
    }
}

// Of a format whose blocks are SIZE bytes, the codes from FIRST on.
template <int SIZE, int FIRST, int K>
inline Bytes two_blocks(const uint8_t* p) {
    return load_two(p + K * SIZE + FIRST, p + (K + 4) * SIZE + FIRST);
}
template <int K>
inline Bytes two_of(q4_0_reader, const uint8_t* p) {
    return two_blocks<18, 2, K>(p);
}
template <int K>
inline Bytes two_of(q4_1_reader, const uint8_t* p) {
    return two_blocks<20, 4, K>(p);
}
template <int K>
inline Bytes two_of(iq4_nl_reader, const uint8_t* p) {
    return two_blocks<18, 2, K>(p);
}
template <int K>
inline Bytes two_of(iq4_xs_reader, const uint8_t* p) {
    return load_bytes(p + 8 + 32 * K);
}
template <int K>
inline Bytes two_of(mxfp4_reader, const uint8_t* p) {
    return two_blocks<17, 1, K>(p);
}
template <int K>
inline Bytes two_of(Groups<4>, const uint8_t* p) {
    return two_blocks<16, 0, K>(p);
}

// Codes of nibbles.
template <class R>
inline Bytes codes_of_nibbles(R, Bytes nibbles) {
    return nibbles;
}
inline Bytes codes_of_nibbles(iq4_nl_reader, Bytes nibbles) { return look_up(NONLINEAR, nibbles); }
inline Bytes codes_of_nibbles(iq4_xs_reader, Bytes nibbles) { return look_up(NONLINEAR, nibbles); }
inline Bytes codes_of_nibbles(mxfp4_reader, Bytes nibbles) { return look_up(E2M1, nibbles); }

}  // namespace QK_TIER
}  // namespace quantkit
