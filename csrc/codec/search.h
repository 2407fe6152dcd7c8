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

// The least-squares scale of the codes that a scale gives, and how much of sum w x^2 it explains.
struct Fit {
    F xv, vv;  // sum w x v, sum w v^2
    F scale() const { return xv / select(set1(0.0f) < vv, vv, set1(1.0f)); }
    F merit() const { return xv * scale(); }
};

template <class Grid, int LEN, int K, int N, class W>
void fit(const Batch<N>& x, W w, int first, const F (&inverse)[K], Fit (&fits)[K]) {
    for (int k = 0; k < K; k++) fits[k] = {set1(0.0f), set1(0.0f)};
    for (int i = first; i < first + LEN; i++)
        for (int k = 0; k < K; k++) {
            const F v = Grid::nearest(x[i] * inverse[k]), wv = w[i] * v;
            fits[k].xv = fits[k].xv + wv * x[i];
            fits[k].vv = fits[k].vv + wv * v;
        }
}

// The float scale of greatest merit among `steps`: each puts the extreme at that value of the grid.
template <class Grid, int LEN, int N, class W, int STEPS>
F scan(const Batch<N>& x, W w, int first, F extreme, const float (&steps)[STEPS]) {
    static_assert(STEPS % 2 == 0, "two at a time");
    const F unit = invert(extreme);
    F best = set1(0.0f), best_merit = set1(-1.0f);
    for (int s = 0; s < STEPS; s += 2) {
        const F inverse[2] = {unit * set1(steps[s]), unit * set1(steps[s + 1])};
        Fit fits[2];
        fit<Grid, LEN>(x, w, first, inverse, fits);
        for (const Fit& f : fits) {
            const F merit = f.merit();
            const M better = best_merit < merit;
            best_merit = select(better, merit, best_merit);
            best = select(better, f.scale(), best);
        }
    }
    return best;
}

}  // namespace QK_TIER
}  // namespace quantkit
