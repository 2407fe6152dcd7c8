// One f16 scale for codes -T..T-1 (q4_0: T = 8, q5_0: T = 16).
#pragma once
#include "codec/search.h"

namespace quantkit {
namespace QK_TIER {

// Codes of x under scale d (any sign; 0 gives zero codes).
template <int T>
inline F symmetric_code(F x, F inverse) {
    return max(min(round(x * inverse), set1(T - 1.0f)), set1(-static_cast<float>(T)));
}

// Returns the stored d (rounded to f16) and leaves the codes in q.
template <int T, int N, class W>
F search_symmetric(const Batch<N>& x, W w, F (&q)[N]) {
    const F zero = set1(0.0f);
    F extreme = zero;  // the element of largest magnitude, with its sign
    for (int i = 0; i < N; i++) extreme = select(abs(extreme) < abs(x[i]), x[i], extreme);
    const F plain = f16_round(extreme * set1(-1.0f / T));

    // Merit of a scale: (sum w x q)^2 / (sum w q^2), what least squares gains over all-zero codes.
    F best_d = plain, best_merit = set1(-1.0f);
    const F unit = invert(extreme);
    // Steps from the scale at which the largest magnitude lands on -T (negative) or just past T-1 (positive sign).
    static constexpr float STEPS[] = {-T + 0.0f, -T + 0.45f, -T + 0.9f, -T - 0.45f,
                                      T - 1.0f,  T - 0.6f,   T - 1.4f,  T - 0.2f};
    for (float step : STEPS) {
        const F inverse = unit * set1(step);
        F xq = zero, qq = zero;
        for (int i = 0; i < N; i++) {
            const F c = symmetric_code<T>(x[i], inverse), wc = w[i] * c;
            xq = xq + wc * x[i];
            qq = qq + wc * c;
        }
        const F d = xq / select(zero < qq, qq, set1(1.0f)), merit = d * xq;
        const M better = best_merit < merit;
        best_merit = select(better, merit, best_merit);
        best_d = select(better, d, best_d);
    }
    // Both finalists as stored, codes chosen again under the stored scale: the smaller error wins.
    const F fitted = f16_round(best_d), i0 = invert(plain), i1 = invert(fitted);
    F e0 = zero, e1 = zero;
    for (int i = 0; i < N; i++) {
        const F a = x[i] - plain * symmetric_code<T>(x[i], i0), b = x[i] - fitted * symmetric_code<T>(x[i], i1);
        e0 = e0 + w[i] * a * a;
        e1 = e1 + w[i] * b * b;
    }
    const M better = e1 < e0;
    const F d = select(better, fitted, plain), inverse = select(better, i1, i0);
    for (int i = 0; i < N; i++) q[i] = symmetric_code<T>(x[i], inverse);
    return d;
}

}  // namespace QK_TIER
}  // namespace quantkit
