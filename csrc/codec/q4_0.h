// q4_0: 4.5 bits a weight, 32 per block. Layout: f16 d, nibbles q[16] (element i low, i + 16 high); x = d * (q - 8).
// The code range -8..7 is lopsided, so both signs of d are tried. Plain bound: |e| <= |d|.
#pragma once
#include "codec/one_scale.h"

namespace quantkit {
namespace QK_TIER {

struct q4_0 {
    static constexpr int N = 32, BYTES = 18;
    using Grid = Uniform<8>;

    static Found search(const Batch<N>& x, Ones) {
        static constexpr float STEPS[] = {-8.45f, -8, -7.3f};
        return search_quickly<Grid, STEPS>(x);
    }
    static Found search(const Batch<N>& x, Given w) {
        static constexpr float STEPS[] = {-12.15f, -11,    -10.3f, -9.75f, -9.45f, -9.1f, -8.8f, -8.5f, -8.25f, -8,
                                          -7.75f,  -7.35f, -7.1f,  -6.8f,  -6.15f, -5.3f, 8.1f,  8.55f, 9.2f,   11.1f};
        return search_scale<Grid, STEPS>(x, w);
    }

    template <class W>
    static void encode(const Batch<N>& x, W w, uint8_t* const* out) {
        I q[N];
        store_u16(f16_bits(find_codes<Grid>(x, w, search(x, w), q)), out, 0);
        store_nibbles(q, out, 2);
    }

    static void decode(const uint8_t* in, float* out) {
        const F d = set1(f16_to_f32(read_u16(in)));
        for (int i = 0; i < 16; i += L) {
            const I pair = load_u8(in + 2 + i);
            store(out + i, d * to_float((pair & set1i(15)) - set1i(8)));
            store(out + i + 16, d * to_float(shr<4>(pair) - set1i(8)));
        }
    }
};

}  // namespace QK_TIER
}  // namespace quantkit
