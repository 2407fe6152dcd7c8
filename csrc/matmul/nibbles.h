// Formats of two codes a byte, as few rows of x take them: the bytes of two blocks at once, first their low codes, then
// their high ones. x lies so too.
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

// Of two blocks of x.
template <class R>
inline void order_two(int8_t* codes) {
    int8_t from[64];
    std::memcpy(from, codes, 64);
    for (int i = 0; i < 64; i++) {
        const int high = i / 32, block = i / 16 % 2, byte = i % 16;
        codes[i] = from[32 * block + (NIBBLES<R> == Nibbles::halves ? 16 * high + byte : 2 * byte + high)];
    }
}

// Bytes of blocks 2 K and 2 K + 1 of a chunk of a format whose blocks are SIZE bytes, the codes from FIRST on.
template <int SIZE, int FIRST, int K>
inline Bytes two_blocks(const uint8_t* p) {
    return load_two(p + 2 * K * SIZE + FIRST, p + (2 * K + 1) * SIZE + FIRST);
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
    return load_bytes(p + 32 * K);
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
