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

// The stored d: the plain one (the largest magnitude lands on the grid's LOW), or the best of `steps` where it is
// better.
template <class Grid, int N, class W, int STEPS>
F search_scale(const Batch<N>& x, W w, const float (&steps)[STEPS]) {
    F high = x[0];
    for (int i = 1; i < N; i++) high = max(high, x[i]);
    const F extreme = select(high == x.max_abs, high, set1(0.0f) - x.max_abs);  // the largest magnitude with its sign
    const F plain = f16_round(extreme * set1(1.0f / Grid::LOW));
    Fit fits[STEPS];
    scan<Grid, N>(x, w, 0, extreme, steps, fits);
    return better_of<Grid>(x, w, plain, f16_round(best_scale(fits)));
}

template <class Grid, int N>
void find_codes(const Batch<N>& x, F d, I (&q)[N]) {
    const F inverse = invert(d);
    for (int i = 0; i < N; i++) q[i] = Grid::code(x[i] * inverse);
}

// Element i in the low half of byte i, element i + 16 in the high half.
inline void store_nibbles(const I (&q)[32], uint8_t* const* out, int offset) {
    I byte[16];
    for (int i = 0; i < 16; i++) byte[i] = q[i] | shl<4>(q[i + 16]);
    store_bytes(byte, 16, out, offset);
}

}  // namespace QK_TIER
}  // namespace quantkit
