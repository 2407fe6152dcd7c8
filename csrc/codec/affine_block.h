// A block with an f16 scale and an f16 offset (q4_1, q5_1): x = d * q + m, codes 0..QMAX.
//
// The smallest and the largest element land at several fractional codes (ends.h); least squares gives scale and offset
// of each trial's codes. Where ggml searches too (with weights) there are many trials and one more round of codes;
// without, ggml takes one step per block, and two trials that need no clamping are what its speed leaves room for.
#pragma once
#include <type_traits>

#include "codec/ends.h"
#include "codec/one_scale.h"

namespace quantkit {
namespace QK_TIER {

template <int QMAX, int N, class W>
class AffineBlock {
  public:
    F d, m;  // as stored
    I q[N];

    AffineBlock(const Batch<N>& x, W w) : x_(x), w_(w) {
        const F zero = set1(0.0f);
        low_ = high_ = x[0];
        for (int i = 1; i < N; i++) {
            low_ = min(low_, x[i]);
            high_ = max(high_, x[i]);
        }
        const F range = high_ - low_, unit = invert(range);
        if constexpr (std::is_same_v<W, Ones>) {
            try_ends<false>(QuickTrials<QMAX>::ENDS, unit);
        } else {
            try_ends<true>(Trials<QMAX>::ENDS, unit);
            const F inverse[1] = {invert(scale_)}, first[1] = {zero - offset_ * inverse[0]};
            try_codes<true>(first, inverse);
        }
        store_fit();
        // The plain candidate is worth a look only where the fit is worse than half a step in every element.
        const F e = min(encode(), set1(3e38f)), half = range * set1(0.5f / QMAX);
        const M poor = half * half * sum_w_ < e;
        if (!any(poor)) return;
        const F fitted_d = d, fitted_m = m;
        store_plain();
        const M worse = poor & (encode() <= e);
        d = select(worse, d, fitted_d);
        m = select(worse, m, fitted_m);
        encode();
    }

  private:
    // Codes under d and m; their error, exactly that of decoding.
    F encode() {
        const F inverse = invert(d);
        F sum = set1(0.0f);
        for (int i = 0; i < N; i++) {
            const F v = affine_code<QMAX>(x_[i] - m, inverse), e = x_[i] - (d * v + m);
            sum = sum + w_[i] * e * e;
            q[i] = to_int(v);
        }
        return sum;
    }

    // The offset at or just below the smallest element, the largest at the last code.
    void store_plain() {
        const F nearest = f16_round(low_), unit = max(abs(low_) * set1(4.8828125e-4f), set1(2.98023224e-8f));
        m = select(low_ < nearest, f16_round(low_ - unit), nearest);
        d = f16_round((high_ - m) * set1(1.0f / QMAX));
    }

    // The offset is rounded first; the scale then makes up for it.
    void store_fit() {
        const F zero = set1(0.0f), one = set1(1.0f);
        m = f16_round(low_ + offset_);
        const M some = zero < wqq_;
        d = f16_round(select(some, (wqy_ - (m - low_) * wq_) / select(some, wqq_, one), zero));
    }

    template <bool CLAMP, int K>
    void try_ends(const Ends (&ends)[K], F unit) {
        static_assert(K % 2 == 0, "two at a time");
        best_ = set1(-1e30f);
        for (int k = 0; k < K; k += 2) {
            const F first[2] = {set1(ends[k].first), set1(ends[k + 1].first)};
            const F inverse[2] = {unit * set1(QMAX - ends[k].first - ends[k].last),
                                  unit * set1(QMAX - ends[k + 1].first - ends[k + 1].last)};
            try_codes<CLAMP>(first, inverse);
        }
    }

    // y = x - low has the codes round(y * inverse + first). Sums of w, w y, w q, w q^2, w q y give the best line.
    template <bool CLAMP, int K>
    void try_codes(const F (&first)[K], const F (&inverse)[K]) {
        const F zero = set1(0.0f), one = set1(1.0f), two = set1(2.0f), top = set1(QMAX);
        F sw = zero, wy = zero, wq[K], wqq[K], wqy[K];
        for (int k = 0; k < K; k++) wq[k] = wqq[k] = wqy[k] = zero;
        for (int i = 0; i < N; i++) {
            const F y = x_[i] - low_;
            sw = sw + w_[i];
            wy = wy + w_[i] * y;
            for (int k = 0; k < K; k++) {
                F v = round(y * inverse[k] + first[k]);
                if (CLAMP) v = max(min(v, top), zero);
                const F wv = w_[i] * v;
                wq[k] = wq[k] + wv;
                wqq[k] = wqq[k] + wv * v;
                wqy[k] = wqy[k] + wv * y;
            }
        }
        sum_w_ = sw;
        const F inverse_w = invert(sw), mean = wy * inverse_w;
        for (int k = 0; k < K; k++) {
            const F mean_q = wq[k] * inverse_w, den = wqq[k] - wq[k] * mean_q, num = wqy[k] - wq[k] * mean;
            const M told_apart = wqq[k] * set1(4e-6f) < den;  // else one code, and den is rounding
            const F scale = select(told_apart, max(num / select(told_apart, den, one), zero), zero);
            const F offset = mean - scale * mean_q;
            const F gain =
                scale * (two * (wqy[k] - offset * wq[k]) - scale * wqq[k]) + offset * (two * wy - offset * sw);
            const M better = best_ < gain;
            best_ = select(better, gain, best_);
            scale_ = select(better, scale, scale_);
            offset_ = select(better, offset, offset_);
            wq_ = select(better, wq[k], wq_);
            wqq_ = select(better, wqq[k], wqq_);
            wqy_ = select(better, wqy[k], wqy_);
        }
    }

    const Batch<N>& x_;
    const W w_;
    F low_, high_, sum_w_, best_;
    F scale_ = set1(0.0f), offset_ = scale_, wq_ = scale_, wqq_ = scale_, wqy_ = scale_;  // of the best trial
};

}  // namespace QK_TIER
}  // namespace quantkit
