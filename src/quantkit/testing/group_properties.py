"""What must hold between group quantizations of related inputs, whatever the numbers are: properties.py for groups.

The asserts take quantkit's own quantizer, or with `encode` anybody's that writes MLX's affine layout: a function
(weights float32 (rows, cols), importance float32 (cols,) or None) -> (packed, scales, biases) as quantize_groups has
them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from quantkit.errors import UsageError
from quantkit.kernels import _machine, dequantize_groups, quantize_groups
from quantkit.kernels.arrays import float_array, widened
from quantkit.kernels.groups import Float
from quantkit.testing.families import Matrix
from quantkit.testing.groups import assert_groups_within_bound
from quantkit.testing.properties import supported_tiers, use_tier

Groups = tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]
GroupEncoder = Callable[[Matrix, "Matrix | None"], Groups]

_PARTS = ("codes", "scales", "biases")
_LEAST = {"f32": 2.0**-100, "f16": 2.0**-14, "bf16": 2.0**-100}
"""Scales below are divided by, or lose bits."""
_MLX_LEAST = 1e-7
"""MLX takes no affine scale below, and its line is among those that are tried."""
_MARGIN = 16.0  # lines that are weighed against each other have scales within this of the one that is taken
_EVEN = 2.0**10  # importance within this: more, and a group may hang on one element


def assert_groups_same_bytes(
    weights: npt.NDArray[Any],
    bits: int = 4,
    group_size: int = 64,
    *,
    symmetric: bool = False,
    importance: npt.NDArray[Any] | None = None,
    scale_dtype: Float = "f32",
    cut: int = 1,
    threads: int = 3,
) -> Groups:
    """quantkit's groups do not depend on the tier, on threads, on how rows are cut, or on where in memory they lie.

    Args:
        weights: (rows, cols), as quantize_groups takes them, and what follows too.
        cut: the rows before and from this one are quantized in calls of their own as well.
        threads: how many to compare with one.

    Returns:
        packed, scales, biases.

    Raises:
        AssertionError: names tier and way, and the first row and group that differ.
    """
    if np.ndim(weights) != 2:
        raise UsageError(f"weights must be (rows, cols), not of shape {np.shape(weights)}")

    def encode(rows: npt.NDArray[Any], count: int) -> Groups:
        return quantize_groups(rows, bits, group_size, symmetric, importance, scale_dtype, count)

    tiers = supported_tiers()
    with use_tier(tiers[0]):
        expected = encode(weights, 1)
    cut = min(cut, len(weights))
    for tier in tiers:
        with use_tier(tier):
            (q, s, b), (more_q, more_s, more_b) = encode(weights[:cut], 1), encode(weights[cut:], 1)
            ways = {
                "one thread": encode(weights, 1),
                f"{threads} threads": encode(weights, threads),
                "transposed in memory": encode(np.asfortranarray(weights), 1),
                f"cut at row {cut}": (
                    np.concatenate([q, more_q]),
                    np.concatenate([s, more_s]),
                    np.concatenate([b, more_b]),
                ),
            }
        for way, got in ways.items():
            _assert_equal_groups(got, expected, f"{bits} bits: tier {tier}, {way}: other than {tiers[0]}, one thread")
    return expected


def assert_groups_stand_alone(
    weights: npt.NDArray[Any],
    bits: int = 4,
    group_size: int = 64,
    *,
    symmetric: bool = False,
    importance: npt.NDArray[Any] | None = None,
    scale_dtype: Float = "f32",
    encode: GroupEncoder | None = None,
    seed: int = 0,
) -> None:
    """Groups in another order, with the importance of their columns, give the same groups in that order.

    Args:
        seed: of the order.

    Raises:
        AssertionError: names the first row and group that differ.
    """
    encode = encode or _own_encoder(bits, group_size, symmetric, scale_dtype)
    x, columns = _float32(weights), None if importance is None else _float32(importance)
    n_groups = _count_groups(x, group_size)
    order = np.random.default_rng(seed).permutation(n_groups)

    def moved(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The last axis holds the groups of a row, one after the other."""
        return array.reshape(*array.shape[:-1], n_groups, -1)[..., order, :].reshape(array.shape)

    packed, scales, biases = encode(x, columns)
    expected = (moved(packed), moved(scales), moved(biases))
    got = encode(moved(x), None if columns is None else moved(columns))
    _assert_equal_groups(got, expected, f"{bits} bits: groups in another order")


def assert_groups_power_of_two_scaling(
    weights: npt.NDArray[Any],
    bits: int = 4,
    group_size: int = 64,
    *,
    symmetric: bool = False,
    importance: npt.NDArray[Any] | None = None,
    scale_dtype: Float = "f32",
    exponent: int = 1,
    encode: GroupEncoder | None = None,
) -> int:
    """Weights times 2^exponent give the same codes, and scales and biases multiplied by it.

    Holds where nothing is rounded at the ends of a type's range: for groups whose scales, and biases that are not zero,
    lie 16 times above the least normal f16 (or 2^-100), whose steps lie 16 times above MLX's least, 1e-7, unless they
    are symmetric, and whose weights lie 16 times below the largest that can be quantized; before and after. Other
    groups are not looked at.

    Returns:
        How many groups were compared. A test that draws its weights wants to know that it is not 0.

    Raises:
        AssertionError: names the first row and group that differ.
    """
    encode = encode or _own_encoder(bits, group_size, symmetric, scale_dtype)
    x, columns = _float32(weights), None if importance is None else _float32(importance)
    n_groups, factor, limit = _count_groups(x, group_size), 2.0**exponent, _machine.group_limit(scale_dtype)
    with np.errstate(over="ignore", under="ignore"):
        scaled = (x.astype(np.float64) * factor).astype(np.float32)
    exact = scaled.astype(np.float64) == x.astype(np.float64) * factor
    keep = np.flatnonzero((exact & (np.abs(scaled) <= limit)).all(axis=1))
    if not keep.size:
        return 0
    before, after = encode(x[keep], columns), encode(scaled[keep], columns)
    clear = np.ones((len(keep), n_groups), bool)
    for rows, groups in ((x[keep], before), (scaled[keep], after)):
        values = rows.reshape(len(keep), n_groups, -1).astype(np.float64)
        scales, biases = (np.abs(_values(part)) for part in groups[1:])
        step = (values.max(-1) - values.min(-1)) / (2**bits - 1)
        clear &= (scales >= _LEAST[scale_dtype] * _MARGIN) & (np.abs(values).max(-1) <= limit / _MARGIN)
        clear &= (biases == 0) | (biases >= _LEAST[scale_dtype] * _MARGIN)
        clear &= symmetric | (step >= _MLX_LEAST * _MARGIN)
    same = _equal_groups(before[0], after[0], n_groups)
    for part, part_then in zip(before[1:], after[1:], strict=True):
        same &= _values(part) * factor == _values(part_then)
    wrong = np.argwhere(clear & ~same)
    if wrong.size:
        row, group = wrong[0]
        raise AssertionError(
            f"{bits} bits: weights times 2^{exponent} have other codes, scales or biases in {len(wrong)} of "
            f"{int(clear.sum())} groups\n  first: row {keep[row]}, group {group}, scale {before[1][row, group]} and "
            f"bias {before[2][row, group]} became {after[1][row, group]} and {after[2][row, group]}"
        )
    return int(clear.sum())


def assert_groups_requantizing_is_stable(
    packed: Any,
    scales: Any,
    biases: Any,
    bits: int = 4,
    group_size: int = 64,
    *,
    symmetric: bool = False,
    importance: npt.NDArray[Any] | None = None,
    encode: GroupEncoder | None = None,
) -> int:
    """Quantizing what was decoded once more finds the same values again, where they fill the range.

    - Groups with the first code and, unless they are symmetric, the last, whose scale is not near the end of its type,
      and with importance that is above zero and within 2^10: no value moves by more than a hundredth of a step (beside
      float32's rounding, 2^-20 of the largest value). Not so with 16-bit scales where an affine scale is negative, as
      MLX's may be and quantkit's need not be: the other end need not be a number of that type. Nor with 8 bits and bf16
      scales, 256 of which may be off by a step.
    - All groups: no further off than assert_groups_within_bound allows.

    Rows whose decoded values are beyond what can be quantized are left out.

    Returns:
        How many groups were held to the first.

    Raises:
        AssertionError: names the first row and group that differ, or the worst element.
    """
    kind = float_array(scales, "scales")[1]
    encode = encode or _own_encoder(bits, group_size, symmetric, kind)
    columns = None if importance is None else _float32(importance)
    values = dequantize_groups(packed, scales, biases, bits, group_size)
    keep = np.flatnonzero((np.abs(values) <= _machine.group_limit(kind)).all(axis=1))
    values = values[keep]
    if not values.size:
        return 0
    again = encode(values, columns)
    assert_groups_within_bound(values, *again, bits, group_size, columns, symmetric=symmetric)
    if columns is not None and not 0 < float(columns.max()) <= float(columns.min()) * _EVEN:
        return 0
    n_groups = _count_groups(values, group_size)
    codes = _codes(np.asarray(packed)[keep], bits).reshape(len(keep), n_groups, -1)
    signed = _values(np.asarray(scales))[keep]
    scale = np.abs(signed)
    must = (codes.min(-1) == 0) & (scale >= _LEAST[kind] * _MARGIN)
    if not symmetric:
        must &= (codes.max(-1) == 2**bits - 1) & ((kind == "f32") | (signed > 0))
    must &= kind != "bf16" or bits < 8
    shape = (len(keep), n_groups, -1)
    moved = np.abs(dequantize_groups(*again, bits, group_size).astype(np.float64) - values).reshape(shape).max(-1)
    allowed = scale / 100 + np.abs(values).reshape(shape).max(-1) * 2.0**-20
    wrong = np.argwhere(must & (moved > allowed))
    if wrong.size:
        row, group = wrong[0]
        raise AssertionError(
            f"{bits} bits: decoded and quantized again: other values in {len(wrong)} of the {int(must.sum())} groups "
            f"that can be kept\n  first: row {keep[row]}, group {group}: moved by {moved[row, group]:.4g}, "
            f"the scale is {scale[row, group]:.4g}"
        )
    return int(must.sum())


def _own_encoder(bits: int, group_size: int, symmetric: bool, scale_dtype: Float) -> GroupEncoder:
    def encode(weights: Matrix, importance: Matrix | None) -> Groups:
        return quantize_groups(weights, bits, group_size, symmetric, importance, scale_dtype, 1)

    return encode


def _float32(values: npt.NDArray[Any]) -> Matrix:
    return np.ascontiguousarray(values, np.float32)


def _values(scales: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    return widened(*float_array(scales, "scales")).astype(np.float64)


def _count_groups(x: Matrix, group_size: int) -> int:
    return 1 if group_size == -1 else x.shape[1] // group_size


def _codes(packed: npt.NDArray[np.uint32], bits: int) -> npt.NDArray[np.uint8]:
    """One stream of bits a row, the first code lowest."""
    stream = np.unpackbits(np.ascontiguousarray(packed).view(np.uint8), axis=-1, bitorder="little")
    return np.packbits(stream.reshape(*packed.shape[:-1], -1, bits), axis=-1, bitorder="little")[..., 0]


def _equal_groups(a: npt.NDArray[Any], b: npt.NDArray[Any], n_groups: int) -> npt.NDArray[np.bool_]:
    """(rows, groups)"""
    left, right = (np.ascontiguousarray(one).view(np.uint8).reshape(len(one), n_groups, -1) for one in (a, b))
    same: npt.NDArray[np.bool_] = (left == right).all(axis=-1)
    return same


def _assert_equal_groups(got: Groups, expected: Groups, what: str) -> None:
    n_groups = expected[1].shape[-1]
    for name, ours, theirs in zip(_PARTS, got, expected, strict=True):
        if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            raise AssertionError(f"{what}: {name} {ours.dtype} {ours.shape}, not {theirs.dtype} {theirs.shape}")
        differ = ~_equal_groups(ours, theirs, n_groups)
        if differ.any():
            row, group = np.argwhere(differ)[0]
            raise AssertionError(
                f"{what}: other {name} in {int(differ.sum())} of {differ.size} groups\n"
                f"  first: row {row}, group {group}"
            )
