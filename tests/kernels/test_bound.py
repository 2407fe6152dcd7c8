"""No element is worse than the plain encoder's bound for its whole scale block: w_i e_i^2 <= sum_j w_j b_j^2.

The plain encoder takes the largest magnitude (or the range) of each block as its scale, and b_j is what the layout lets
its stored scales miss at element j: half a step, plus the rounding of each scale. Weights are those given, or ones
where all of a block's are zero.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.kernels.matrices import COLUMNS, ROWS, Matrix, column_weights, columns_of, matrices, rows_of

from quantkit.kernels import FORMATS, dequantize, quantize

Values = npt.NDArray[np.float64]
SLACK = 1 + 1e-5  # of the encoder's float32 arithmetic


def f16_miss(step: Values) -> Values:
    """How far the nearest f16 may lie, one unit where it is so coarse that the encoder takes the next one up."""
    return np.maximum(step * 2.0**-11, 2.0**-24)


def one_scale(lowest: float, half_gap: float) -> Callable[[Values], Values]:
    """x = d * v, the largest magnitude at the value `lowest`; half_gap: the largest miss in units of d."""

    def bound(x: Values) -> Values:
        d = np.abs(x).max(-1, keepdims=True) / lowest
        return half_gap * d + lowest * f16_miss(d)

    return bound


def scale_and_offset(top: int) -> Callable[[Values], Values]:
    def bound(x: Values) -> Values:
        low = x.min(-1, keepdims=True)
        d = (x.max(-1, keepdims=True) - low) / top
        return d / 2 + top * f16_miss(d) + 2 * f16_miss(np.abs(low))

    return bound


def scales_of_sub_blocks(size: int, lowest: float, half_gap: float, scales: int) -> Callable[[Values], Values]:
    """x = d * s * v with whole s up to `scales`; the largest step is d * scales."""

    def bound(x: Values) -> Values:
        step = np.abs(x.reshape(*x.shape[:-1], -1, size)).max(-1, keepdims=True) / lowest
        d = step.max(-2, keepdims=True) / scales
        b = half_gap * step + lowest * (d / 2 + scales * f16_miss(d))
        return np.broadcast_to(b, (*b.shape[:-1], size)).reshape(x.shape)

    return bound


def affine_sub_blocks(size: int, top: int, scales: int) -> Callable[[Values], Values]:
    """x = d * s * q - dmin * m with whole s and m up to `scales`; the offset has one sign in a super-block."""

    def bound(x: Values) -> Values:
        sub = x.reshape(*x.shape[:-1], -1, size)
        low = sub.min(-1, keepdims=True)
        low = np.where((low > 0).all(-2, keepdims=True), low, np.minimum(low, 0))
        step = (sub.max(-1, keepdims=True) - low) / top
        d, dmin = step.max(-2, keepdims=True) / scales, np.abs(low).max(-2, keepdims=True) / scales
        b = step / 2 + top * (d / 2 + scales * f16_miss(d)) + dmin / 2 + scales * f16_miss(dmin)
        return np.broadcast_to(b, (*b.shape[:-1], size)).reshape(x.shape)

    return bound


def power_of_two(x: Values) -> Values:
    """x = 2^e * {0 .. 4, 6}; the block's largest lies in 4 .. 8 times 2^e, and 2^-128 is the least step of all."""
    largest = np.maximum(np.abs(x).max(-1, keepdims=True), 2.0**-126)
    return 2 * 2.0 ** (np.floor(np.log2(largest)) - 2)


BOUNDS = {
    "q4_0": one_scale(8, 1),  # the codes end at 7, one step short of the other sign's 8
    "q5_0": one_scale(16, 1),
    "q8_0": one_scale(127, 0.5),
    "iq4_nl": one_scale(127, 14),  # 113 for what lies at the other sign's 127
    "mxfp4": power_of_two,
    "q4_1": scale_and_offset(15),
    "q5_1": scale_and_offset(31),
    "q3_k": scales_of_sub_blocks(16, 4, 1, 31),
    "q6_k": scales_of_sub_blocks(16, 32, 1, 127),
    "iq4_xs": scales_of_sub_blocks(32, 127, 14, 31),
    "q2_k": affine_sub_blocks(16, 3, 15),
    "q4_k": affine_sub_blocks(32, 15, 63),
    "q5_k": affine_sub_blocks(32, 31, 63),
}
NAMES = [name for name, found in FORMATS.items() if found.block_size > 1]


def worst_over_bound(name: str, x: Matrix, importance: Matrix | None) -> float:
    """max w_i e_i^2 / sum_j w_j b_j^2 over all blocks."""
    size = FORMATS[name].block_size
    blocks = x.astype(np.float64).reshape(-1, size)
    columns = np.ones(x.shape[1]) if importance is None else importance.astype(np.float64)
    w = np.broadcast_to(columns, x.shape).reshape(-1, size)
    largest = w.max(-1, keepdims=True)
    w = np.where(largest > 0, w / np.where(largest > 0, largest, 1), 1.0)
    e = (
        dequantize(quantize(x, name, importance=importance, threads=1), name).astype(np.float64).reshape(-1, size)
        - blocks
    )
    allowed = (w * BOUNDS[name](blocks) ** 2).sum(-1, keepdims=True)
    assert np.isfinite(e).all()
    # squares of float32 vanish below 1e-38 or so, and with them the encoder's sight of the error
    return float((w * e**2 / (allowed * SLACK + 1e-37)).max())


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_bound(name: str, data: st.DataObject) -> None:
    x = data.draw(matrices(FORMATS[name].block_size))
    assert worst_over_bound(name, x, data.draw(column_weights(x.shape[1]))) <= 1


@pytest.mark.parametrize("weights", [None, *COLUMNS])
@pytest.mark.parametrize("name", NAMES)
def test_bound_on_every_kind_of_row(name: str, weights: str | None) -> None:
    x = rows_of(list(ROWS) * 4, 1024, 11)
    assert worst_over_bound(name, x, None if weights is None else columns_of(weights, 1024, 12)) <= 1
