// A block with one f16 scale d; x = d * v.
#pragma once
#include "codec/search.h"

namespace quantkit {
namespace QK_TIER {

// Of K stored scales the one with the smallest error; the first where they are equal.
template <class Grid, int K, int N, class W>
F best_of(const Batch<N>& x, W w, const F (&scales)[K]) {
    F e[K], best = scales[0];
    measure_errors<Grid, N>(x, w, 0, scales, e);
    for (int k = 1; k < K; k++) {
        const M better = e[k] < e[0];
        e[0] = select(better, e[k], e[0]);
        best = select(better, scales[k], best);
    }
    return best;
}

// The element of largest magnitude, with its sign; `high` is the largest of all.
template <int N>
F find_extreme(const Batch<N>& x, F high) {
    return select(high == x.max_abs, high, set1(0.0f) - x.max_abs);
}

template <class Grid>
F plain_scale(F extreme) {
    return f16_round(extreme * set1(1.0f / Grid::LOW));
}

// The stored d that leaves least: the plain one (the largest magnitude lands on the grid's LOW), the best of `steps`,
// or what suits the codes that this one gives.
template <class Grid, int N, class W, int STEPS>
F search_scale(const Batch<N>& x, W w, F extreme, const float (&steps)[STEPS]) {
    Fit fits[STEPS], next[1];
    scan<Grid, N>(x, w, 0, extreme, steps, fits);
    const F found[1] = {best_stored_scale(fits)}, inverse[1] = {invert(found[0])};
    fit<Grid, N>(x, w, 0, found, inverse, next);
    return best_of<Grid>(x, w, {plain_scale<Grid>(extreme), found[0], f16_round(next[0].scale)});
}

// The same for blocks that lie far from zero, or whose sums would drown in rounding: at many steps.
template <class Grid, int N, class W>
F search_scale_closely(const Batch<N>& x, W w, F extreme, F d) {
    static constexpr auto STEPS = close_steps<Grid, 54>();
    return best_of<Grid>(x, w, {d, search_scale<Grid>(x, w, extreme, STEPS.at)});
}

// Whether most of what is not zero is of nearly one magnitude; from sums of |x| and of x^2.
inline M is_level(F extreme, F sum, F squares) { return set1(0.75f) * abs(extreme) * sum < squares; }

template <class Grid, int N, class W, int STEPS>
F search_scale(const Batch<N>& x, W w, const float (&steps)[STEPS]) {
    F high = x[0], sum = set1(0.0f), squares = sum;
    for (int i = 0; i < N; i++) {
        high = max(high, x[i]);
        sum = sum + abs(x[i]);
        squares = squares + x[i] * x[i];
    }
    const F extreme = find_extreme(x, high), d = search_scale<Grid>(x, w, extreme, steps);
    const M level = is_level(extreme, sum, squares);
    return any(level) ? select(level, search_scale_closely<Grid>(x, w, extreme, d), d) : d;
}

// The same for even weights on the integers, where ggml takes one step and there is little time: by how much of the sum
// of squares the codes at three or so steps explain. `steps` holds LOW, so that weights which lie on a grid stay as
// they are.
template <class Grid, int N, int STEPS>
F search_scale_quickly(const Batch<N>& x, const float (&steps)[STEPS]) {
    F high = x[0], xx = set1(0.0f);
    for (int i = 0; i < N; i++) {
        high = max(high, x[i]);
        xx = xx + x[i] * x[i];
    }
    const F extreme = find_extreme(x, high), unit = invert(extreme);
    F inverse[STEPS], xv[STEPS], vv[STEPS];
    for (int k = 0; k < STEPS; k++) {
        inverse[k] = unit * set1(steps[k]);
        xv[k] = vv[k] = set1(0.0f);
    }
    for (int i = 0; i < N; i++)
        for (int k = 0; k < STEPS; k++) {
            const F v = Grid::nearest(x[i] * inverse[k]);
            xv[k] = xv[k] + v * x[i];
            vv[k] = vv[k] + v * v;
        }
    F most = set1(-1.0f), best_xv = most, best_vv = most, scale = set1(0.0f);
    for (int k = 0; k < STEPS; k++) {
        const F fitted = xv[k] / select(set1(0.0f) < vv[k], vv[k], set1(1.0f)), gain = fitted * xv[k];
        const M better = most < gain;
        most = select(better, gain, most);
        best_xv = select(better, xv[k], best_xv);
        best_vv = select(better, vv[k], best_vv);
        scale = select(better, fitted, scale);
    }
    F d = f16_round(scale);
    // The plain one is worth a look only where the fit may be worse than half a step in every element. New codes can
    // but lower the error that these sums tell, give or take their rounding.
    const F left = min(xx - d * (best_xv + best_xv - d * best_vv), set1(3e38f)),
            half = extreme * set1(0.5f / Grid::LOW);
    const M poor = set1(0.99f * N) * half * half <= left;
    if (any(poor)) d = select(poor, best_of<Grid>(x, Ones{}, {plain_scale<Grid>(extreme), d}), d);
    const M level = (set1(0.5f * N) * extreme * extreme < xx) | (left < set1(0.1f / (Grid::LOW * Grid::LOW)) * xx);
    return any(level) ? select(level, search_scale_closely<Grid>(x, Ones{}, extreme, d), d) : d;
}

// All codes; returns the scale to store: d, or what makes its codes unbiased.
template <class Grid, int N, class W>
F find_codes(const Batch<N>& x, W w, F d, I (&q)[N]) {
    const F inverse = invert(d);
    F xx = set1(0.0f), xv = xx;
    for (int i = 0; i < N; i++) {
        const F v = Grid::nearest(x[i] * inverse, q[i]);
        if (x.unbiased) {
            const F wx = w[i] * x[i];
            xx = xx + wx * x[i];
            xv = xv + wx * v;
        }
    }
    return x.unbiased ? f16_round(d * stretch(xx, d * xv, d)) : d;
}

// Element i in the low half of byte i, element i + 16 in the high half.
inline void store_nibbles(const I (&q)[32], uint8_t* const* out, int offset) {
    I byte[16];
    for (int i = 0; i < 16; i++) byte[i] = q[i] | shl<4>(q[i + 16]);
    store_bytes(byte, 16, out, offset);
}

}  // namespace QK_TIER
}  // namespace quantkit
