// A super-block: 256 elements, an f16 d, and an integer scale LOW .. HIGH for each of SUBS sub-blocks; x = d * s * v.
#pragma once
#include "codec/search.h"

namespace quantkit {
namespace QK_TIER {

template <class Grid, int SUBS, int LOW, int HIGH>
struct SuperBlock {
    static constexpr int N = 256, LEN = N / SUBS;
    F d, scale[SUBS], error;

    static F clamp(F s) { return max(min(s, set1(HIGH)), set1(LOW)); }

    // Under d the integer scale nearest to each float scale, or a neighbour of it: whichever has the smallest error.
    template <class W>
    void choose(const Batch<N>& x, W w, F stored, const F (&wanted)[SUBS]) {
        d = stored;
        error = set1(0.0f);
        const F inverse = invert(d);
        for (int j = 0; j < SUBS; j++) {
            const F middle = clamp(round(wanted[j] * inverse));
            const F s[3] = {middle, clamp(middle - set1(1.0f)), clamp(middle + set1(1.0f))};
            const F scales[3] = {d * s[0], d * s[1], d * s[2]};
            F e[3];
            measure_errors<Grid, LEN>(x, w, j * LEN, scales, e);
            F best = e[0];
            scale[j] = s[0];
            for (int k = 1; k < 3; k++) {
                const M better = e[k] < best;
                scale[j] = select(better, s[k], scale[j]);
                best = select(better, e[k], best);
            }
            error = error + best;
        }
    }

    void take(const SuperBlock& other) {
        const M better = other.error < error;
        error = select(better, other.error, error);
        d = select(better, other.d, d);
        for (int j = 0; j < SUBS; j++) scale[j] = select(better, other.scale[j], scale[j]);
    }

    // The least-squares d of the codes and integer scales.
    template <class W>
    F refit(const Batch<N>& x, W w) const {
        F xv = set1(0.0f), vv = set1(0.0f);
        for (int j = 0; j < SUBS; j++) {
            const F inverse[1] = {invert(d * scale[j])};
            Fit f[1];
            fit<Grid, LEN>(x, w, j * LEN, inverse, f);
            xv = xv + scale[j] * f[0].xv;
            vv = vv + scale[j] * scale[j] * f[0].vv;
        }
        return f16_round(xv / select(set1(0.0f) < vv, vv, set1(1.0f)));
    }

    static F widest(const F (&wanted)[SUBS]) {
        F top = wanted[0];
        for (int j = 1; j < SUBS; j++) top = select(abs(top) < abs(wanted[j]), wanted[j], top);
        return top;
    }

    template <class W, int STEPS, int SPREADS>
    static SuperBlock search(const Batch<N>& x, W w, const float (&steps)[STEPS], const float (&spreads)[SPREADS],
                             int refits) {
        F wanted[SUBS];
        SuperBlock best, other;
        F plain[SUBS];
        for (int j = 0; j < SUBS; j++) {
            const F extreme = find_extreme<LEN>(x, j * LEN);
            plain[j] = extreme * set1(1.0f / Grid::LOW);
            wanted[j] = scan<Grid, LEN>(x, w, j * LEN, extreme, steps);
        }
        best.choose(x, w, f16_round(widest(plain) * set1(1.0f / LOW)), plain);
        const F top = widest(wanted);
        for (float spread : spreads) {
            other.choose(x, w, f16_round(top * set1(spread)), wanted);
            best.take(other);
        }
        for (int k = 0; k < refits; k++) {
            const F refitted = best.refit(x, w);
            F now[SUBS];
            for (int j = 0; j < SUBS; j++) now[j] = best.d * best.scale[j];
            other.choose(x, w, refitted, now);
            best.take(other);
        }
        return best;
    }

    void codes(const Batch<N>& x, I (&q)[N]) const {
        for (int j = 0; j < SUBS; j++) {
            const F inverse = invert(d * scale[j]);
            for (int i = j * LEN; i < (j + 1) * LEN; i++) q[i] = Grid::code(x[i] * inverse);
        }
    }
};

}  // namespace QK_TIER
}  // namespace quantkit
