// A super-block: 256 elements, an f16 d, and an integer scale LOW .. HIGH for each of SUBS sub-blocks; x = d * s * v.
//
// 1. Each sub-block: codes at several steps, the scale that suits each best, and what any other scale would leave.
// 2. d: several are tried on that; each takes, in every sub-block, the step and the integer scale that leave least.
// 3. d fitted by least squares to all codes, then each integer scale and its neighbours under it, by actual errors.
// The plain candidate and each of these compete by their actual errors, as decoding would give them.
#pragma once
#include "codec/search.h"

namespace quantkit {
namespace QK_TIER {

template <class Grid, int SUBS, int LOW, int HIGH>
struct SuperBlock {
    static constexpr int N = 256, LEN = N / SUBS;
    F d, scale[SUBS], error;

    // `steps` are where on the grid a sub-block's extreme may land, `divisors` where on the integers the widest scale
    // may land: LOW and LOW in the plain candidate.
    template <class W, int STEPS, int DIVISORS>
    static SuperBlock run(const Batch<N>& x, W w, const float (&steps)[STEPS], const float (&divisors)[DIVISORS],
                          int refits) {
        F extreme[SUBS], scale[SUBS], xx = set1(0.0f), most = xx;
        for (int j = 0; j < SUBS; j++) {
            extreme[j] = find_extreme<LEN>(x, j * LEN);
            most = most + extreme[j] * extreme[j];
        }
        for (int i = 0; i < N; i++) xx = xx + x[i] * x[i];
        for (int j = 0; j < SUBS; j++) scale[j] = extreme[j] * set1(1.0f / Grid::LOW);
        SuperBlock best;
        best.begin(f16_round(find_widest(scale) * set1(1.0f / LOW)));
        const F inverse = invert(best.d);
        for (int j = 0; j < SUBS; j++) {
            const F plain[1] = {whole(scale[j] * inverse)};
            best.consider(x, w, j, plain);
        }
        best.search<false>(x, w, extreme, steps, divisors, refits);
        // Sub-blocks of nearly one magnitude: what counts is how close whole scales and f16 come to it.
        const M level = set1(0.5f * LEN) * most < xx;
        if (any(level)) {
            static constexpr auto STEPS_BY = close_steps<Grid, 24>();
            static constexpr auto DIVISORS_BY = close_divisors();
            SuperBlock close = best;
            close.template search<true>(x, w, extreme, STEPS_BY.at, DIVISORS_BY.at, 4);
            close.error = select(level, close.error, best.error);
            best.take(close);
        }
        return best;
    }

    // All codes; returns the d to store: as found, or what makes its codes unbiased.
    template <class W>
    F codes(const Batch<N>& x, W w, I (&q)[N]) const {
        F xx = set1(0.0f), xy = xx;
        for (int j = 0; j < SUBS; j++) {
            const F step = d * scale[j], inverse = invert(step);
            for (int i = j * LEN; i < (j + 1) * LEN; i++) {
                const F v = Grid::nearest(x[i] * inverse, q[i]);
                if (x.unbiased) {
                    const F wx = w[i] * x[i];
                    xx = xx + wx * x[i];
                    xy = xy + wx * (step * v);
                }
            }
        }
        return x.unbiased ? f16_round(d * stretch(xx, xy, d)) : d;
    }

  private:
    // REFINE: d is fitted anew to what each divisor leads to, before they are compared.
    template <bool REFINE, class W, int STEPS, int DIVISORS>
    void search(const Batch<N>& x, W w, const F (&extreme)[SUBS], const float (&steps)[STEPS],
                const float (&divisors)[DIVISORS], int refits) {
        F scale[SUBS];
        Fit fits[SUBS][STEPS];
        for (int j = 0; j < SUBS; j++) {
            scan<Grid, LEN>(x, w, j * LEN, extreme[j], steps, fits[j]);
            scale[j] = best_scale(fits[j]);
        }
        const F widest = find_widest(scale);
        F least = set1(3e38f), chosen = d;
        SuperBlock other;
        for (float divisor : divisors) {
            other.begin(f16_round(widest * set1(1.0f / divisor)));
            F left = other.choose<REFINE>(fits);
            if (REFINE) left = other.choose<REFINE>(fits);
            const M better = left < least;
            least = select(better, left, least);
            chosen = select(better, other.d, chosen);
        }
        other.begin(chosen);
        other.choose<false>(fits);
        other.adjust<0>(x, w, chosen, other);
        take(other);
        for (int k = 0; k < refits; k++) {
            other.adjust<1>(x, w, refit(x, w), *this);
            take(other);
        }
    }

    static constexpr Steps<32> close_divisors() {
        Steps<32> divisors{};
        for (int k = 0; k < 32; k++) divisors.at[k] = LOW * (1.03f - static_cast<float>(k) / 64);
        return divisors;
    }

    static F whole(F s) { return max(min(round(s), set1(HIGH)), set1(LOW)); }

    static F find_widest(const F (&scales)[SUBS]) {
        F widest = scales[0];
        for (const F& s : scales) widest = select(abs(widest) < abs(s), s, widest);
        return widest;
    }

    void begin(F stored) {
        d = stored;
        error = set1(0.0f);
    }

    // Adds the smallest error of sub-block j among the integer scales s.
    template <class W, int K>
    void consider(const Batch<N>& x, W w, int j, const F (&s)[K]) {
        F scales[K], e[K];
        for (int k = 0; k < K; k++) scales[k] = d * s[k];
        measure_errors<Grid, LEN>(x, w, j * LEN, scales, e);
        scale[j] = s[0];
        F least = e[0];
        for (int k = 1; k < K; k++) {
            const M better = e[k] < least;
            scale[j] = select(better, s[k], scale[j]);
            least = select(better, e[k], least);
        }
        error = error + least;
    }

    // Chooses scales under d by what the steps' codes leave; returns how much. REFIT: d is then that which suits them.
    template <bool REFIT, int STEPS>
    F choose(const Fit (&fits)[SUBS][STEPS]) {
        const F inverse = invert(d);
        F sum = set1(0.0f), xv = sum, vv = sum;
        for (int j = 0; j < SUBS; j++) {
            F least = set1(3e38f), wanted = least, weight = least;
            scale[j] = set1(0.0f);
            for (const Fit& f : fits[j]) {
                const F s = whole(f.scale * inverse), e = f.error(d * s);
                const M better = e < least;
                scale[j] = select(better, s, scale[j]);
                least = select(better, e, least);
                if (REFIT) {
                    wanted = select(better, f.scale, wanted);
                    weight = select(better, f.vv, weight);
                }
            }
            sum = sum + least;
            if (REFIT) {
                xv = xv + scale[j] * weight * wanted;
                vv = vv + scale[j] * scale[j] * weight;
            }
        }
        if (REFIT) d = select(set1(0.0f) < vv, f16_round(xv / select(set1(0.0f) < vv, vv, set1(1.0f))), d);
        return sum;
    }

    // Under d, in each sub-block the best of the scale at hand and REACH neighbours on either side.
    template <int REACH, class W>
    void adjust(const Batch<N>& x, W w, F stored, const SuperBlock& from) {
        begin(stored);
        for (int j = 0; j < SUBS; j++) {
            F s[2 * REACH + 1] = {from.scale[j]};
            for (int k = 1; k <= REACH; k++) {
                s[2 * k - 1] = whole(s[0] - set1(k));
                s[2 * k] = whole(s[0] + set1(k));
            }
            consider(x, w, j, s);
        }
    }

    void take(const SuperBlock& other) {
        const M better = other.error < error;
        error = select(better, other.error, error);
        d = select(better, other.d, d);
        for (int j = 0; j < SUBS; j++) scale[j] = select(better, other.scale[j], scale[j]);
    }

    // The least-squares d of the codes and integer scales, as f16.
    template <class W>
    F refit(const Batch<N>& x, W w) const {
        F off = set1(0.0f), vv = set1(0.0f);
        for (int j = 0; j < SUBS; j++) {
            const F s[1] = {d * scale[j]}, inverse[1] = {invert(s[0])};
            Fit f[1];
            fit<Grid, LEN>(x, w, j * LEN, s, inverse, f);
            off = off + scale[j] * f[0].vv * (f[0].scale - s[0]);
            vv = vv + scale[j] * scale[j] * f[0].vv;
        }
        return f16_round(d + off / select(set1(0.0f) < vv, vv, set1(1.0f)));
    }
};

}  // namespace QK_TIER
}  // namespace quantkit
