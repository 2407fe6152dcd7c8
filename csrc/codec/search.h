// Choosing scales: merit of float scales, actual errors of stored ones. All sums run in element order in each lane.
#pragma once
#include <array>
#include <iterator>
#include <type_traits>
#include <utility>

#include "codec/grid.h"

namespace quantkit {
namespace QK_TIER {

// 1 / scale; 0, which gives the code nearest to 0, where the scale is below anything that f16 holds.
inline F invert(F scale) {
    const M none = abs(scale) <= set1(1e-30f);
    return select(none, set1(0.0f), set1(1.0f) / select(none, set1(1.0f), scale));
}

// At least the distance from x to the next f16, at most twice as much.
inline F f16_unit(F x) { return max(abs(x) * set1(9.765625e-4f), set1(5.9604644775390625e-8f)); }

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

// A set of codes v, seen from what suits it: the least-squares scale, the error there, and sum w v^2. The error under
// any other scale follows with nothing to cancel, however far from zero the block lies.
struct Fit {
    F least, vv, scale;
    F error(F stored) const {
        const F off = stored - scale;
        return least + vv * off * off;
    }
};

// The codes of x[first .. first + LEN) under K scales. What is summed is what they leave of x / scale, not of x: far
// from zero that is small, and sums of x itself would drown it.
template <class Grid, int LEN, int K, int N, class W, class... Ends>
void fit(const Batch<N>& x, W w, int first, const F (&scale)[K], const F (&inverse)[K], Fit (&fits)[K], Ends... ends) {
    static_assert(sizeof...(Ends) == K, "which ends of the grid the elements may lie beyond, for each scale");
    const F zero = set1(0.0f), one = set1(1.0f);
    F rr[K], rv[K], vv[K];
    for (int k = 0; k < K; k++) rr[k] = rv[k] = vv[k] = zero;
    for (int i = first; i < first + LEN; i++) {
        int k = 0;
        const auto add = [&](auto beyond) {
            const F u = x[i] * inverse[k], v = Grid::nearest(u, decltype(beyond)::value), r = u - v, wr = w[i] * r;
            rr[k] = rr[k] + wr * r;
            rv[k] = rv[k] + wr * v;
            vv[k] = vv[k] + w[i] * v * v;
            k++;
        };
        (add(ends), ...);
    }
    for (int k = 0; k < K; k++) {
        const F more = rv[k] / select(zero < vv[k], vv[k], one);
        fits[k] = {max(rr[k] - rv[k] * more, zero) * scale[k] * scale[k], vv[k], scale[k] + scale[k] * more};
    }
}
template <int ENDS>
using Beyond = std::integral_constant<int, ENDS>;

// Of one scale, whatever lies beyond its ends.
template <class Grid, int LEN, int N, class W>
Fit fit(const Batch<N>& x, W w, int first, F scale) {
    Fit f[1];
    fit<Grid, LEN>(x, w, first, {scale}, {invert(scale)}, f, Beyond<3>());
    return f[0];
}

// What the codes sum to at each of STEPS: where on the grid the extreme lands.
template <class Grid, int LEN, const auto& STEPS, int FROM, int N, class W, std::size_t... k>
void scan_some(const Batch<N>& x, W w, int first, F extreme, F unit, Fit* fits, std::index_sequence<k...>) {
    constexpr int K = sizeof...(k);
    Fit some[K];
    fit<Grid, LEN, K>(x, w, first, {extreme * set1(1.0f / STEPS[FROM + k])...}, {unit * set1(STEPS[FROM + k])...}, some,
                      Beyond<Grid::ends_beyond(STEPS[FROM + k])>()...);
    for (int n = 0; n < K; n++) fits[FROM + n] = some[n];
}
template <class Grid, int LEN, const auto& STEPS, int N, class W, std::size_t... k>
void scan(const Batch<N>& x, W w, int first, F extreme, Fit* fits, std::index_sequence<k...>) {
    constexpr int K = std::size(STEPS) % 3 ? 2 : 3;  // at a time: their sums have to stay in registers
    static_assert(std::size(STEPS) % K == 0, "a multiple of two or three");
    const F unit = invert(extreme);
    (scan_some<Grid, LEN, STEPS, K* static_cast<int>(k)>(x, w, first, extreme, unit, fits,
                                                         std::make_index_sequence<K>()),
     ...);
}
template <class Grid, int LEN, const auto& STEPS, int N, class W>
void scan(const Batch<N>& x, W w, int first, F extreme, Fit (&fits)[std::size(STEPS)]) {
    constexpr int K = std::size(STEPS) % 3 ? 2 : 3;
    scan<Grid, LEN, STEPS>(x, w, first, extreme, &fits[0], std::make_index_sequence<std::size(STEPS) / K>());
}

// Steps side by side from a little beyond LOW on: for blocks of nearly one magnitude, where it is their phase that
// counts.
template <class Grid, int STEPS>
constexpr std::array<float, STEPS> close_steps() {
    std::array<float, STEPS> steps{};
    for (int k = 0; k < STEPS; k++) steps[k] = Grid::LOW - 11 * Grid::CLOSE + Grid::CLOSE * static_cast<float>(k);
    return steps;
}

// The scale of the step whose codes leave least.
template <int STEPS>
F best_scale(const Fit (&fits)[STEPS]) {
    F best = fits[0].scale, least = fits[0].least;
    for (int s = 1; s < STEPS; s++) {
        const M better = fits[s].least < least;
        least = select(better, fits[s].least, least);
        best = select(better, fits[s].scale, best);
    }
    return best;
}

// The stored scale that leaves least: in blocks far from zero the rounding of the scale outweighs that of the codes.
template <int STEPS>
F best_stored_scale(const Fit (&fits)[STEPS]) {
    F best = f16_round(fits[0].scale), least = fits[0].error(best);
    for (int s = 1; s < STEPS; s++) {
        const F stored = f16_round(fits[s].scale), e = fits[s].error(stored);
        const M better = e < least;
        least = select(better, e, least);
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
