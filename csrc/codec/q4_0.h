// q4_0: 4.5 bits a weight, 32 per block. Layout: f16 d, nibbles q[16] (element i low, i + 16 high); x = d * (q - 8).
// The code range -8..7 is lopsided, so both signs of d are tried. Candidates: d = (signed largest) / -8 as stored, then
// a scan of scales around it, each with the least-squares d of its codes. Bound: |e| <= |d|.
#pragma once
#include "codec/symmetric.h"

namespace quantkit {
namespace QK_TIER {

struct q4_0 {
    static constexpr int N = 32, BYTES = 18;

    template <class W>
    static void encode(const Batch<N>& x, W w, uint8_t* const* out) {
        F q[N];
        const F d = search_symmetric<8, N>(x, w, q);
        I byte[N / 2];
        const F eight = set1(8.0f);
        for (int i = 0; i < N / 2; i++) byte[i] = to_int(q[i] + eight) | shl<4>(to_int(q[i + N / 2] + eight));
        store_u16(f16_bits(d), out, 0);
        store_bytes(byte, N / 2, out, 2);
    }

    static void decode(const uint8_t* in, float* out) {
        const float d = f16_to_f32(read_u16(in));
        for (int i = 0; i < 16; i++) {
            out[i] = d * static_cast<float>((in[2 + i] & 15) - 8);
            out[i + 16] = d * static_cast<float>((in[2 + i] >> 4) - 8);
        }
    }
};

}  // namespace QK_TIER
}  // namespace quantkit
