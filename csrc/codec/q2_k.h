// q2_k: 2.625 bits a weight, 256 per super-block, 16 per sub-block. Layout: 16 bytes of 4-bit scales (low) and mins
// (high), 2-bit q[256] in 64 bytes (elements i, i + 32, i + 64, i + 96 of a half share a byte), f16 d, f16 dmin;
// x = d * scale * q - dmin * min. Bound of the plain candidate: as q4_k, with 3 halves of d.
#pragma once
#include "codec/affine.h"

namespace quantkit {
namespace QK_TIER {

struct q2_k {
    static constexpr int N = 256, BYTES = 84;

    template <class W>
    static void encode(const Batch<N>& x, W w, uint8_t* const* out) {
        const auto a = search_affine<16, 16, 3, 15>(x, w);
        I b[32];
        for (int j = 0; j < 16; j++) b[j] = to_int(a.scale[j]) | shl<4>(to_int(a.min[j]));
        store_bytes(b, 16, out, 0);
        for (int half = 0; half < 2; half++) {
            for (I& v : b) v = set1i(0);
            for (int j = 0; j < 8; j++) {
                const int k = 8 * half + j;
                const F s = a.d * a.scale[k], m = a.dmin * a.min[k], inverse = invert(s);
                for (int i = 0; i < 16; i++) {
                    I& v = b[16 * (j & 1) + i];
                    v = shr<2>(v) | shl<6>(to_int(affine_code<3>(x[16 * k + i] + m, inverse)));
                }
            }
            store_bytes(b, 32, out, 16 + 32 * half);
        }
        const F up = stretch_affine<16, 16, 3>(x, w, a);
        store_u16(f16_bits(a.d * up), out, 80);
        store_u16(f16_bits(a.dmin * up), out, 82);
    }

    static void decode(const uint8_t* in, float* out) {
        const float d = f16_to_f32(read_u16(in + 80)), dmin = f16_to_f32(read_u16(in + 82));
        for (int j = 0; j < 16; j++) {
            const F scale = set1(d * static_cast<float>(in[j] & 15)), min = set1(dmin * static_cast<float>(in[j] >> 4));
            const uint8_t* q = in + 16 + 32 * (j / 8) + 16 * (j & 1);
            const I shift = set1i(2 * (j % 8 / 2));
            for (int i = 0; i < 16; i += L)
                store(out + 16 * j + i, scale * to_float(shr(load_u8(q + i), shift) & set1i(3)) - min);
        }
    }
};

}  // namespace QK_TIER
}  // namespace quantkit
