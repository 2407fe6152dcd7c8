// Choosing scales: merit of float scales, actual errors of stored ones. All sums run in element order in each lane.
#pragma once
#include "codec/grid.h"

namespace quantkit {
namespace QK_TIER {

// 1 / scale; 0, which gives the code nearest to 0, where the scale is below anything that f16 holds.
inline F invert(F scale) {
    const M none = abs(scale) <= set1(1e-30f);
    return select(none, set1(0.0f), set1(1.0f) / select(none, set1(1.0f), scale));
}

// The element of largest magnitude, with its sign, among x[first .. first + LEN).
template <int LEN, int N>
F find_extreme(const Batch<N>& x, int first) {
    F low = x[first], high = low;
    for (int i = first + 1; i < first + LEN; i++) {
        low = min(low, x[i]);
        high = max(high, x[i]);
    }
    return select(set1(0.0f) - low < high, high, low);
}

// Weighted squared error of x[first .. first + LEN) under K stored scales.
template <class Grid, int LEN, int K, int N, class W>
void measure_errors(const Batch<N>& x, W w, int first, const F (&scale)[K], F (&error)[K]) {
    F inverse[K];
    for (int k = 0; k < K; k++) {
        inverse[k] = invert(scale[k]);
        error[k] = set1(0.0f);
    }
    for (int i = first; i < first + LEN; i++)
        for (int k = 0; k < K; k++) {
            const F e = x[i] - scale[k] * Grid::nearest(x[i] * inverse[k]);
            error[k] = error[k] + w[i] * e * e;
        }
}

// What a set of codes sums to: w x v, w v^2, and the least-squares scale.
struct Fit {
    F xv, vv, scale;
};

template <class Grid, int LEN, int K, int N, class W>
void fit(const Batch<N>& x, W w, int first, const F (&inverse)[K], Fit (&fits)[K]) {
    for (int k = 0; k < K; k++) fits[k].xv = fits[k].vv = set1(0.0f);
    for (int i = first; i < first + LEN; i++)
        for (int k = 0; k < K; k++) {
            const F v = Grid::nearest(x[i] * inverse[k]), wv = w[i] * v;
            fits[k].xv = fits[k].xv + wv * x[i];
            fits[k].vv = fits[k].vv + wv * v;
        }
    for (Fit& f : fits) f.scale = f.xv / select(set1(0.0f) < f.vv, f.vv, set1(1.0f));
}

// What the codes sum to at each of `steps`: where on the grid the extreme lands.
template <class Grid, int LEN, int N, class W, int STEPS>
void scan(const Batch<N>& x, W w, int first, F extreme, const float (&steps)[STEPS], Fit (&fits)[STEPS]) {
    constexpr int K = STEPS % 3 ? 2 : 3;  // at a time: their sums have to stay in registers
    static_assert(STEPS % K == 0, "a multiple of two or three");
    const F unit = invert(extreme);
    for (int s = 0; s < STEPS; s += K) {
        F inverse[K];
        Fit some[K];
        for (int k = 0; k < K; k++) inverse[k] = unit * set1(steps[s + k]);
        fit<Grid, LEN>(x, w, first, inverse, some);
        for (int k = 0; k < K; k++) fits[s + k] = some[k];
    }
}

// The step whose codes explain most of sum w x^2.
template <int STEPS>
Fit best_fit(const Fit (&fits)[STEPS]) {
    Fit best = fits[0];
    F most = best.scale * best.xv;
    for (int s = 1; s < STEPS; s++) {
        const F gain = fits[s].scale * fits[s].xv;
        const M better = most < gain;
        most = select(better, gain, most);
        best.xv = select(better, fits[s].xv, best.xv);
        best.vv = select(better, fits[s].vv, best.vv);
        best.scale = select(better, fits[s].scale, best.scale);
    }
    return best;
}

// The stored scale that explains most: in blocks far from zero the rounding of the scale outweighs that of the codes.
template <int STEPS>
F best_stored_scale(const Fit (&fits)[STEPS]) {
    F best = set1(0.0f), most = set1(0.0f);
    for (const Fit& f : fits) {
        const F stored = f16_round(f.scale), gain = stored * (f.xv + f.xv - stored * f.vv);
        const M better = most < gain;
        most = select(better, gain, most);
        best = select(better, stored, best);
    }
    return best;
}

// Least squares leaves y, what decoding gives, shorter along x than x is: sum w x y = sum w y^2 < sum w x^2. That part
// of the error is the same for every input, and adds up over the layers where the rest averages out. Times this, y is
// as long along x as x itself (the unbiased scale of DRIVE, Vargaftik et al. 2021). `largest` is of the stored scales.
inline F stretch(F xx, F xy, F largest) {
    const F one = set1(1.0f), up = max(min(xx / select(set1(0.0f) < xy, xy, one), set1(1.25f)), set1(0.8f));
    return select((set1(0.0f) < xy) & (abs(largest) * up <= set1(65504.0f)), up, one);
}

}  // namespace QK_TIER
}  // namespace quantkit
