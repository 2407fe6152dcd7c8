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

// The stored d that leaves least: the plain one (the largest magnitude lands on the grid's LOW), the best of STEPS,
// or what suits the codes that this one gives.
template <class Grid, const auto& STEPS, int N, class W>
F search_steps(const Batch<N>& x, W w, F extreme) {
    Fit fits[std::size(STEPS)];
    scan<Grid, N, STEPS>(x, w, 0, extreme, fits);
    const F found = best_stored_scale(fits);
    return best_of<Grid>(x, w, {plain_scale<Grid>(extreme), found, f16_round(fit<Grid, N>(x, w, 0, found).scale)});
}

// The same for blocks that lie far from zero, or whose sums would drown in rounding: at many steps.
template <class Grid>
constexpr auto CLOSE_STEPS_OF = close_steps<Grid, 54>();
template <class Grid, int N, class W>
F search_closely(const Batch<N>& x, W w, F extreme, F d) {
    return best_of<Grid>(x, w, {d, search_steps<Grid, CLOSE_STEPS_OF<Grid>>(x, w, extreme)});
}

// Whether most of what is not zero is of nearly one magnitude; from sums of |x| and of x^2.
inline M is_level(F extreme, F sum, F squares) { return set1(0.75f) * abs(extreme) * sum < squares; }

// A stored scale, and sum w x^2.
struct Found {
    F d, xx;
};

template <class Grid, const auto& STEPS, int N, class W>
Found search_scale(const Batch<N>& x, W w) {
    F high = x[0], sum = set1(0.0f), xx = sum;
    for (int i = 0; i < N; i++) {
        const F magnitude = abs(x[i]), wx = w[i] * magnitude;
        high = max(high, x[i]);
        sum = sum + wx;
        xx = xx + wx * magnitude;
    }
    const F extreme = find_extreme(x, high), d = search_steps<Grid, STEPS>(x, w, extreme);
    const M level = is_level(extreme, sum, xx);
    return {any(level) ? select(level, search_closely<Grid>(x, w, extreme, d), d) : d, xx};
}

// The same for even weights on the integers, where ggml takes one step and there is little time: by how much of the sum
// of squares the codes at three or so steps explain. STEPS holds LOW, so that weights which lie on a grid stay as they
// are.
template <class Grid, const auto& STEPS, int N, std::size_t... k>
Found search_quickly(const Batch<N>& x, std::index_sequence<k...>) {
    constexpr int K = sizeof...(k);
    F high = x[0], xx = set1(0.0f);
    for (int i = 0; i < N; i++) {
        high = max(high, x[i]);
        xx = xx + x[i] * x[i];
    }
    const F extreme = find_extreme(x, high), unit = invert(extreme), zero = set1(0.0f);
    const F inverse[K] = {unit * set1(STEPS[k])...};
    F xv[K], vv[K];
    for (int n = 0; n < K; n++) xv[n] = vv[n] = zero;
    for (int i = 0; i < N; i++) {
        const F v[K] = {Grid::nearest(x[i] * inverse[k], Beyond<Grid::ends_beyond(STEPS[k])>::value)...};
        for (int n = 0; n < K; n++) {
            xv[n] = xv[n] + v[n] * x[i];
            vv[n] = vv[n] + v[n] * v[n];
        }
    }
    F most = set1(-1.0f), best_xv = most, best_vv = most, scale = zero;
    for (int n = 0; n < K; n++) {
        const F fitted = xv[n] / select(zero < vv[n], vv[n], set1(1.0f)), gain = fitted * xv[n];
        const M better = most < gain;
        most = select(better, gain, most);
        best_xv = select(better, xv[n], best_xv);
        best_vv = select(better, vv[n], best_vv);
        scale = select(better, fitted, scale);
    }
    F d = f16_round(scale);
    // The plain one is worth a look only where the fit may be worse than half a step in every element. New codes can
    // but lower the error that these sums tell, give or take their rounding.
    const F left = min(xx - d * (best_xv + best_xv - d * best_vv), set1(3e38f));
    const F half = extreme * set1(0.5f / Grid::LOW);
    const M poor = set1(0.99f * N) * half * half <= left;
    if (any(poor)) d = select(poor, best_of<Grid>(x, Ones{}, {plain_scale<Grid>(extreme), d}), d);
    const M level = (set1(0.5f * N) * extreme * extreme < xx) | (left < set1(0.1f / (Grid::LOW * Grid::LOW)) * xx);
    return {any(level) ? select(level, search_closely<Grid>(x, Ones{}, extreme, d), d) : d, xx};
}
template <class Grid, const auto& STEPS, int N>
Found search_quickly(const Batch<N>& x) {
    return search_quickly<Grid, STEPS>(x, std::make_index_sequence<std::size(STEPS)>());
}

// All codes; returns the scale to store: d, or what makes its codes unbiased.
template <class Grid, int N, class W>
F find_codes(const Batch<N>& x, W w, const Found& found, I (&q)[N]) {
    const F inverse = invert(found.d);
    if (!x.unbiased) {
        for (int i = 0; i < N; i++) Grid::nearest(x[i] * inverse, q[i]);
        return found.d;
    }
    F xv = set1(0.0f);
    for (int i = 0; i < N; i++) xv = xv + w[i] * x[i] * Grid::nearest(x[i] * inverse, q[i]);
    return f16_round(found.d * stretch(found.xx, found.d * xv, found.d));
}

// Element i in the low half of byte i, element i + 16 in the high half.
inline void store_nibbles(const I (&q)[32], uint8_t* const* out, int offset) {
    I byte[16];
    for (int i = 0; i < 16; i++) byte[i] = q[i] | shl<4>(q[i + 16]);
    store_bytes(byte, 16, out, offset);
}

}  // namespace QK_TIER
}  // namespace quantkit
