// Codes of two neighbouring blocks in one wide register, for tiers that have them; where a layout has no short way, the
// blocks are read one by one. Where a block is 16 bytes of nibbles, those of four blocks are taken at once.
#pragma once
#include "matmul/super_readers.h"

namespace quantkit {
namespace QK_TIER {

template <int J, class R>
inline Pair pair_of(R, const uint8_t* p) {
    return join(R::template codes<J>(p), R::template codes<J + 1>(p));
}
template <int J>
inline Pair pair_of(q8_0_reader, const uint8_t* p) {
    return join(load_bytes(p + 34 * J + 2), load_bytes(p + 34 * J + 36)) ^ set_pair_bytes(128);
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

// The eight scales of a whole chunk, then its eight minima.
template <class R>
inline PairFloats scales_and_minima(R, const Row& row, int64_t chunk) {
    alignas(32) float scale[8], min[8];
    R::scales(row, chunk, 8, scale, min);
    return join(load_floats(scale), load_floats(min));
}
inline PairFloats scales_and_minima(q4_k_reader, const Row& row, int64_t chunk) {
    return scales_and_minima(row.codes + chunk * q4_k_reader::CHUNK_BYTES);
}
inline PairFloats scales_and_minima(q5_k_reader, const Row& row, int64_t chunk) {
    return scales_and_minima(row.codes + chunk * q5_k_reader::CHUNK_BYTES);
}

template <>
constexpr bool IN_FOURS<q4_0_reader> = true;
template <>
constexpr bool IN_FOURS<q4_1_reader> = true;
template <>
constexpr bool IN_FOURS<iq4_nl_reader> = true;
template <>
constexpr bool IN_FOURS<iq4_xs_reader> = true;
template <>
constexpr bool IN_FOURS<mxfp4_reader> = true;

// Low and high nibbles of blocks 4 K .. 4 K + 3.
inline void split(Pair bytes, Pair& low, Pair& high) {
    low = fields<0, 0, 15>(bytes);
    high = fields<4, 4, 15>(bytes);
}
template <int K>
inline void four_of(q4_0_reader, const uint8_t* p, Pair& low, Pair& high) {
    split(load_fours<18>(p + 72 * K + 2), low, high);
}
template <int K>
inline void four_of(q4_1_reader, const uint8_t* p, Pair& low, Pair& high) {
    split(load_fours<20>(p + 80 * K + 4), low, high);
}
template <int K>
inline void four_of(iq4_nl_reader, const uint8_t* p, Pair& low, Pair& high) {
    split(load_fours<18>(p + 72 * K + 2), low, high);
    low = look_up(NONLINEAR, low), high = look_up(NONLINEAR, high);
}
template <int K>
inline void four_of(iq4_xs_reader, const uint8_t* p, Pair& low, Pair& high) {
    split(load_pair(p + 8 + 64 * K), low, high);
    low = look_up(NONLINEAR, low), high = look_up(NONLINEAR, high);
}
template <int K>
inline void four_of(mxfp4_reader, const uint8_t* p, Pair& low, Pair& high) {
    split(load_fours<17>(p + 68 * K + 1), low, high);
    low = look_up(E2M1, low), high = look_up(E2M1, high);
}

}  // namespace QK_TIER
}  // namespace quantkit
