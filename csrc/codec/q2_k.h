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
        auto a = search_affine<16, 16, 3, 15>(x, w);
        I q[N], b[32];
        find_codes<16, 16, 3>(x, w, a, q);
        for (int j = 0; j < 16; j++) b[j] = to_int(a.scale[j]) | shl<4>(to_int(a.min[j]));
        store_bytes(b, 16, out, 0);
        for (int half = 0; half < 2; half++) {
            const I* p = q + 128 * half;
            for (int i = 0; i < 32; i++) b[i] = (p[i] | shl<2>(p[i + 32])) | (shl<4>(p[i + 64]) | shl<6>(p[i + 96]));
            store_bytes(b, 32, out, 16 + 32 * half);
        }
        store_u16(f16_bits(a.d), out, 80);
        store_u16(f16_bits(a.dmin), out, 82);
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
