// Scale and bias of a group: x = scale * q + bias, codes 0 .. 2^bits - 1.
//
// Seen from the group, u = (x - base) / unit: base and unit are the smallest element and the range, or in a symmetric
// group 0 and the negative of the largest magnitude. A trial line says where u lands, t = u * inverse + first, its
// codes q are the nearest, r = t - q what they miss. Sums of r, r^2 and r u tell the error of these codes under *any*
// scale and bias, so that it is known for what least squares makes of them, rounded as it will be stored; being made of
// what is missed, they do not cancel at 8 bits. With 16-bit scales a trial line is itself one that can be stored,
// unless time is short.
//
// Trials: MLX's own line, with its own arithmetic, which is kept unless another is better; then lines whose ends land
// at several fractional codes. Where floats are so coarse next to the codes (a group far from zero) that decoding's own
// rounding counts, the errors of MLX's, of the plain line and of the best found are taken as decoding has them.
//
// Every weight the same, groups up to 128: two trials (four at 2 and 3 bits) and MLX's line as it is. With importance:
// many, and a round from the best. A whole row takes narrower and narrower windows as well, and lines beside the best.
#pragma once
#include "codec/ends.h"
#include "codec/group_batch.h"
#include "codec/group_codes.h"
#include "codec/group_trials.h"
#include "groups.h"

namespace quantkit {
namespace QK_TIER {

inline F bf16_round(F a) {
    const I u = bits(a), odd = shr<16>(u) & set1i(1);
    return from_bits((u + set1i(0x7fff) + odd) & set1i(static_cast<int32_t>(0xffff0000u)));
}

// What a scalar of that type stores.
inline F stored_as(Scalar type, F a) {
    return type == Scalar::f32 ? a : type == Scalar::f16 ? f16_round(a) : bf16_round(a);
}

template <bool SYMMETRIC, class W>
class GroupSearch {
  public:
    F scale, bias;  // as stored

    GroupSearch(const GroupBatch& x, W w, const GroupJob& job)
        : x_(x),
          w_(w),
          type_(job.scale_type),
          bits_(job.bits),
          quick_(std::is_same_v<W, Ones> && x.n <= 128),
          steps_(static_cast<float>((1 << job.bits) - 1)),
          middle_(static_cast<float>(1 << (job.bits - 1))) {
        const F zero = set1(0.0f);
        scale = bias = divided_ = zero;
        least_ = set1(3e38f);
        set_unit();
        const bool whole_row = x.n > 128;
        if constexpr (SYMMETRIC) {
            try_first_lines<true, 1>({{plain_scale(), zero}});
            const StepsList steps = list_of_steps(bits_, quick_);
            for (int k = 0; k < steps.count; k++) try_step(steps.steps[k]);
        } else {
            if (type_ == Scalar::f32)
                quick_ ? try_first_lines<false, 1>({mlx_line()}) : try_first_lines<true, 1>({mlx_line()});
            else
                quick_ ? try_first_lines<false, 2>({mlx_line(), covering_line()})
                       : try_first_lines<true, 2>({mlx_line(), covering_line()});
            const EndsList ends = ends_for(bits_, quick_);
            for (int k = 0; k < ends.count; k += 2) try_ends(ends.ends[k], ends.ends[k + 1], ends.clamped);
        }
        if (whole_row) {
            try_windows();
            try_line(scale, bias);
            try_around();
        }
        if (!quick_ || (SYMMETRIC && type_ != Scalar::f32)) try_line(scale, bias);
        if constexpr (SYMMETRIC) bias = centred(scale).bias;
        settle_coarse();
    }

    Coder coder() const { return {scale, bias, set1(0.0f) < divided_, steps_}; }

  private:
    static constexpr int CHUNK = 128;  // sums are added up in chunks, so that those of a long row stay exact

    static constexpr int WINDOWS = 16;
    static constexpr float CANCELLING = 1.0f / (1 << 20);

    struct Line {
        F scale, bias;
    };
    struct Sums {
        F r, rr, ru;
    };
    struct Trial {
        F first, inverse;
        Sums sums;
    };

    F stored(F a) const { return stored_as(type_, a); }

    void set_unit() {
        const F zero = set1(0.0f), one = set1(1.0f);
        if constexpr (SYMMETRIC) {
            base_ = zero;
            unit_ = zero - select(zero - x_.low < x_.high, x_.high, x_.low);
        } else {
            base_ = x_.low;
            unit_ = x_.high - x_.low;
        }
        up_ = power_that_normalises(unit_);
        even_unit_ = unit_ * up_;
        const M none = even_unit_ == zero;
        inverse_unit_ = select(none, zero, one / select(none, one, even_unit_));
    }

    // The power of two that brings a into [1, 2), or as near as there is one. |a| < 2^127.
    static F power_that_normalises(F a) { return from_bits(set1i(254 << 23) - (bits(a) & set1i(255 << 23))); }

    // The largest magnitude lands on the first code.
    F plain_scale() const { return stored(unit_ * set1(1.0f / middle_)); }

    Line centred(F s) const { return {s, set1(0.0f) - s * set1(middle_)}; }

    // MLX's arithmetic: the end of larger magnitude keeps its value, and zero is a whole number of steps from it.
    Line mlx_line() const {
        const F zero = set1(0.0f);
        const M low_is_larger = abs(x_.high) < abs(x_.low);
        F s = max((x_.high - x_.low) / set1(steps_), set1(1e-7f));
        s = select(low_is_larger, s, zero - s);
        const F end = select(low_is_larger, x_.low, x_.high), whole = round(end / s);
        const M at_zero = whole == zero;
        s = select(at_zero, s, end / select(at_zero, set1(1.0f), whole));
        return {stored(s), stored(select(at_zero, zero, end))};
    }

    // The bias at or just below the smallest element, the largest at or just below the last code.
    Line covering_line() const {
        if (type_ == Scalar::f32) return {(x_.high - x_.low) / set1(steps_), x_.low};
        const bool half = type_ == Scalar::f16;
        const F nearest = stored(x_.low),
                unit = max(abs(x_.low) * set1(half ? 4.8828125e-4f : 3.90625e-3f), set1(half ? 2.98023224e-8f : 0.0f));
        const F b = select(x_.low < nearest, stored(x_.low - unit), nearest);
        const F s = (x_.high - b) / set1(steps_), near = stored(s);
        const F above = max(s * set1(half ? 4.8828125e-4f : 3.90625e-3f), set1(half ? 2.98023224e-8f : 0.0f));
        return {select(near < s, stored(s + above), near), b};
    }

    void try_line(F s, F b) {
        const Line line[1] = {{s, b}};
        try_lines(line);
    }

    // Lines as they are stored.
    template <int K>
    void try_lines(const Line (&lines)[K]) {
        Trial trials[K];
        sum_lines<true>(lines, trials);
        for (int k = 0; k < K; k++) offer_all(lines[k], trials[k]);
    }

    // Before all others: u is made on the way. The first is MLX's unless symmetric. Their codes may serve other scales
    // and biases too.
    template <bool FITS, int K>
    void try_first_lines(const Line (&lines)[K]) {
        Trial trials[K];
        sum_lines<FITS, true>(lines, trials);
        for (int k = 0; k < K; k++) {
            offer(lines[k].scale, lines[k].bias, trials[k].first, trials[k].inverse, trials[k].sums);
            if (FITS) offer_fits(trials[k].first, trials[k].inverse, trials[k].sums);
            if (k || SYMMETRIC) continue;
            least_ = least_ * set1(1 - 1.0f / 2048);  // so much may the sums be off
        }
    }

    template <bool FITS, bool FIRST = false, int K>
    void sum_lines(const Line (&lines)[K], Trial (&trials)[K]) {
        const F zero = set1(0.0f), one = set1(1.0f);
        F first[K], inverse[K];
        for (int k = 0; k < K; k++) {
            const F even = lines[k].scale * up_;
            const M none = even == zero;
            const F per_step = select(none, zero, one / select(none, one, even));
            inverse[k] = even_unit_ * per_step;
            first[k] = SYMMETRIC ? set1(middle_) : ((base_ - lines[k].bias) * up_) * per_step;
        }
        Sums sums[K];
        sum_misses<true, FITS, FIRST>(first, inverse, sums);
        for (int k = 0; k < K; k++) trials[k] = {first[k], inverse[k], sums[k]};
    }

    void offer_all(const Line& line, const Trial& trial) {
        offer(line.scale, line.bias, trial.first, trial.inverse, trial.sums);
        offer_fits(trial.first, trial.inverse, trial.sums);
    }

    void try_step(float step) {
        if (type_ != Scalar::f32) return try_line(stored(unit_ * set1(1.0f / step)), set1(0.0f));
        const F first[1] = {set1(middle_)}, inverse[1] = {set1(step)};
        Sums sums[1];
        sum_misses<true, true>(first, inverse, sums);
        offer_fits(first[0], inverse[0], sums[0]);
    }

    void try_ends(const Ends& a, const Ends& b, bool clamped) {
        if (type_ != Scalar::f32 && !quick_) {
            const F s = stored(unit_ * set1(1.0f / (steps_ - a.first - a.last)));
            const F t = stored(unit_ * set1(1.0f / (steps_ - b.first - b.last)));
            return try_lines<2>({{s, stored(base_ - s * set1(a.first))}, {t, stored(base_ - t * set1(b.first))}});
        }
        const F first[2] = {set1(a.first), set1(b.first)};
        const F inverse[2] = {set1(steps_ - a.first - a.last), set1(steps_ - b.first - b.last)};
        Sums sums[2];
        if (clamped)
            sum_misses<true, true>(first, inverse, sums);
        else
            sum_misses<false, true>(first, inverse, sums);
        for (int k = 0; k < 2; k++) offer_fits(first[k], inverse[k], sums[k]);
    }

    // A whole row is so wide that its ends are better cut off: windows around the mean, each narrower than the last.
    void try_windows() {
        const F mean = SYMMETRIC ? set1(0.0f) : sum_u_ * inverse_w_;
        F half = SYMMETRIC ? set1(1.0f) : max(mean, set1(1.0f) - mean);
        for (int k = 0; k < WINDOWS; k += 2) {
            Line lines[2];
            for (Line& line : lines) {
                line = {stored(half * set1((SYMMETRIC ? 1.0f : 2.0f) / (SYMMETRIC ? middle_ : steps_)) * unit_),
                        SYMMETRIC ? set1(0.0f) : stored(base_ + (mean - half) * unit_)};
                half = half * set1(0.87f);
            }
            try_lines(lines);
        }
    }

    // The error leaps where a few weights in the tails change their codes, so that the best lies beside the windows:
    // a little wider or narrower, and shifted by parts of a step, or of the other sign, which has its extra code at the
    // other end.
    void try_around() {
        if constexpr (SYMMETRIC) {
            for (const float closer : {0.03f, 0.01f}) {
                const F best = scale;
                for (int k = 1; k <= (closer < 0.02f ? 2 : 3); k++)
                    for (const float sign : {1.0f, -1.0f}) {
                        const float by = closer * static_cast<float>(k);
                        const Line lines[2] = {{stored(best * set1(sign * (1 + by))), set1(0.0f)},
                                               {stored(best * set1(sign / (1 + by))), set1(0.0f)}};
                        try_lines(lines);
                    }
            }
        } else {
            const F best = scale, centre = bias + best * set1(0.5f * steps_);
            for (const float wider : {1 / 1.08f, 1 / 1.04f, 1.0f, 1.04f, 1.08f}) {
                const F s = stored(best * set1(wider)), first = centre - s * set1(0.5f * steps_);
                const Line below[2] = {{s, stored(first - s * set1(0.5f))}, {s, stored(first - s * set1(0.25f))}};
                const Line above[2] = {{s, stored(first)}, {s, stored(first + s * set1(0.25f))}};
                try_lines(below);
                try_lines(above);
            }
        }
    }

    // Of the codes nearest to u * inverse + first, K lines at a time. The first pass makes u, and its own sums.
    template <bool CLAMP, bool FITS, bool FIRST = false, int K>
    void sum_misses(const F (&first)[K], const F (&inverse)[K], Sums (&sums)[K]) {
        const F zero = set1(0.0f), top = set1(steps_);
        for (Sums& s : sums) s = {zero, zero, zero};
        if (FIRST) sum_w_ = sum_u_ = sum_uu_ = zero;
        for (int start = 0; start < x_.n; start += CHUNK) {
            const int end = std::min(x_.n, start + CHUNK);
            Sums some[K];
            for (Sums& s : some) s = {zero, zero, zero};
            F some_w = zero, some_u = zero, some_uu = zero;
            for (int i = start; i < end; i++) {
                if (FITS) fetch_ahead(x_.next + i * x_.next_step);
                const F u = FIRST ? ((x_[i] - base_) * up_) * inverse_unit_ : load(x_.u + i * L);
                if (FIRST) {
                    const F wu = w_[i] * u;
                    store(x_.u + i * L, u);
                    some_w = some_w + w_[i];
                    some_u = some_u + wu;
                    some_uu = some_uu + wu * u;
                }
                for (int k = 0; k < K; k++) {
                    const F t = u * inverse[k] + first[k];
                    F q = round(t);
                    if (CLAMP) q = max(min(q, top), zero);
                    const F r = t - q, wr = w_[i] * r;
                    some[k].rr = some[k].rr + wr * r;
                    if (!FITS) continue;
                    some[k].r = some[k].r + wr;
                    some[k].ru = some[k].ru + wr * u;
                }
            }
            for (int k = 0; k < K; k++)
                sums[k] = {sums[k].r + some[k].r, sums[k].rr + some[k].rr, sums[k].ru + some[k].ru};
            if (!FIRST) continue;
            sum_w_ = sum_w_ + some_w;
            sum_u_ = sum_u_ + some_u;
            sum_uu_ = sum_uu_ + some_uu;
        }
        if (!FIRST) return;
        if (std::is_same_v<W, Ones>) sum_w_ = set1(static_cast<float>(x_.n));
        inverse_w_ = set1(1.0f) / sum_w_;
    }

    // Squared error, in units of u, of a trial's codes under a stored scale and bias: the miss of an element is
    // a u + step r - c. A trial that cuts off an outlier, and a scale that does not, are large terms that cancel: what
    // they leave is uncertain by a part of their size, and counts as if it were that much more.
    void offer(F s, F b, F first, F inverse, const Sums& sums) {
        const F two = set1(2.0f), step = (s * up_) * inverse_unit_, a = set1(1.0f) - step * inverse;
        const F stretched = a * a * sum_uu_, missed = step * step * sums.rr;
        F e = stretched + missed + two * a * step * sums.ru, size = stretched + missed;
        M better;
        if constexpr (SYMMETRIC) {
            e = e + size * set1(CANCELLING);
            better = (e < least_) & (abs(s) * set1(middle_) <= set1(type_ == Scalar::f16 ? F16_MAX : F32_MAX));
        } else {
            const F c = step * first + ((b - base_) * up_) * inverse_unit_;
            const F moved = c * c * sum_w_;
            e = e + moved - two * c * (a * sum_u_ + step * sums.r);
            size = size + moved;
            e = e + size * set1(CANCELLING);
            better = e < least_;
        }
        least_ = select(better, e, least_);
        scale = select(better, s, scale);
        bias = select(better, b, bias);
    }

    // What least squares makes of a trial's codes.
    void offer_fits(F first, F inverse, const Sums& sums) {
        const F zero = set1(0.0f), one = set1(1.0f), two = set1(2.0f);
        if constexpr (SYMMETRIC) {
            const F qq = inverse * (inverse * sum_uu_ - two * sums.ru) + sums.rr, uq = inverse * sum_uu_ - sums.ru;
            const M some = zero < qq;
            offer(stored(select(some, uq / select(some, qq, one), zero) * unit_), zero, first, inverse, sums);
        } else {
            const F q = inverse * sum_u_ + first * sum_w_ - sums.r;
            const F uq = inverse * sum_uu_ + first * sum_u_ - sums.ru;
            const F qq = inverse * (uq - sums.ru) + first * (q - sums.r) + sums.rr;
            const F mean_q = q * inverse_w_, den = qq - q * mean_q;
            const M told_apart = qq * set1(4e-6f) < den;  // else one code, and den is rounding
            const F fitted = select(told_apart, (uq - sum_u_ * mean_q) / select(told_apart, den, one), zero);
            const F s = stored(fitted * unit_), step = (s * up_) * inverse_unit_;
            offer(s, stored(base_ + (sum_u_ - step * q) * inverse_w_ * unit_), first, inverse, sums);
            if (type_ == Scalar::f32) return;
            // the other way round: the scale makes up for the bias's rounding
            const F b = stored(base_ + (sum_u_ - fitted * q) * inverse_w_ * unit_);
            const F offset = ((b - base_) * up_) * inverse_unit_;
            const M some = zero < qq;
            offer(stored(select(some, (uq - offset * q) / select(some, qq, one), zero) * unit_), b, first, inverse,
                  sums);
        }
    }

    // As decoding has it; up: a power of two that keeps squares in range.
    F true_error(const Line& line, F up) const {
        const F zero = set1(0.0f), top = set1(steps_), d = Coder::safe_divisor(line.scale);
        F sum = zero;
        for (int start = 0; start < x_.n; start += CHUNK) {
            const int end = std::min(x_.n, start + CHUNK);
            F some = zero;
            for (int i = start; i < end; i++) {
                const F q = max(min(round((x_[i] - line.bias) / d), top), zero);
                const F e = (x_[i] - (line.scale * q + line.bias)) * up;
                some = some + w_[i] * e * e;
            }
            sum = sum + some;
        }
        return sum;
    }

    void settle_coarse() {
        const F step = (scale * up_) * inverse_unit_;
        const M coarse =
            (abs(scale) * set1(512.0f) <= x_.max_abs) | (least_ <= step * step * sum_w_ * set1(1.0f / 256));
        if (!any(coarse)) return;
        const F up = power_that_normalises(x_.max_abs), margin = set1(1 - 1.0f / 16384);
        const Line lines[] = {SYMMETRIC ? centred(plain_scale()) : mlx_line(), {scale, bias}, covering_line()};
        Line best = lines[0];
        F least = true_error(best, up);
        for (int k = 1; k < (SYMMETRIC ? 2 : 3); k++) {
            const F e = true_error(lines[k], up);
            const M better = e < least * margin;
            least = select(better, e, least);
            best.scale = select(better, lines[k].scale, best.scale);
            best.bias = select(better, lines[k].bias, best.bias);
        }
        scale = select(coarse, best.scale, scale);
        bias = select(coarse, best.bias, bias);
        divided_ = select(coarse, set1(1.0f), divided_);
    }

    const GroupBatch& x_;
    const W w_;
    const Scalar type_;
    const int bits_;
    const bool quick_;
    const float steps_, middle_;  // 2^bits - 1, 2^(bits - 1)
    F base_, unit_, up_, even_unit_, inverse_unit_;
    F sum_w_, inverse_w_, sum_u_, sum_uu_;
    F least_;    // of the offers so far
    F divided_;  // 1 in lanes whose codes come out of a division, as MLX's do
};

}  // namespace QK_TIER
}  // namespace quantkit
