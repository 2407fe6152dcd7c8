"""Bounds for groups in MLX's affine layout: x = scale * q + bias, q = 0 .. 2^bits - 1 (quantize_groups)."""

from __future__ import annotations

from typing import Any

import numpy as np

from quantkit.errors import UsageError
from quantkit.kernels import dequantize_groups
from quantkit.kernels.arrays import float_array
from quantkit.testing.asserts import check_blocks, to_float64
from quantkit.testing.bounds import Values

_EPSILON = {"f32": 2.0**-23, "f16": 2.0**-10, "bf16": 2.0**-7}
_LEAST = {"f32": 2.0**-149, "f16": 2.0**-24, "bf16": 2.0**-133}
_SLACK = 1 + 1e-3  # the search takes MLX's line to be worse by 1/2048 than its sums say, and sums in float32


def group_error_bounds(
    weights: Any, bits: int = 4, group_size: int = 64, *, symmetric: bool = False, scale_dtype: str = "f32"
) -> Values:
    """How far MLX's own choice of scale and bias may miss each weight: float64 of the shape of `weights`.

    Proof (affine): with s = range / top, MLX puts the end of larger magnitude, which is at least half the range, on its
    code k = round(end / s), |k| >= top / 2; the step end / k differs from s by at most s / (2 |k|), so the other end
    is missed by at most top * s / (2 |k|) <= s, and what lies between by half a step, at most s too.
    Proof (symmetric): the step is max|x| / 2^(bits - 1), and the codes end one step short on one side.
    In both, storing scale and bias adds their rounding, times the largest code, and decoding that of float32.

    Raises:
        UsageError: cols is no whole number of groups, or a name that is not known.
    """
    if scale_dtype not in _EPSILON:
        raise UsageError(f"unknown scale type {scale_dtype!r}", hint=f"Known: {', '.join(_EPSILON)}.")
    x = to_float64(weights, "weights")
    size = x.shape[-1] if group_size == -1 else group_size
    if size < 1 or x.shape[-1] % size:
        raise UsageError(f"rows of {x.shape[-1]} weights are no whole number of groups of {group_size}")
    groups = x.reshape(-1, size)

    def miss(value: Values) -> Values:
        return np.maximum(value * _EPSILON[scale_dtype], _LEAST[scale_dtype])

    top = float(2**bits - 1)
    largest = np.abs(groups).max(-1, keepdims=True)
    if symmetric:
        step = largest / 2 ** (bits - 1)
        bound = step + 2 ** (bits - 1) * miss(step)
    else:
        step = (groups.max(-1, keepdims=True) - groups.min(-1, keepdims=True)) / top
        bound = step + 2 * top * miss(step) + 2 * miss(largest)
    return np.broadcast_to(bound + largest * 2.0**-22, groups.shape).reshape(x.shape)


def assert_groups_within_bound(
    weights: Any,
    packed: Any,
    scales: Any,
    biases: Any,
    bits: int = 4,
    group_size: int = 64,
    importance: Any | None = None,
    *,
    symmetric: bool = False,
) -> None:
    """No group has more weighted error than MLX's own choice may have: sum w e^2 <= sum w b^2, b of group_error_bounds.

    Args:
        weights: (rows, cols) or (experts, rows, cols), finite floats.
        packed, scales, biases: as quantize_groups returns them, or mlx.core.quantize.
        bits, group_size, symmetric: with which they were made.
        importance: (cols,), or (experts, cols), with which they were made.

    Raises:
        AssertionError: names the worst group: row, block (the group), element, value, error, bound.
        UsageError: shapes or names that do not fit.
    """
    x = to_float64(weights, "weights")
    decoded = dequantize_groups(packed, scales, biases, bits, group_size).astype(np.float64)
    kind = float_array(scales, "scales")[1]
    bounds = group_error_bounds(weights, bits, group_size, symmetric=symmetric, scale_dtype=kind)
    size = x.shape[-1] if group_size == -1 else group_size
    check_blocks(f"{bits} bits in groups of {size}", x, decoded, bounds, size, importance, _SLACK)
