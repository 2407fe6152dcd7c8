// iq4_nl: 4.5 bits a weight, 32 per block. Layout: f16 d, nibbles q[16] (element i low, i + 16 high); x = d *
// VALUES[q]. Plain bound: |e| <= 14 |d|.
#pragma once
#include "codec/one_scale.h"

namespace quantkit {
namespace QK_TIER {

struct iq4_nl {
    static constexpr int N = 32, BYTES = 18;
    using Grid = Nonlinear;

    static Found search(const Batch<N>& x, Ones w) {
        static constexpr float STEPS[] = {-142, -137, -133,   -129.5f, -125.5f, -120.5f,
                                          -109, -103, 107.5f, 113,     117.5f,  123};
        return search_scale<Grid, STEPS>(x, w);
    }
    static Found search(const Batch<N>& x, Given w) {
        static constexpr float STEPS[] = {-179, -157.5f, -148.5f, -142, -137,   -132, -128, -124.5f, -119.5f, -109,
                                          -103, -85,     91.5f,   105,  110.5f, 115,  120,  126.5f,  135.5f,  151.5f};
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
            store(out + i, d * look_up(Grid::VALUES, pair & set1i(15)));
            store(out + i + 16, d * look_up(Grid::VALUES, shr<4>(pair)));
        }
    }
};

}  // namespace QK_TIER
}  // namespace quantkit
