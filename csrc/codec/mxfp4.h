// mxfp4: 4.25 bits a weight, 32 per block. Layout: E8M0 e, nibbles q[16] (element i low, i + 16 high);
// x = 2^(e - 128) * TWICE[q], E2M1 values doubled. Plain e puts the largest magnitude in [4, 8) of the E2M1 values,
// whose largest is 6; the exponents above and below are tried too. Plain bound: |e| <= 2 * 2^(e - 127).
#pragma once
#include "codec/one_scale.h"

namespace quantkit {
namespace QK_TIER {

struct mxfp4 {
    static constexpr int N = 32, BYTES = 17;
    static constexpr float TWICE[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

    // The magnitude nearest to that of y among 0 .5 1 1.5 2 3 4 6: one bit after the leading one from 1 on.
    static F nearest(F magnitude) {
        const I octave = max(min(bits(magnitude) & set1i(0x7f800000), bits(set1(4.0f))), bits(set1(1.0f)));
        const F unit = from_bits(octave) * set1(4194304.0f);  // adding it leaves multiples of octave / 2
        return min((magnitude + unit) - unit, set1(6.0f));
    }

    template <class W>
    static void encode(const Batch<N>& x, W w, uint8_t* const* out) {
        // Errors are measured in units of the plain scale: powers of two, so exactly as decoded, and never out of
        // range. Above 252 the largest value would overflow.
        const I top = set1i(252), zero = set1i(0), one = set1i(1);
        const I plain = min(max(shr<23>(bits(x.max_abs)) - set1i(2), zero), top);
        const F unit = from_bits(shl<23>(set1i(253) - plain)) * set1(2.0f);
        F error[3] = {set1(0.0f), set1(0.0f), set1(0.0f)};
        for (int i = 0; i < N; i++) {
            const F m = abs(x[i] * unit);
            const F e[3] = {m - nearest(m), m - set1(2.0f) * nearest(set1(0.5f) * m),
                            m - set1(0.5f) * nearest(set1(2.0f) * m)};
            for (int k = 0; k < 3; k++) error[k] = error[k] + w[i] * e[k] * e[k];
        }
        const M above = error[1] < error[0] & plain < top;
        I e = select(above, plain + one, plain);
        const M below = error[2] < select(above, error[1], error[0]) & zero < plain;
        e = select(below, plain - one, e);
        const F inverse = from_bits(shl<23>(set1i(253) - e)) * set1(2.0f);
        I q[N];
        for (int i = 0; i < N; i++) {
            const F m = abs(x[i] * inverse);
            const I twice = to_int(nearest(m) * set1(2.0f));  // 0 1 2 3 4 6 8 12
            const I magnitude = min(min(twice, set1i(2) + shr<1>(twice)), set1i(7));
            q[i] = magnitude | (shr<28>(bits(x[i])) & set1i(8));
        }
        int32_t exponent[L];
        store(exponent, e);
        for (int l = 0; l < L; l++) out[l][0] = static_cast<uint8_t>(exponent[l]);
        store_nibbles(q, out, 1);
    }

    static void decode(const uint8_t* in, float* out) {
        const uint32_t e = in[0];
        const F d = set1(half_of_e8m0(e));
        for (int i = 0; i < 16; i += L) {
            const I pair = load_u8(in + 1 + i);
            store(out + i, d * look_up(TWICE, pair & set1i(15)));
            store(out + i + 16, d * look_up(TWICE, shr<4>(pair)));
        }
    }
};

}  // namespace QK_TIER
}  // namespace quantkit
