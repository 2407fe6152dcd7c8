// iq4_nl: 4.5 bits a weight, 32 per block. Layout: f16 d, nibbles q[16] (element i low, i + 16 high); x = d *
// VALUES[q]. Plain bound: |e| <= 14 |d|.
#pragma once
#include "codec/one_scale.h"

namespace quantkit {
namespace QK_TIER {

struct iq4_nl {
    static constexpr int N = 32, BYTES = 18;

    template <class W>
    static void encode(const Batch<N>& x, W w, uint8_t* const* out) {
        static constexpr float STEPS[] = {-127, -121, -115, -109, -103, -133, -140, -97,
                                          113,  108,  103,  119,  98,   125,  131,  93};
        const F d = search_scale<Nonlinear>(x, w, STEPS);
        I q[N];
        find_codes<Nonlinear>(x, d, q);
        store_u16(f16_bits(d), out, 0);
        store_nibbles(q, out, 2);
    }

    static void decode(const uint8_t* in, float* out) {
        const float d = f16_to_f32(read_u16(in));
        for (int i = 0; i < 16; i++) {
            out[i] = d * Nonlinear::VALUES[in[2 + i] & 15];
            out[i + 16] = d * Nonlinear::VALUES[in[2 + i] >> 4];
        }
    }
};

}  // namespace QK_TIER
}  // namespace quantkit
