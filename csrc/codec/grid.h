// Grids: the sixteen or so values that a code can mean, in units of a scale.
//   LOW, HIGH            the ends; LOW has the larger magnitude
//   CLOSE                how close steps may lie to one another and still make a difference
//   GAP                  half the widest distance between neighbours
//   nearest(y) -> value  the grid's value nearest to y; `ends` says which ends y may lie beyond (1: LOW, 2: HIGH)
//   nearest(y, code)     that value and its code, as stored
//   ends_beyond(step)    which ends |y| <= |step| may lie beyond
#pragma once
#include "codec/batch.h"

namespace quantkit {
namespace QK_TIER {

// -T .. T-1, stored with T added.
template <int T>
struct Uniform {
    static constexpr float LOW = -T, HIGH = T - 1, CLOSE = 0.1f, GAP = 0.5f;
    static constexpr int ends_beyond(float step) {
        return (step < LOW - 0.45f || step > -LOW + 0.45f) + 2 * (step < -HIGH - 0.45f || step > HIGH + 0.45f);
    }
    static F nearest(F y, int ends = 3) {
        F v = round(y);
        if (ends & 2) v = min(v, set1(HIGH));
        if (ends & 1) v = max(v, set1(LOW));
        return v;
    }
    static F nearest(F y, I& code) {
        const F v = nearest(y);
        code = to_int(v + set1(-LOW));
        return v;
    }
};

// The sixteen values of iq4_nl and iq4_xs, denser around zero. `cell` is a parabola through which the fifteen midpoints
// between neighbours fall near -7 .. 7, so that each cell holds just one of them.
struct Nonlinear {
    static constexpr float LOW = -127, HIGH = 113, CLOSE = 1, GAP = 12;
    static constexpr float VALUES[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
    static constexpr float MIDPOINTS[16] = {-115.5f, -93.5f, -74,   -57,   -42, -28.5f, -16, -4.5f,
                                            7,       19,     31.5f, 45.5f, 61,  79,     101, 1e9f};
    static constexpr int ends_beyond(float step) {  // up to 180 the parabola stays below 15.5
        return (step < LOW || step > -LOW) + 2 * (step < -180 || step > 180);
    }
    static F nearest(F y, int ends = 3) {
        I code;
        return nearest(y, code, ends);
    }
    static F nearest(F y, I& code, int ends = 3) {
        if (ends & 2) y = min(y, set1(HIGH));
        if (ends & 1) y = max(y, set1(LOW));
        const F z = y + set1(4.5f);
        const I cell = to_int(round(z * (set1(0.09f) - set1(0.00024f) * abs(z)) + set1(7.0f)));
        code = cell + select(look_up(MIDPOINTS, cell) < y, set1i(1), set1i(0));
        return look_up(VALUES, code);
    }
};

}  // namespace QK_TIER
}  // namespace quantkit
