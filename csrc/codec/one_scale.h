// A block with one f16 scale d; x = d * v.
#pragma once
#include "codec/search.h"

namespace quantkit {
namespace QK_TIER {

// Of two stored scales the one with the smaller error; the first where they are equal.
template <class Grid, int N, class W>
F better_of(const Batch<N>& x, W w, F a, F b) {
    const F scales[2] = {a, b};
    F e[2];
    measure_errors<Grid, N>(x, w, 0, scales, e);
    return select(e[1] < e[0], b, a);
}

// The element of largest magnitude, with its sign; `high` is the largest of all.
template <int N>
F find_extreme(const Batch<N>& x, F high) {
    return select(high == x.max_abs, high, set1(0.0f) - x.max_abs);
}

// The stored d: the plain one (the largest magnitude lands on the grid's LOW), or the best of `steps` where it is
// better.
template <class Grid, int N, class W, int STEPS>
F search_scale(const Batch<N>& x, W w, const float (&steps)[STEPS]) {
    F high = x[0];
    for (int i = 1; i < N; i++) high = max(high, x[i]);
    const F extreme = find_extreme(x, high);
    Fit fits[STEPS];
    scan<Grid, N>(x, w, 0, extreme, steps, fits);
    return better_of<Grid>(x, w, f16_round(extreme * set1(1.0f / Grid::LOW)), best_stored_scale(fits));
}

// The same for even weights on the integers, where ggml takes one step and there is little time. `steps` holds LOW, so
// that weights which lie on a grid stay as they are.
template <class Grid, int N, int STEPS>
F search_scale_quickly(const Batch<N>& x, const float (&steps)[STEPS]) {
    F high = x[0], xx = set1(0.0f);
    for (int i = 0; i < N; i++) {
        high = max(high, x[i]);
        xx = xx + x[i] * x[i];
    }
    const F extreme = find_extreme(x, high), plain = f16_round(extreme * set1(1.0f / Grid::LOW));
    Fit fits[STEPS];
    scan<Grid, N>(x, Ones{}, 0, extreme, steps, fits);
    const Fit best = best_fit(fits);
    const F fitted = f16_round(best.scale);
    // The plain one is worth a look only where the fit may be worse than half a step in every element. New codes can
    // but lower the error that these sums tell, give or take their rounding.
    const F left = min(xx - fitted * (best.xv + best.xv - fitted * best.vv), set1(3e38f)), half = plain * set1(0.5f);
    const M poor = set1(0.99f * N) * half * half <= left;
    return any(poor) ? select(poor, better_of<Grid>(x, Ones{}, plain, fitted), fitted) : fitted;
}

template <class Grid, int N>
void find_codes(const Batch<N>& x, F d, I (&q)[N]) {
    const F inverse = invert(d);
    for (int i = 0; i < N; i++) q[i] = Grid::code(x[i] * inverse);
}

// The scale to store: d, or what makes the codes of d unbiased.
template <class Grid, int N, class W>
F scale_to_store(const Batch<N>& x, W w, F d) {
    if (!x.unbiased) return d;
    const F inverse = invert(d);
    F xx = set1(0.0f), xv = xx;
    for (int i = 0; i < N; i++) {
        const F wx = w[i] * x[i];
        xx = xx + wx * x[i];
        xv = xv + wx * Grid::nearest(x[i] * inverse);
    }
    return f16_round(d * stretch(xx, d * xv, d));
}

// Element i in the low half of byte i, element i + 16 in the high half.
inline void store_nibbles(const I (&q)[32], uint8_t* const* out, int offset) {
    I byte[16];
    for (int i = 0; i < 16; i++) byte[i] = q[i] | shl<4>(q[i + 16]);
    store_bytes(byte, 16, out, offset);
}

}  // namespace QK_TIER
}  // namespace quantkit
