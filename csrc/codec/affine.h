// Super-blocks of affine sub-blocks (q2_k, q4_k, q5_k): x = d * scale * q - dmin * min, with f16 d and dmin for the
// super-block, whole scales and mins 0..SMAX for each of its SUBS sub-blocks of SUB elements, and codes 0..QMAX.
//
// 1. Each sub-block alone: its ends land at several fractional codes (ends.h), least squares gives scale and offset of
//    each trial's codes, one more round of codes and least squares follows the best.
// 2. d, then dmin: the trial near (largest / SMAX) whose whole multiples lie closest to what the sub-blocks want.
// 3. Whole scale and its neighbours with new codes for each sub-block; the min follows from the codes.
// 4. d and dmin by least squares for all codes; new codes, mins and d, dmin again.
// The plain candidate (ends at the end codes, largest / SMAX) and each refit compete by their true error as stored.
// 5. Only where sums of squares would drown in rounding, as far from zero: the same by what is left of each element.
//
// What bounds the speed: the pipes that add, round and compare. A trial takes 5 to 7 such operations an element (clamps
// only where it may leave the codes), the whole search of q4_k about 130.
#pragma once
#include <iterator>
#include <type_traits>
#include <utility>

#include "codec/ends.h"

namespace quantkit {
namespace QK_TIER {

template <int SUBS>
struct Affine {
    F d, dmin;                 // as stored; dmin of either sign
    F scale[SUBS], min[SUBS];  // whole
};

template <int SUB, int SUBS, int QMAX, int SMAX, class W>
class AffineSearch {
  public:
    using A = Affine<SUBS>;
    static constexpr int N = SUB * SUBS;

    AffineSearch(const Batch<N>& x, W w) : x_(x), w_(w) {}

    A run() {
        const F zero = set1(0.0f);
        A now;
        measure();
        for (int j = 0; j < SUBS; j++) search(j);
        choose_steps(now);
        for (int j = 0; j < SUBS; j++) settle<1>(j, now, round(scale_[j] * invert(now.d)), offset_[j]);
        refit(now);
        for (int j = 0; j < SUBS; j++) settle<0>(j, now, now.scale[j], zero - now.dmin * now.min[j] - sub_[j].base);
        refit(now);
        const F left = sum_left(now);
        F spread = zero;
        for (const Sub& b : sub_) spread = spread + b.range * b.range * b.sum_w;
        // The plain candidate is worth a look only where this may be worse than half a step in every element. New codes
        // can but lower the error that these sums tell, give or take their rounding.
        const M poor = set1(0.99f * 0.25f / (QMAX * QMAX)) * spread <= left;
        // Sub-blocks of nearly one magnitude, or of which next to nothing is left: what counts is how close whole
        // scales and mins come, and the sums drown in rounding.
        const M close = level_ | (left <= set1(std::min(0.01f / (QMAX * QMAX), 5e-5f)) * spread);
        return any(poor | close) ? compare(now, poor | close, close) : now;
    }

  private:
    // The best of several by their actual errors, in the lanes that ask for it: none may tell who its neighbours are.
    A compare(A now, M where, M close) {
        A best = now;
        F least = min(error(now), set1(3e38f));
        now = plain();
        const F e = error(now);
        take(best, least, now, where & (e < least), e);
        if (any(close)) {
            polish(best, least, best, close);
            polish(best, least, now, close);
            for (int j = 0; j < SUBS; j++) search_closely(j);
            choose_steps(now);
            for (int j = 0; j < SUBS; j++) settle<1>(j, now, round(scale_[j] * invert(now.d)), offset_[j]);
            polish(best, least, now, close);
        }
        return best;
    }

    static void take(A& best, F& least, const A& now, M better, F e) {
        least = select(better, e, least);
        best.d = select(better, now.d, best.d);
        best.dmin = select(better, now.dmin, best.dmin);
        for (int j = 0; j < SUBS; j++) {
            best.scale[j] = select(better, now.scale[j], best.scale[j]);
            best.min[j] = select(better, now.min[j], best.min[j]);
        }
    }

    // Sums over a sub-block under some codes: w q, w q^2, w q y.
    struct Codes {
        F q, qq, qy;
    };
    // A sub-block seen from its base: y = x - base >= 0.
    struct Sub {
        F base, range;                 // lowest offset that the sign of dmin allows, largest y
        F sum_w, inverse_w, wy, mean;  // sums of w and w y, 1 / sum w, mean of y
    };

    static F whole(F v) { return ::quantkit::QK_TIER::max(::quantkit::QK_TIER::min(round(v), set1(SMAX)), set1(0.0f)); }

    // Nearest f16, one unit up where f16 is so coarse that SMAX steps would fall short of the largest by more than half
    // a step.
    static F step_for(F step) {
        const F d = f16_round(step);
        return select(d * set1(SMAX + 0.5f) < step * set1(SMAX), d + set1(5.9604644775390625e-8f), d);
    }

    // All offsets of a super-block have one sign: not positive, but for lanes that lie above zero throughout.
    void measure() {
        const F zero = set1(0.0f), one = set1(1.0f);
        M positive = zero < one;
        F low[SUBS], high[SUBS], xx = zero, most = zero;
        for (int j = 0; j < SUBS; j++) {
            low[j] = high[j] = x_[j * SUB];
            for (int i = j * SUB; i < (j + 1) * SUB; i++) {
                low[j] = min(low[j], x_[i]);
                high[j] = max(high[j], x_[i]);
                xx = xx + x_[i] * x_[i];
            }
            positive = positive & (zero < low[j]);
            most = most + max(low[j] * low[j], high[j] * high[j]);
        }
        level_ = set1(0.5f * SUB) * most < xx;
        wyy_ = zero;
        sign_ = select(positive, set1(-1.0f), one);
        for (int j = 0; j < SUBS; j++) {
            Sub& b = sub_[j];
            b.base = select(positive, low[j], min(low[j], zero));
            b.range = max(high[j] - b.base, zero);
            b.sum_w = std::is_same_v<W, Ones> ? set1(SUB) : zero;
            b.wy = zero;
            for (int i = j * SUB; i < (j + 1) * SUB; i++) {
                const F y = x_[i] - b.base, wy = w_[i] * y;
                store(y_ + i * L, y);
                if (!std::is_same_v<W, Ones>) b.sum_w = b.sum_w + w_[i];
                b.wy = b.wy + wy;
                wyy_ = wyy_ + wy * y;
            }
            b.inverse_w = invert(b.sum_w);
            b.mean = b.wy * b.inverse_w;
        }
    }

    A plain() const {
        F range = set1(0.0f), base = range;
        for (const Sub& b : sub_) {
            range = max(range, b.range);
            base = max(base, abs(b.base));
        }
        A a;
        a.d = step_for(range * set1(1.0f / (QMAX * SMAX)));
        a.dmin = step_for(base * set1(1.0f / SMAX)) * sign_;
        const F per_scale = invert(a.d), per_min = invert(a.dmin);
        for (int j = 0; j < SUBS; j++) {
            a.scale[j] = whole(sub_[j].range * set1(1.0f / QMAX) * per_scale);
            a.min[j] = whole((set1(0.0f) - sub_[j].base) * per_min);
        }
        return a;
    }

    // Exactly what decoding gives.
    F error(int j, F s, F m) const {
        const F inverse = invert(s);
        F sum = set1(0.0f);
        for (int i = j * SUB; i < (j + 1) * SUB; i++) {
            const F e = x_[i] - (s * affine_code<QMAX>(x_[i] + m, inverse) - m);
            sum = sum + w_[i] * e * e;
        }
        return sum;
    }
    F error(const A& a) const {
        F sum = set1(0.0f);
        for (int j = 0; j < SUBS; j++) sum = sum + error(j, a.d * a.scale[j], a.dmin * a.min[j]);
        return sum;
    }

    // By actual errors alone: d and dmin fitted to what `now` leaves, then neighbours of each whole scale and min.
    void polish(A& best, F& least, A now, M where) const {
        const F zero = set1(0.0f), top = set1(SMAX);
        for (int round = 0; round < 3; round++) {
            refit_closely(now);
            F total = zero;
            for (int j = 0; j < SUBS; j++) {
                const F scale = now.scale[j], m = now.min[j];
                F lowest = set1(3e38f);
                for (int k = 0; k < 9; k++) {  // the one at hand first
                    const F s = max(min(scale + set1(static_cast<float>((k + 1) % 3 - 1)), top), zero);
                    const F n = max(min(m + set1(static_cast<float>((k / 3 + 1) % 3 - 1)), top), zero);
                    const F e = error(j, now.d * s, now.dmin * n);
                    const M better = e < lowest;
                    lowest = select(better, e, lowest);
                    now.scale[j] = select(better, s, now.scale[j]);
                    now.min[j] = select(better, n, now.min[j]);
                }
                total = total + lowest;
            }
            take(best, least, now, where & (total < least), total);
        }
    }

    // As refit, but from what is left of each element.
    void refit_closely(A& a) const {
        const F zero = set1(0.0f);
        F aa = zero, ab = zero, bb = zero, ae = zero, be = zero;
        for (int j = 0; j < SUBS; j++) {
            const F s = a.d * a.scale[j], m = a.dmin * a.min[j], inverse = invert(s);
            F qq = zero, q = zero, qe = zero, we = zero;
            for (int i = j * SUB; i < (j + 1) * SUB; i++) {
                const F v = affine_code<QMAX>(x_[i] + m, inverse), e = x_[i] - (s * v - m), wv = w_[i] * v;
                qq = qq + wv * v;
                q = q + wv;
                qe = qe + wv * e;
                we = we + w_[i] * e;
            }
            aa = aa + a.scale[j] * a.scale[j] * qq;
            ab = ab - a.scale[j] * a.min[j] * q;
            bb = bb + a.min[j] * a.min[j] * sub_[j].sum_w;
            ae = ae + a.scale[j] * qe;
            be = be - a.min[j] * we;
        }
        solve(a, aa, ab, bb, ae, be, a.d, a.dmin);
    }

    // d and dmin that solve the normal equations, from d0 and dmin0 on, where they can be told apart and are allowed.
    void solve(A& a, F aa, F ab, F bb, F ax, F bx, F d0, F dmin0) const {
        const F zero = set1(0.0f), det = aa * bb - ab * ab;
        const M solvable = set1(1e-6f) * aa * bb < det;
        const F inverse = set1(1.0f) / select(solvable, det, set1(1.0f));
        const F d = f16_round(d0 + (ax * bb - bx * ab) * inverse);
        const F dmin = f16_round(dmin0 + (bx * aa - ax * ab) * inverse);
        const M good = solvable & (zero < d) & (zero <= dmin * sign_);
        a.d = select(good, d, a.d);
        a.dmin = select(good, dmin, a.dmin);
    }

    // Rounds to a code; trial T (none below 0) may need no clamping.
    template <int T>
    static F code_of(F u) {
        constexpr Ends ENDS = T < 0 ? Ends{-1, -1} : Trials<QMAX>::ENDS[T < 0 ? 0 : T];
        F q = round(u);
        if (ENDS.last < -0.45f) q = min(q, set1(QMAX));
        if (ENDS.first < -0.5f) q = max(q, set1(0.0f));
        return q;
    }

    // Of codes round(y * inverse + first), K trials from T on at a time: their sums are chains that then run side by
    // side.
    template <int T, int K, std::size_t... k>
    void sum_codes(int j, const F (&first)[K], const F (&inverse)[K], Codes (&codes)[K],
                   std::index_sequence<k...>) const {
        const F zero = set1(0.0f);
        for (Codes& c : codes) c = {zero, zero, zero};
        for (int i = j * SUB; i < (j + 1) * SUB; i++) {
            const F y = load(y_ + i * L);
            const F q[K] = {code_of < T<0 ? T : T + static_cast<int>(k)>(y * inverse[k] + first[k])...};
            for (int c = 0; c < K; c++) {
                const F wq = w_[i] * q[c];
                codes[c].q = codes[c].q + wq;
                codes[c].qq = codes[c].qq + wq * q[c];
                codes[c].qy = codes[c].qy + wq * y;
            }
        }
    }
    template <int T, int K>
    void sum_codes(int j, const F (&first)[K], const F (&inverse)[K], Codes (&codes)[K]) const {
        sum_codes<T>(j, first, inverse, codes, std::make_index_sequence<K>());
    }

    // What codes with this scale and offset (from base) take off the error of all zero.
    static F gain(const Sub& b, const Codes& c, F scale, F offset) {
        const F two = set1(2.0f);
        return scale * (two * (c.qy - offset * c.q) - scale * c.qq) + offset * (two * b.wy - offset * b.sum_w);
    }

    // The error under stored d and dmin, by the codes' sums.
    F sum_left(const A& a) const {
        F left = wyy_;
        for (int j = 0; j < SUBS; j++)
            left = left - gain(sub_[j], codes_[j], a.d * a.scale[j], set1(0.0f) - a.dmin * a.min[j] - sub_[j].base);
        return left;
    }

    void consider(int j, const Codes& c, F& best) {
        const F zero = set1(0.0f), one = set1(1.0f);
        const Sub& b = sub_[j];
        const F mean_q = c.q * b.inverse_w, den = c.qq - c.q * mean_q, num = c.qy - c.q * b.mean;
        const M told_apart = c.qq * set1(4e-6f) < den;  // else one code, and den is rounding
        F scale = select(told_apart, max(num / select(told_apart, den, one), zero), zero);
        F offset = b.mean - scale * mean_q, g = scale * num + b.wy * b.mean;
        const M wrong = zero < (offset + b.base) * sign_;  // then the best that is allowed is none at all
        if (any(wrong)) {
            const F none = zero - b.base;
            scale = select(wrong, max((c.qy - none * c.q) / select(zero < c.qq, c.qq, one), zero), scale);
            offset = select(wrong, none, offset);
            g = select(wrong, gain(b, c, scale, offset), g);
        }
        const M better = best < g;
        best = select(better, g, best);
        scale_[j] = select(better, scale, scale_[j]);
        offset_[j] = select(better, offset, offset_[j]);
        keep(j, better, c);
    }

    void keep(int j, M better, const Codes& c) {
        codes_[j].q = select(better, c.q, codes_[j].q);
        codes_[j].qq = select(better, c.qq, codes_[j].qq);
        codes_[j].qy = select(better, c.qy, codes_[j].qy);
    }

    void search(int j) {
        const F zero = set1(0.0f), unit = invert(sub_[j].range);
        scale_[j] = offset_[j] = zero;
        codes_[j] = {zero, zero, zero};
        F best = set1(-1e30f);
        try_pairs(j, unit, best, std::make_index_sequence<std::size(Trials<QMAX>::ENDS) / 2>());
        const F inverse = invert(scale_[j]);
        try_codes<-1, 1>(j, {zero - offset_[j] * inverse}, {inverse}, best);
    }

    template <std::size_t... T>
    void try_pairs(int j, F unit, F& best, std::index_sequence<T...>) {
        (try_pair<2 * static_cast<int>(T)>(j, unit, best), ...);
    }
    template <int T>
    void try_pair(int j, F unit, F& best) {
        constexpr Ends a = Trials<QMAX>::ENDS[T], b = Trials<QMAX>::ENDS[T + 1];
        try_codes<T, 2>(j, {set1(a.first), set1(b.first)},
                        {unit * set1(QMAX - a.first - a.last), unit * set1(QMAX - b.first - b.last)}, best);
    }

    // The same by sums of what is left of each element, in units of the scale: however little that is, it counts.
    void search_closely(int j) {
        const F zero = set1(0.0f), one = set1(1.0f), unit = invert(sub_[j].range);
        const Sub& b = sub_[j];
        F least = set1(3e38f);
        for (const float steps : CLOSE_STEPS<QMAX>) {
            const F scale = b.range * set1(1.0f / steps), inverse = unit * set1(steps);
            F rr = zero, r = zero, q = zero, qq = zero, qr = zero;
            for (int i = j * SUB; i < (j + 1) * SUB; i++) {
                const F u = load(y_ + i * L) * inverse, v = min(round(u), set1(QMAX)), wv = w_[i] * v,
                        wr = w_[i] * (u - v);
                rr = rr + wr * (u - v);
                r = r + wr;
                q = q + wv;
                qq = qq + wv * v;
                qr = qr + wv * (u - v);
            }
            const F mean_q = q * b.inverse_w, den = qq - q * mean_q, num = qr - r * mean_q;
            const M told_apart = qq * set1(4e-6f) < den;
            F more = select(told_apart, num / select(told_apart, den, one), zero);
            F offset = (r - more * q) * b.inverse_w;
            const M wrong = zero < (offset * scale + b.base) * sign_;
            offset = select(wrong, zero - b.base * invert(scale), offset);
            more = select(wrong, (qr - offset * q) / select(zero < qq, qq, one), more);
            const F left = rr - more * (qr + qr - more * qq) - offset * (r + r - (more + more) * q - offset * b.sum_w);
            const F e = left * scale * scale;
            const M better = (e < least) & (zero < one + more);
            least = select(better, e, least);
            scale_[j] = select(better, scale + scale * more, scale_[j]);
            offset_[j] = select(better, offset * scale, offset_[j]);
            keep(j, better, {q, qq, (qq + qr) * scale});
        }
    }

    template <int T, int K>
    void try_codes(int j, const F (&first)[K], const F (&inverse)[K], F& best) {
        Codes codes[K];
        sum_codes<T>(j, first, inverse, codes);
        for (const Codes& c : codes) consider(j, c, best);
    }

    // The stored step whose whole multiples come closest to `want`, where a miss of one costs `cost`.
    static F choose_step(const F (&want)[SUBS], const F (&cost)[SUBS]) {
        const F zero = set1(0.0f);
        F largest = zero, least = set1(3e38f), best = zero;
        for (const F& v : want) largest = max(largest, v);
        for (int t = 0; t < 16; t++) {
            const F step = step_for(largest * set1(1.0f / (SMAX + 2 - t * (SMAX > 15 ? 1.0f : 0.5f)))),
                    inverse = invert(step);
            F miss = zero;
            for (int j = 0; j < SUBS; j++) {
                const F r = want[j] - step * whole(want[j] * inverse);
                miss = miss + cost[j] * r * r;
            }
            const M better = miss < least;
            least = select(better, miss, least);
            best = select(better, step, best);
        }
        return best;
    }

    void choose_steps(A& a) const {
        F want[SUBS], cost[SUBS];
        for (int j = 0; j < SUBS; j++) {
            want[j] = scale_[j];
            cost[j] = codes_[j].qq - codes_[j].q * codes_[j].q * sub_[j].inverse_w;
        }
        a.d = choose_step(want, cost);
        const F inverse = invert(a.d);
        for (int j = 0; j < SUBS; j++) {
            const Sub& b = sub_[j];
            const F scale = a.d * whole(scale_[j] * inverse);
            want[j] = (set1(0.0f) - sign_) * (b.base + b.mean - scale * codes_[j].q * b.inverse_w);
            cost[j] = b.sum_w;
        }
        a.dmin = choose_step(want, cost) * sign_;
    }

    // Whole scale among `around` +- REACH, new codes from `offset`, and the whole min that suits them.
    template <int REACH>
    void settle(int j, A& a, F around, F offset) {
        const F zero = set1(0.0f), top = set1(SMAX), per_min = invert(a.dmin);
        const Sub& b = sub_[j];
        constexpr int K = 2 * REACH + 1;
        F scale[K], s[K], first[K], inverse[K], best = set1(-3e38f);
        for (int k = 0; k < K; k++) {
            scale[k] = max(min(around + set1(k - REACH), top), zero);
            s[k] = a.d * scale[k];
            inverse[k] = invert(s[k]);
            // from the offset that is stored: where dmin is coarse it may lie far from what was wanted
            const F wanted = REACH ? b.mean - s[k] * codes_[j].q * b.inverse_w : offset;
            first[k] = (b.base + a.dmin * whole((zero - b.base - wanted) * per_min)) * inverse[k];
        }
        Codes codes[K];
        sum_codes<-1>(j, first, inverse, codes);
        a.scale[j] = a.min[j] = zero;
        for (int k = 0; k < K; k++) {
            const F m = whole((zero - (b.base + b.mean - s[k] * codes[k].q * b.inverse_w)) * per_min);
            const F g = gain(b, codes[k], s[k], zero - a.dmin * m - b.base);
            const M better = best < g;
            best = select(better, g, best);
            a.scale[j] = select(better, scale[k], a.scale[j]);
            a.min[j] = select(better, m, a.min[j]);
            keep(j, better, codes[k]);
        }
    }

    // d and dmin by least squares for the codes, scales and mins at hand.
    void refit(A& a) const {
        const F zero = set1(0.0f);
        F aa = zero, ab = zero, bb = zero, ax = zero, bx = zero;
        for (int j = 0; j < SUBS; j++) {
            const Sub& b = sub_[j];
            const Codes& c = codes_[j];
            const F s = a.scale[j], m = a.min[j];
            aa = aa + s * s * c.qq;
            ab = ab - s * m * c.q;
            bb = bb + m * m * b.sum_w;
            ax = ax + s * (c.qy + b.base * c.q);
            bx = bx - m * (b.wy + b.base * b.sum_w);
        }
        solve(a, aa, ab, bb, ax, bx, zero, zero);
    }

    const Batch<N>& x_;
    const W w_;
    alignas(64) float y_[N * L];
    F sign_, wyy_;
    M level_;
    Sub sub_[SUBS];
    F scale_[SUBS], offset_[SUBS];  // of each sub-block alone, from its base
    Codes codes_[SUBS];
};

template <int SUB, int SUBS, int QMAX, int SMAX, class W>
Affine<SUBS> search_affine(const Batch<SUB * SUBS>& x, W w) {
    return AffineSearch<SUB, SUBS, QMAX, SMAX, W>(x, w).run();
}

// All codes, and d and dmin as they are to be stored: as found, or what makes the codes unbiased.
template <int SUB, int SUBS, int QMAX, class W>
void find_codes(const Batch<SUB * SUBS>& x, W w, Affine<SUBS>& a, I (&q)[SUB * SUBS]) {
    const bool unbiased = x.unbiased;
    F xx = set1(0.0f), xy = xx;
    for (int j = 0; j < SUBS; j++) {
        const F s = a.d * a.scale[j], m = a.dmin * a.min[j], inverse = invert(s);
        for (int i = j * SUB; i < (j + 1) * SUB; i++) {
            const F v = affine_code<QMAX>(x[i] + m, inverse);
            q[i] = to_int(v);
            if (unbiased) {
                const F wx = w[i] * x[i];
                xx = xx + wx * x[i];
                xy = xy + wx * (s * v - m);
            }
        }
    }
    if (unbiased) {
        const F up = stretch(xx, xy, max(abs(a.d), abs(a.dmin)));
        a.d = a.d * up;
        a.dmin = a.dmin * up;
    }
}

}  // namespace QK_TIER
}  // namespace quantkit
