"""How far a weight may be off, derived from the layout of its format.

For every format there is a *plain* encoding: the largest magnitude of a block (or its range) becomes the scale, each
scale is rounded to what the layout stores, each weight to the nearest code. From the layout alone follows a bound b_j
on the error of element j under it. An encoder that searches keeps the plain encoding unless another has a smaller
weighted error, so that over the block (the super-block, where there is one)

    w_i e_i^2  <=  sum_j w_j e_j^2  <=  sum_j w_j b_j^2        for every element i,

with w the importance of the columns, or ones. That is what `assert_within_bound` checks: it holds for quantkit's
encoders, and for any other that is never worse than plain rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from quantkit.errors import UsageError
from quantkit.kernels.formats import find_format

Values = npt.NDArray[np.float64]
Bound = Callable[[Values], Values]
"""(..., block_size) weights -> (..., block_size) bounds on |error|."""


def f16_miss(scale: Values) -> Values:
    """How far a stored f16 scale may lie from `scale` >= 0.

    Proof: f16 has 11 significant bits, so the nearest is within 2^-11 of it; below 2^-14 its unit is 2^-24, and one
    whole unit is allowed because an encoder may take the next f16 up where the nearest would not reach the extremes.
    """
    return np.maximum(scale * 2.0**-11, 2.0**-24)


def stored_exactly() -> Bound:
    """x as it is (f32). Proof: nothing is rounded."""
    return np.zeros_like


def rounded(significant_bits: int, least_exponent: int) -> Bound:
    """The nearest float of fewer bits (f16, bf16).

    Proof: half a unit in the last place is at most |x| 2^-bits, and half of 2^least_exponent among the subnormals.
    """

    def bound(x: Values) -> Values:
        return np.maximum(np.abs(x) * 2.0**-significant_bits, 2.0 ** (least_exponent - 1))

    return bound


def one_scale(lowest: float, half_gap: float) -> Bound:
    """x = d * v, v on a grid that reaches `lowest` on one side; `half_gap`: the largest miss of the grid in units of d.

    Proof: d = max|x| / lowest, with the sign that puts the extreme on `lowest`, leaves every x within half_gap * d of
    some d * v; storing d moves that by at most |v| * f16_miss(d) <= lowest * f16_miss(d).
    """

    def bound(x: Values) -> Values:
        d = np.abs(x).max(-1, keepdims=True) / lowest
        return np.broadcast_to(half_gap * d + lowest * f16_miss(d), x.shape)

    return bound


def scale_and_offset(top: int) -> Bound:
    """x = d * q + m, q = 0 .. top.

    Proof: m = min x and d = (max x - m) / top leave half a step; storing d moves d * q by top * f16_miss(d) at most,
    and storing m moves all by f16_miss(|m|), twice that where the code is chosen for the m that was not rounded.
    """

    def bound(x: Values) -> Values:
        low = x.min(-1, keepdims=True)
        d = (x.max(-1, keepdims=True) - low) / top
        return np.broadcast_to(d / 2 + top * f16_miss(d) + 2 * f16_miss(np.abs(low)), x.shape)

    return bound


def scales_of_sub_blocks(size: int, lowest: float, half_gap: float, scales: int) -> Bound:
    """x = d * s * v: an f16 d for the super-block, whole s up to `scales` for each sub-block of `size`.

    Proof: as one_scale for each sub-block's step t = max|x| / lowest; d = max t / scales stores t to half of d (s is
    whole), and storing d moves d * s by scales * f16_miss(d) at most; either counts |v| <= lowest times.
    """

    def bound(x: Values) -> Values:
        step = np.abs(_sub_blocks(x, size)).max(-1, keepdims=True) / lowest
        d = step.max(-2, keepdims=True) / scales
        return _spread(half_gap * step + lowest * (d / 2 + scales * f16_miss(d)), x, size)

    return bound


def affine_sub_blocks(size: int, top: int, scales: int) -> Bound:
    """x = d * s * q - dmin * m: f16 d and dmin for the super-block, whole s and m up to `scales` for each sub-block.

    Proof: offset low and step t = (max x - low) / top leave half a step, low being min x, or 0 where min x is positive
    and the super-block is not (dmin has one sign); t is stored to d / 2 + scales * f16_miss(d), which counts q <= top
    times, and low to dmin / 2 + scales * f16_miss(dmin).
    """

    def bound(x: Values) -> Values:
        sub = _sub_blocks(x, size)
        low = sub.min(-1, keepdims=True)
        low = np.where((low > 0).all(-2, keepdims=True), low, np.minimum(low, 0))
        step = (sub.max(-1, keepdims=True) - low) / top
        d, dmin = step.max(-2, keepdims=True) / scales, np.abs(low).max(-2, keepdims=True) / scales
        b = step / 2 + top * (d / 2 + scales * f16_miss(d)) + dmin / 2 + scales * f16_miss(dmin)
        return _spread(b, x, size)

    return bound


def power_of_two() -> Bound:
    """x = 2^e * {0, 0.5, 1, 1.5, 2, 3, 4, 6} (mxfp4).

    Proof: e = floor(log2 max|x|) - 2 puts the largest between 4 and 8 times 2^e, where it is 2 * 2^e from 6 at most;
    all other gaps are halved to less. No e lies below the one that belongs to 2^-126.
    """

    def bound(x: Values) -> Values:
        largest = np.maximum(np.abs(x).max(-1, keepdims=True), 2.0**-126)
        return np.broadcast_to(2 * 2.0 ** (np.floor(np.log2(largest)) - 2), x.shape)

    return bound


def _sub_blocks(x: Values, size: int) -> Values:
    return x.reshape(*x.shape[:-1], -1, size)


def _spread(b: Values, x: Values, size: int) -> Values:
    """A bound for each sub-block, as one for each element."""
    return np.broadcast_to(b, (*b.shape[:-1], size)).reshape(x.shape)


def stretched(allowed: Values, squares: Values) -> Values:
    """What sum_j w_j e_j^2 of a block may be with weighting "unbiased", which multiplies all its scales by c <= 5/4.

    Proof: with y what plain weighting decodes, A = allowed >= sum w (x - y)^2 and S = squares = sum w x^2, the angle t
    between x and y has sin^2 t <= A / S, and c y with sum w x c y = S lies S tan^2 t <= A / (1 - A / S) from x; where c
    is held at 5/4, it lies |x - y| + |y| / 4 <= 5/4 sqrt A + sqrt S / 4 from it at most. Storing the new scales adds
    what storing the old ones did, times c, which b holds already: 5/4 sqrt A.
    """
    left = 1 - allowed / np.where(squares > 0, squares, 1)
    tangent = np.where(left > 0, allowed / np.where(left > 0, left, 1), np.inf)
    held = (1.25 * np.sqrt(allowed) + np.sqrt(squares) / 4) ** 2
    reached: Values = (np.sqrt(np.minimum(tangent, held)) + 1.25 * np.sqrt(allowed)) ** 2
    return reached


BOUNDS: dict[str, Bound] = {
    "f32": stored_exactly(),
    "f16": rounded(11, -24),
    "bf16": rounded(8, -133),
    "q4_0": one_scale(8, 1),  # the codes end at 7, one step short of the other sign's 8
    "q5_0": one_scale(16, 1),
    "q8_0": one_scale(127, 0.5),
    "iq4_nl": one_scale(127, 14),  # 113 for what lies at the other sign's 127
    "mxfp4": power_of_two(),
    "q4_1": scale_and_offset(15),
    "q5_1": scale_and_offset(31),
    "q3_k": scales_of_sub_blocks(16, 4, 1, 31),
    "q6_k": scales_of_sub_blocks(16, 32, 1, 127),
    "iq4_xs": scales_of_sub_blocks(32, 127, 14, 31),
    "q2_k": affine_sub_blocks(16, 3, 15),
    "q4_k": affine_sub_blocks(32, 15, 63),
    "q5_k": affine_sub_blocks(32, 31, 63),
}
"""The bound of each of quantkit.kernels.FORMATS."""


def error_bounds(weights: npt.NDArray[Any], format: str) -> Values:
    """b_j, the bound on each weight's error under the plain encoding: float64 of the shape of `weights` (..., cols).

    Raises:
        UsageError: the format is unknown, or cols is no whole number of its blocks.
    """
    size = find_format(format).block_size
    if not weights.ndim or weights.shape[-1] % size:
        raise UsageError(f"{format} stores blocks of {size} weights; shape {weights.shape} is not made of such rows")
    x = np.asarray(weights, np.float64)
    return BOUNDS[format](x.reshape(-1, size)).reshape(x.shape)
