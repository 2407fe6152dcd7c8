// q5_k: 5.5 bits a weight, 256 per super-block, 32 per sub-block. Layout: f16 d, f16 dmin, scales and mins as q4_k,
// fifth bits (bit j of byte i: element i of sub-block j), nibbles as q4_k; x = d * scale * q - dmin * min. Bound of the
// plain candidate: |e| <= half of d * scale, plus half of dmin, plus 31 halves of d (scale rounded).
#pragma once
#include "codec/q4_k.h"

namespace quantkit {
namespace QK_TIER {

struct q5_k {
    static constexpr int N = 256, BYTES = 176;

    template <class W>
    static void encode(const Batch<N>& x, W w, uint8_t* const* out) {
        auto a = search_affine<32, 8, 31, 63>(x, w);
        I q[N], b[32], high[32];
        find_codes<32, 8, 31>(x, w, a, q);
        store_u16(f16_bits(a.d), out, 0);
        store_u16(f16_bits(a.dmin), out, 2);
        pack_scales(a.scale, a.min, b);
        b[12] = b[13] = b[14] = b[15] = set1i(0);  // overwritten by the high bits
        store_bytes(b, 16, out, 4);
        for (I& h : high) h = set1i(0);
        const I nibble = set1i(15);
        for (int j = 0; j < 4; j++) {
            const I* p = q + 64 * j;
            for (int i = 0; i < 32; i++) {
                b[i] = (p[i] & nibble) | shl<4>(p[i + 32] & nibble);
                high[i] = shr<2>(high[i]) | shl<6>(shr<4>(p[i])) | shl<7>(shr<4>(p[i + 32]));
            }
            store_bytes(b, 32, out, 48 + 32 * j);
        }
        store_bytes(high, 32, out, 16);
    }

    static void decode(const uint8_t* in, float* out) {
        const float d = f16_to_f32(read_u16(in)), dmin = f16_to_f32(read_u16(in + 2));
        for (int j = 0; j < 8; j++) {
            int sc, mn;
            unpack_scale(in + 4, j, sc, mn);
            const F scale = set1(d * static_cast<float>(sc)), min = set1(dmin * static_cast<float>(mn));
            const I shift = set1i(4 * (j & 1)), bit = set1i(j);
            for (int i = 0; i < 32; i += L) {
                const I low = shr(load_u8(in + 48 + 16 * (j & ~1) + i), shift) & set1i(15);
                const I high = shr(load_u8(in + 16 + i), bit) & set1i(1);
                store(out + 32 * j + i, scale * to_float(low | shl<4>(high)) - min);
            }
        }
    }
};

}  // namespace QK_TIER
}  // namespace quantkit
