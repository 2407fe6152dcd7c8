// Codes of two neighbouring blocks in one wide register, for tiers that have them. Where a layout has no short way, the
// blocks are read one by one.
#pragma once
#include "matmul/super_readers.h"

namespace quantkit {
namespace QK_TIER {

template <int J, class R>
inline Pair pair_of(R, const uint8_t* p) {
    return join(R::template codes<J>(p), R::template codes<J + 1>(p));
}
template <int J>
inline Pair pair_of(q4_0_reader, const uint8_t* p) {
    return nibbles(p + 18 * J + 2, p + 18 * J + 20);
}
template <int J>
inline Pair pair_of(q4_1_reader, const uint8_t* p) {
    return nibbles(p + 20 * J + 4, p + 20 * J + 24);
}
template <int J>
inline Pair pair_of(q8_0_reader, const uint8_t* p) {
    return join(load_bytes(p + 34 * J + 2), load_bytes(p + 34 * J + 36)) ^ set_pair_bytes(128);
}
template <int J>
inline Pair pair_of(iq4_nl_reader, const uint8_t* p) {
    return look_up(NONLINEAR, nibbles(p + 18 * J + 2, p + 18 * J + 20));
}
template <int J>
inline Pair pair_of(mxfp4_reader, const uint8_t* p) {
    return look_up(E2M1, nibbles(p + 17 * J + 1, p + 17 * J + 18));
}
template <int J>
inline Pair pair_of(iq4_xs_reader, const uint8_t* p) {
    return look_up(NONLINEAR, nibbles(p + 8 + 16 * J, p + 24 + 16 * J));
}
template <int J>
inline Pair pair_of(q4_k_reader, const uint8_t* p) {
    return fields<0, 4, 15>(load_twice(p + 16 + 16 * J));
}
template <int J>
inline Pair pair_of(q5_k_reader, const uint8_t* p) {
    return fields<0, 4, 15>(load_twice(p + 48 + 16 * J)) | fields<J - 4, J - 3, 16>(load_twice(p + 16));
}
template <int J>
inline Pair pair_of(q6_k_reader, const uint8_t* p) {
    constexpr int HALF = J / 4, G = J % 4;
    return fields<2 * G, 2 * G, 15>(load_pair(p + 64 * HALF)) |
           fields<2 * G - 4, 2 * G - 2, 48>(load_twice(p + 128 + 32 * HALF));
}
template <int J>
inline Pair pair_of(q2_k_reader, const uint8_t* p) {
    return fields<2 * (J % 4), 2 * (J % 4) + 2, 3>(load_twice(p + 16 + 32 * (J / 4)));
}
template <int J>
inline Pair pair_of(q3_k_reader, const uint8_t* p) {
    return fields<2 * (J % 4), 2 * (J % 4) + 2, 3>(load_twice(p + 32 + 32 * (J / 4))) |
           fields<J - 2, J - 1, 4>(load_twice(p));
}
template <int J>
inline Pair pair_of(Groups<8>, const uint8_t* p) {
    return load_pair(p + 32 * J);
}

}  // namespace QK_TIER
}  // namespace quantkit
