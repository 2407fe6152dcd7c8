// q5_0: 5.5 bits a weight, 32 per block. Layout: f16 d, u32 high bits (bit i for element i), nibbles q[16] (element i
// low, i + 16 high); x = d * (q - 16). Plain bound: |e| <= |d|.
#pragma once
#include "codec/one_scale.h"

namespace quantkit {
namespace QK_TIER {

struct q5_0 {
    static constexpr int N = 32, BYTES = 22;
    using Grid = Uniform<16>;

    static Found search(const Batch<N>& x, Ones) {
        static constexpr float STEPS[] = {-16.7f, -16.4f, -16, -15.6f, -15, -14.1f};
        return search_quickly<Grid, STEPS>(x);
    }
    static Found search(const Batch<N>& x, Given w) {
        static constexpr float STEPS[] = {-18.4f, -17.9f, -17.5f, -17.2f, -16.8f, -16.5f, -16.2f, -16,
                                          -15.7f, -15.4f, -15.2f, -15,    -14.7f, -14.3f, -14,    -13.7f,
                                          -13.2f, -12.8f, -12.2f, -11.8f, -10.9f, 16.2f,  16.8f,  17.9f};
        return search_scale<Grid, STEPS>(x, w);
    }

    template <class W>
    static void encode(const Batch<N>& x, W w, uint8_t* const* out) {
        I q[N], nibble[N], high = set1i(0);
        store_u16(f16_bits(find_codes<Grid>(x, w, search(x, w), q)), out, 0);
        for (int i = N - 1; i >= 0; i--) {
            nibble[i] = q[i] & set1i(15);
            high = shl<1>(high) | shr<4>(q[i]);
        }
        store_u16(high, out, 2);
        store_u16(shr<16>(high), out, 4);
        store_nibbles(nibble, out, 6);
    }

    static void decode(const uint8_t* in, float* out) {
        const F d = set1(f16_to_f32(read_u16(in)));
        const I high = set1i(static_cast<int32_t>(read_u32(in + 2)));
        for (int i = 0; i < 16; i += L) {
            const I pair = load_u8(in + 6 + i), place = lanes() + set1i(i);
            const I low = (pair & set1i(15)) | shl<4>(shr(high, place) & set1i(1));
            const I upper = shr<4>(pair) | shl<4>(shr(high, place + set1i(16)) & set1i(1));
            store(out + i, d * to_float(low - set1i(16)));
            store(out + i + 16, d * to_float(upper - set1i(16)));
        }
    }
};

}  // namespace QK_TIER
}  // namespace quantkit
