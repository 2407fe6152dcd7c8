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

    // STEPS are where on the grid a sub-block's extreme may land, `divisors` where on the integers the widest scale may
    // land: LOW and LOW in the plain candidate.
    template <const auto& STEPS, class W, int DIVISORS>
    static SuperBlock run(const Batch<N>& x, W w, const float (&divisors)[DIVISORS], int refits) {
        F step[SUBS], xx = set1(0.0f), most = xx, half = xx;
        for (int j = 0; j < SUBS; j++) {
            F sum_w = std::is_same_v<W, Ones> ? set1(LEN) : set1(0.0f);
            F low = x[j * LEN], high = low;
            for (int i = j * LEN; i < (j + 1) * LEN; i++) {
                low = min(low, x[i]);
                high = max(high, x[i]);
                xx = xx + x[i] * x[i];
                if (!std::is_same_v<W, Ones>) sum_w = sum_w + w[i];
            }
            const F extreme = select(set1(0.0f) - low < high, high, low);
            most = most + extreme * extreme;
            step[j] = extreme * set1(1.0f / Grid::LOW);
            half = half + step[j] * step[j] * sum_w;
        }
        SuperBlock best;
        best.error = set1(3e38f);
        best.template search<STEPS, false>(x, w, step, divisors, refits);
        // The plain candidate is worth a look only where this may be worse than half a gap in every element.
        const M poor = set1(0.99f * Grid::GAP * Grid::GAP) * half <= best.error;
        // Sub-blocks of nearly one magnitude: what counts is how close whole scales and f16 come to it.
        const M level = set1(0.5f * LEN) * most < xx;
        if (any(poor | level)) {
            SuperBlock other;
            other.begin(f16_round(find_widest(step) * set1(1.0f / LOW)));
            const F inverse = invert(other.d);
            for (int j = 0; j < SUBS; j++) {
                const F plain[1] = {whole(step[j] * inverse)};
                other.consider(x, w, j, plain);
            }
            best.take(other, poor | level);
        }
        if (any(level)) {
            SuperBlock other = best;
            other.template search<CLOSE_STEPS, true>(x, w, step, CLOSE_DIVISORS, 4);
            best.take(other, level);
        }
        return best;
    }

    // All codes; returns the d to store: as found, or what makes its codes unbiased.
    template <class W>
    F codes(const Batch<N>& x, W w, I (&q)[N]) const {
        const bool unbiased = x.unbiased;
        F xx = set1(0.0f), xy = xx;
        for (int j = 0; j < SUBS; j++) {
            const F step = d * scale[j], inverse = invert(step);
            for (int i = j * LEN; i < (j + 1) * LEN; i++) {
                const F v = Grid::nearest(x[i] * inverse, q[i]);
                if (unbiased) {
                    const F wx = w[i] * x[i];
                    xx = xx + wx * x[i];
                    xy = xy + wx * (step * v);
                }
            }
        }
        return unbiased ? f16_round(d * stretch(xx, xy, d)) : d;
    }

  private:
    static constexpr auto CLOSE_STEPS = close_steps<Grid, 24>();
    static constexpr auto CLOSE_DIVISORS = [] {
        std::array<float, 32> divisors{};
        for (int k = 0; k < 32; k++) divisors[k] = LOW * (1.03f - static_cast<float>(k) / 64);
        return divisors;
    }();

    // `step`: where each sub-block's extreme lands on the grid's LOW. REFINE: d is fitted anew to what each divisor
    // leads to, before they are compared.
    template <const auto& STEPS, bool REFINE, class W, class Divisors>
    void search(const Batch<N>& x, W w, const F (&step)[SUBS], const Divisors& divisors, int refits) {
        F scale[SUBS];
        Fit fits[SUBS][std::size(STEPS)];
        for (int j = 0; j < SUBS; j++) {
            scan<Grid, LEN, STEPS>(x, w, j * LEN, step[j] * set1(Grid::LOW), fits[j]);
            scale[j] = best_scale(fits[j]);
        }
        const F widest = find_widest(scale);
        F least = set1(3e38f), chosen = set1(0.0f);
        SuperBlock other;
        for (float divisor : divisors) {
            other.begin(f16_round(widest * set1(1.0f / divisor)));
            if (REFINE) {
                other.choose(fits);
                other.d = other.suit(fits);
            }
            const F left = other.weigh(fits);
            const M better = left < least;
            least = select(better, left, least);
            chosen = select(better, other.d, chosen);
        }
        other.begin(chosen);
        other.choose(fits);
        take(other, set1(0.0f) < set1(1.0f));
        for (int k = 0; k < refits; k++) {
            other.adjust<1>(x, w, refit(x, w), *this);
            take(other, set1(0.0f) < set1(1.0f));
        }
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

    // How much the steps' codes leave under d and the best integer scales.
    template <int STEPS>
    F weigh(const Fit (&fits)[SUBS][STEPS]) const {
        const F inverse = invert(d);
        F sum = set1(0.0f);
        for (int j = 0; j < SUBS; j++) {
            F least = set1(3e38f);
            for (const Fit& f : fits[j]) least = min(least, f.error(d * whole(f.scale * inverse)));
            sum = sum + least;
        }
        return sum;
    }

    // These scales, and how much is left.
    template <int STEPS>
    void choose(const Fit (&fits)[SUBS][STEPS]) {
        const F inverse = invert(d);
        error = set1(0.0f);
        for (int j = 0; j < SUBS; j++) {
            F least = set1(3e38f);
            scale[j] = set1(0.0f);
            for (const Fit& f : fits[j]) {
                const F s = whole(f.scale * inverse), e = f.error(d * s);
                const M better = e < least;
                scale[j] = select(better, s, scale[j]);
                least = select(better, e, least);
            }
            error = error + least;
        }
    }

    // The stored d that suits the chosen scales' codes.
    template <int STEPS>
    F suit(const Fit (&fits)[SUBS][STEPS]) const {
        F xv = set1(0.0f), vv = xv;
        for (int j = 0; j < SUBS; j++) {
            F least = set1(3e38f), wanted = least, weight = least;
            for (const Fit& f : fits[j]) {
                const F e = f.error(d * scale[j]);
                const M better = e < least;
                least = select(better, e, least);
                wanted = select(better, f.scale, wanted);
                weight = select(better, f.vv, weight);
            }
            xv = xv + scale[j] * weight * wanted;
            vv = vv + scale[j] * scale[j] * weight;
        }
        const M some = set1(0.0f) < vv;
        return select(some, f16_round(xv / select(some, vv, set1(1.0f))), d);
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

    // The better one, in the lanes that ask for it: none may tell who its neighbours are.
    void take(const SuperBlock& other, M where) {
        const M better = where & (other.error < error);
        error = select(better, other.error, error);
        d = select(better, other.d, d);
        for (int j = 0; j < SUBS; j++) scale[j] = select(better, other.scale[j], scale[j]);
    }

    // The least-squares d of the codes and integer scales, as f16.
    template <class W>
    F refit(const Batch<N>& x, W w) const {
        F off = set1(0.0f), vv = set1(0.0f);
        for (int j = 0; j < SUBS; j++) {
            const F s = d * scale[j];
            const Fit f = fit<Grid, LEN>(x, w, j * LEN, s);
            off = off + scale[j] * f.vv * (f.scale - s);
            vv = vv + scale[j] * scale[j] * f.vv;
        }
        return f16_round(d + off / select(set1(0.0f) < vv, vv, set1(1.0f)));
    }
};

}  // namespace QK_TIER
}  // namespace quantkit
