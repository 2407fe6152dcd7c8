// q5_1: 6 bits a weight, 32 per block. Layout: f16 d, f16 m, u32 high bits (bit i for element i), nibbles q[16]
// (element i low, i + 16 high); x = d * q + m.
// Plain bound (smallest and largest at the end codes): |e| <= d / 2, plus the rounding of m and 31 times that of d.
#pragma once
#include "codec/affine_block.h"

namespace quantkit {
namespace QK_TIER {

struct q5_1 {
    static constexpr int N = 32, BYTES = 24;

    template <class W>
    static void encode(const Batch<N>& x, W w, uint8_t* const* out) {
        AffineBlock<31, N, W> b(x, w);
        I high = set1i(0);
        for (int i = N - 1; i >= 0; i--) {
            high = shl<1>(high) | shr<4>(b.q[i]);
            b.q[i] = b.q[i] & set1i(15);
        }
        store_u16(f16_bits(b.d), out, 0);
        store_u16(f16_bits(b.m), out, 2);
        store_u16(high, out, 4);
        store_u16(shr<16>(high), out, 6);
        store_nibbles(b.q, out, 8);
    }

    static void decode(const uint8_t* in, float* out) {
        const F d = set1(f16_to_f32(read_u16(in))), m = set1(f16_to_f32(read_u16(in + 2)));
        const I high = set1i(static_cast<int32_t>(read_u32(in + 4)));
        for (int i = 0; i < 16; i += L) {
            const I pair = load_u8(in + 8 + i), place = lanes() + set1i(i);
            const I low = (pair & set1i(15)) | shl<4>(shr(high, place) & set1i(1));
            const I upper = shr<4>(pair) | shl<4>(shr(high, place + set1i(16)) & set1i(1));
            store(out + i, d * to_float(low) + m);
            store(out + i + 16, d * to_float(upper) + m);
        }
    }
};

}  // namespace QK_TIER
}  // namespace quantkit
