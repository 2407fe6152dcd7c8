// q4_k: 4.5 bits a weight, 256 per super-block, 32 per sub-block. Layout: f16 d, f16 dmin, 12 bytes of 6-bit scales and
// mins, nibbles q[256] (of 64 elements, the first 32 low and the others high); x = d * scale * q - dmin * min.
// Bound of the plain candidate: |e| <= half of d * scale, plus half of dmin, plus 15 halves of d (scale rounded).
#pragma once
#include "codec/affine.h"

namespace quantkit {
namespace QK_TIER {

// Eight 6-bit scales and eight 6-bit mins in 12 bytes.
inline void pack_scales(const F* scale, const F* min, I* out) {
    for (int j = 0; j < 4; j++) {
        const I s = to_int(scale[j]), m = to_int(min[j]), s4 = to_int(scale[j + 4]), m4 = to_int(min[j + 4]);
        out[j] = s | shl<6>(shr<4>(s4));
        out[j + 4] = m | shl<6>(shr<4>(m4));
        out[j + 8] = (s4 & set1i(15)) | shl<4>(m4 & set1i(15));
    }
}

inline void unpack_scale(const uint8_t* in, int j, int& scale, int& min) {
    scale = j < 4 ? in[j] & 63 : (in[j + 4] & 15) | (in[j - 4] >> 6) << 4;
    min = j < 4 ? in[j + 4] & 63 : in[j + 4] >> 4 | (in[j] >> 6) << 4;
}

struct q4_k {
    static constexpr int N = 256, BYTES = 144;

    template <class W>
    static void encode(const Batch<N>& x, W w, uint8_t* const* out) {
        auto a = search_affine<32, 8, 15, 63>(x, w);
        I q[N], b[32] = {};
        find_codes<32, 8, 15>(x, w, a, q);
        store_u16(f16_bits(a.d), out, 0);
        store_u16(f16_bits(a.dmin), out, 2);
        pack_scales(a.scale, a.min, b);
        b[12] = b[13] = b[14] = b[15] = set1i(0);
        store_bytes(b, 16, out, 4);
        for (int j = 0; j < 4; j++) {
            const I* p = q + 64 * j;
            for (int i = 0; i < 32; i++) b[i] = p[i] | shl<4>(p[i + 32]);
            store_bytes(b, 32, out, 16 + 32 * j);
        }
    }

    static void decode(const uint8_t* in, float* out) {
        const float d = f16_to_f32(read_u16(in)), dmin = f16_to_f32(read_u16(in + 2));
        for (int j = 0; j < 8; j++) {
            int sc, mn;
            unpack_scale(in + 4, j, sc, mn);
            const F scale = set1(d * static_cast<float>(sc)), min = set1(dmin * static_cast<float>(mn));
            const I shift = set1i(4 * (j & 1));
            for (int i = 0; i < 32; i += L) {
                const I q = shr(load_u8(in + 16 + 16 * (j & ~1) + i), shift) & set1i(15);
                store(out + 32 * j + i, scale * to_float(q) - min);
            }
        }
    }
};

}  // namespace QK_TIER
}  // namespace quantkit
