// q8_0: 8.5 bits a weight, 32 per block. Layout: f16 d, int8 q[32]; x = d * q.
// Candidates: d = max|x| / 127 rounded to f16, and the least-squares d of its codes. Bound: |e| <= |d| / 2 + the
// rounding of d.
#pragma once
#include "codec/search.h"

namespace quantkit {
namespace QK_TIER {

struct q8_0 {
    static constexpr int N = 32, BYTES = 34;

    template <class W>
    static void encode(const Batch<N>& x, W w, uint8_t* const* out) {
        const F zero = set1(0.0f), top = set1(127.0f), bottom = set1(-127.0f), one = set1(1.0f);
        const F d0 = f16_round(x.max_abs / top);
        const F inverse0 = one / select(d0 == zero, one, d0);
        F xq = zero, qq = zero, e0 = zero;
        for (int i = 0; i < N; i++) {
            const F q = max(min(round(x[i] * inverse0), top), bottom), wq = w[i] * q, e = x[i] - d0 * q;
            xq = xq + wq * x[i];
            qq = qq + wq * q;
            e0 = e0 + w[i] * e * e;
        }
        F d1 = f16_round(xq / select(qq == zero, one, qq));
        d1 = select(zero < d1, d1, d0);
        const F inverse1 = one / select(d1 == zero, one, d1);
        F e1 = zero;
        for (int i = 0; i < N; i++) {
            const F q = max(min(round(x[i] * inverse1), top), bottom), e = x[i] - d1 * q;
            e1 = e1 + w[i] * e * e;
        }
        const M better = e1 < e0;
        const F d = select(better, d1, d0), inverse = select(better, inverse1, inverse0);
        I q[N];
        const I byte = set1i(255);
        for (int i = 0; i < N; i++) q[i] = to_int(max(min(round(x[i] * inverse), top), bottom)) & byte;
        F up = one;
        if (x.unbiased) {
            F xx = zero, xv = zero;
            for (int i = 0; i < N; i++) {
                const F wx = w[i] * x[i];
                xx = xx + wx * x[i];
                xv = xv + wx * max(min(round(x[i] * inverse), top), bottom);
            }
            up = stretch(xx, d * xv, d);
        }
        store_u16(f16_bits(d * up), out, 0);
        store_bytes(q, N, out, 2);
    }

    static void decode(const uint8_t* in, float* out) {
        const F d = set1(f16_to_f32(read_u16(in)));
        for (int i = 0; i < N; i += L) store(out + i, d * to_float(load_i8(in + 2 + i)));
    }
};

}  // namespace QK_TIER
}  // namespace quantkit
