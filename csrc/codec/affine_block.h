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
        constexpr bool QUICK = std::is_same_v<W, Ones>;
        const F zero = set1(0.0f);
        F sum = zero, squares = zero;
        low_ = high_ = x[0];
        for (int i = 0; i < N; i++) {
            low_ = min(low_, x[i]);
            high_ = max(high_, x[i]);
            if (!QUICK) {
                sum = sum + abs(x[i]);
                squares = squares + x[i] * x[i];
            }
        }
        const F range = high_ - low_, unit = invert(range);
        if constexpr (QUICK) {
            try_ends<false>(QuickTrials<QMAX>::ENDS, unit);
        } else {
            try_ends<true>(Trials<QMAX>::ENDS, unit);
            const F inverse[1] = {invert(scale_)}, first[1] = {zero - offset_ * inverse[0]};
            try_codes<true, false>(first, inverse);
        }
        store_fit();
        // The plain candidate is worth a look only where the fit may be worse than half a step in every element. New
        // codes can but lower the error that these sums tell, give or take their rounding.
        const F left = min(wyy_ - gain(best_, d, m - low_), set1(3e38f)), half = range * set1(0.5f / QMAX);
        const M poor = set1(0.99f) * half * half * sum_w_ < left;
        if (any(poor)) compare_with_plain(poor);
        // Weights of nearly one magnitude, or of which so little is left that these sums cannot tell how much.
        M close = left < set1(0.01f / (QMAX * QMAX)) * wyy_;
        if (!QUICK) close = close | is_level(max(high_, zero - low_), sum, squares);
        if (any(close)) compare_closely(close, range);
        find_codes();
    }

  private:
    // Sums over the block under some codes: w q, w q^2, w q y, where y = x - low.
    struct Codes {
        F q, qq, qy;
    };

    // What codes with this scale and offset (from low) take off the error of all zero.
    F gain(const Codes& c, F scale, F offset) const {
        const F two = set1(2.0f);
        return scale * (two * (c.qy - offset * c.q) - scale * c.qq) + offset * (two * wy_ - offset * sum_w_);
    }

    // Exactly that of decoding.
    F error() const {
        const F inverse = invert(d);
        F sum = set1(0.0f);
        for (int i = 0; i < N; i++) {
            const F e = x_[i] - (d * affine_code<QMAX>(x_[i] - m, inverse) + m);
            sum = sum + w_[i] * e * e;
        }
        return sum;
    }

    // All codes, and d and m that make them unbiased where that is wanted.
    void find_codes() {
        const F inverse = invert(d);
        if (!x_.unbiased) {
            for (int i = 0; i < N; i++) q[i] = to_int(affine_code<QMAX>(x_[i] - m, inverse));
            return;
        }
        F xv = set1(0.0f);
        for (int i = 0; i < N; i++) {
            const F v = affine_code<QMAX>(x_[i] - m, inverse);
            q[i] = to_int(v);
            xv = xv + w_[i] * x_[i] * v;
        }
        const F wx = wy_ + low_ * sum_w_, xx = wyy_ + low_ * (wy_ + wx);
        const F up = stretch(xx, d * xv + m * wx, max(abs(d), abs(m)));
        d = f16_round(d * up);
        m = f16_round(m * up);
    }

    // Only for the lanes that ask for it: no lane may tell who its neighbours are.
    void compare_with_plain(M poor) {
        const F fitted_d = d, fitted_m = m, e = min(error(), set1(3e38f));  // the number where the error is none
        store_plain();
        const M better = poor & (error() <= e);
        d = select(better, d, fitted_d);
        m = select(better, m, fitted_m);
    }

    // Many places for the largest element; sums of what is left of each, in units of the scale; actual errors.
    void compare_closely(M where, F range) {
        const F zero = set1(0.0f), one = set1(1.0f), unit = invert(range);
        F best_d = d, best_m = m, least = min(error(), set1(3e38f));
        for (const float steps : CLOSE_STEPS<QMAX>) {
            const F scale = range * set1(1.0f / steps), inverse = unit * set1(steps);
            F r = zero, q = zero, qq = zero, qr = zero;
            for (int i = 0; i < N; i++) {
                const F u = (x_[i] - low_) * inverse, v = min(round(u), set1(QMAX)), wv = w_[i] * v;
                r = r + w_[i] * (u - v);
                q = q + wv;
                qq = qq + wv * v;
                qr = qr + wv * (u - v);
            }
            const F mean_q = q * inverse_w_, den = qq - q * mean_q, num = qr - r * mean_q;
            const M told_apart = qq * set1(4e-6f) < den;
            const F more = select(told_apart, num / select(told_apart, den, one), zero);
            const F nearest = f16_round(low_ + (r - more * q) * inverse_w_ * scale);
            const M some = zero < qq;
            for (int k = -1; k < 2; k++) {  // the rounding of m is made up for in part by d
                m = f16_round(nearest + set1(static_cast<float>(k)) * f16_unit(nearest));
                const F fitted = scale + (qr * scale - (m - low_) * q) / select(some, qq, one);
                d = select(some & (zero < fitted), f16_round(fitted), zero);
                const F e = error();
                const M better = where & (e < least);
                least = select(better, e, least);
                best_d = select(better, d, best_d);
                best_m = select(better, m, best_m);
            }
        }
        d = best_d;
        m = best_m;
    }

    // The offset at or just below the smallest element, the largest at the last code.
    void store_plain() {
        const F nearest = f16_round(low_), unit = set1(0.5f) * f16_unit(low_);
        m = select(low_ < nearest, f16_round(low_ - unit), nearest);
        d = f16_round((high_ - m) * set1(1.0f / QMAX));
    }

    // The offset is rounded first; the scale then makes up for it.
    void store_fit() {
        const F zero = set1(0.0f), one = set1(1.0f);
        m = f16_round(low_ + offset_);
        const M some = zero < best_.qq;
        d = f16_round(select(some, (best_.qy - (m - low_) * best_.q) / select(some, best_.qq, one), zero));
    }

    template <bool CLAMP, int K>
    void try_ends(const Ends (&ends)[K], F unit) {
        static_assert(K % 2 == 0, "two at a time");
        for (int k = 0; k < K; k += 2) {
            const F first[2] = {set1(ends[k].first), set1(ends[k + 1].first)};
            const F inverse[2] = {unit * set1(QMAX - ends[k].first - ends[k].last),
                                  unit * set1(QMAX - ends[k + 1].first - ends[k + 1].last)};
            if (k == 0)
                try_codes<CLAMP, true>(first, inverse);
            else
                try_codes<CLAMP, false>(first, inverse);
        }
    }

    // Codes round(y * inverse + first), and the line that suits them best. FIRST: sums that need no codes are due too.
    template <bool CLAMP, bool FIRST, int K>
    void try_codes(const F (&first)[K], const F (&inverse)[K]) {
        const F zero = set1(0.0f), one = set1(1.0f), top = set1(QMAX);
        F sw = zero, wy = zero, wyy = zero;
        Codes codes[K];
        for (Codes& c : codes) c = {zero, zero, zero};
        for (int i = 0; i < N; i++) {
            const F y = x_[i] - low_;
            if (FIRST) {
                const F t = w_[i] * y;
                sw = sw + w_[i];
                wy = wy + t;
                wyy = wyy + t * y;
            }
            for (int k = 0; k < K; k++) {
                F v = round(y * inverse[k] + first[k]);
                if (CLAMP) v = max(min(v, top), zero);
                const F wv = w_[i] * v;
                codes[k].q = codes[k].q + wv;
                codes[k].qq = codes[k].qq + wv * v;
                codes[k].qy = codes[k].qy + wv * y;
            }
        }
        if (FIRST) {
            sum_w_ = std::is_same_v<W, Ones> ? set1(N) : sw;
            wy_ = wy;
            wyy_ = wyy;
            inverse_w_ = invert(sum_w_);
            most_ = set1(-1e30f);
        }
        for (const Codes& c : codes) {
            const F mean = wy_ * inverse_w_, mean_q = c.q * inverse_w_;
            const F den = c.qq - c.q * mean_q, num = c.qy - c.q * mean;
            const M told_apart = c.qq * set1(4e-6f) < den;  // else one code, and den is rounding
            const F scale = select(told_apart, max(num / select(told_apart, den, one), zero), zero);
            const F offset = mean - scale * mean_q, g = gain(c, scale, offset);
            const M better = most_ < g;
            most_ = select(better, g, most_);
            scale_ = select(better, scale, scale_);
            offset_ = select(better, offset, offset_);
            best_ = {select(better, c.q, best_.q), select(better, c.qq, best_.qq), select(better, c.qy, best_.qy)};
        }
    }

    const Batch<N>& x_;
    const W w_;
    F low_, high_, sum_w_, inverse_w_, wy_, wyy_, most_;
    F scale_ = set1(0.0f), offset_ = scale_;  // of the best trial, from low
    Codes best_ = {scale_, scale_, scale_};
};

}  // namespace QK_TIER
}  // namespace quantkit
