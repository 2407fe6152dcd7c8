// q4_1: 5 bits a weight, 32 per block. Layout: f16 d, f16 m, nibbles q[16] (element i low, i + 16 high); x = d * q + m.
// Plain bound (smallest and largest at the end codes): |e| <= d / 2, plus the rounding of m and 15 times that of d.
#pragma once
#include "codec/affine_block.h"

namespace quantkit {
namespace QK_TIER {

struct q4_1 {
    static constexpr int N = 32, BYTES = 20;

    template <class W>
    static void encode(const Batch<N>& x, W w, uint8_t* const* out) {
        const AffineBlock<15, N, W> b(x, w);
        store_u16(f16_bits(b.d), out, 0);
        store_u16(f16_bits(b.m), out, 2);
        store_nibbles(b.q, out, 4);
    }

    static void decode(const uint8_t* in, float* out) {
        const F d = set1(f16_to_f32(read_u16(in))), m = set1(f16_to_f32(read_u16(in + 2)));
        for (int i = 0; i < 16; i += L) {
            const I pair = load_u8(in + 4 + i);
            store(out + i, d * to_float(pair & set1i(15)) + m);
            store(out + i + 16, d * to_float(shr<4>(pair)) + m);
        }
    }
};

}  // namespace QK_TIER
}  // namespace quantkit
