"""What must hold between encodings of related inputs, whatever the numbers are.

The asserts take quantkit's own encoder, or with `encode` anybody's that writes the bytes of a GGUF format: a function
(weights float32 (rows, cols), importance float32 (cols,) or None) -> uint8 (rows, row_bytes).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from quantkit.errors import UsageError
from quantkit.kernels import build_info, dequantize, quantize
from quantkit.kernels.codec import Weighting
from quantkit.kernels.formats import find_format
from quantkit.testing.asserts import assert_within_bound
from quantkit.testing.families import Matrix
from quantkit.testing.layout import E8M0_SCALES, F16_SCALES, Bytes, split_scales

Encoder = Callable[[Matrix, "Matrix | None"], Bytes]

_ENDS = {"q4_0": 8, "q5_0": 16, "q8_0": 127, "iq4_nl": 127}  # of the grid, for formats with one scale
_MARGIN = 16.0  # candidates that an encoder weighs against each other have scales within this of the one it takes


def supported_tiers() -> list[str]:
    """Names of the instruction sets that this processor runs, the plainest first."""
    return list(build_info()["tiers_supported"])


@contextmanager
def use_tier(name: str) -> Iterator[None]:
    """Within it, quantkit runs on that tier (QUANTKIT_TIER, so in the whole process). UsageError if it is not there."""
    if name not in supported_tiers():
        raise UsageError(f"no tier {name!r} on this machine", hint=f"Choose one of: {', '.join(supported_tiers())}.")
    before = os.environ.get("QUANTKIT_TIER")
    os.environ["QUANTKIT_TIER"] = name
    try:
        yield
    finally:
        if before is None:
            del os.environ["QUANTKIT_TIER"]
        else:
            os.environ["QUANTKIT_TIER"] = before


def assert_same_bytes(
    weights: npt.NDArray[Any],
    format: str,
    *,
    importance: npt.NDArray[Any] | None = None,
    weighting: Weighting = "plain",
    cut: int = 1,
    threads: int = 3,
) -> Bytes:
    """quantkit's bytes do not depend on the tier, on threads, on how rows are cut, or on where in memory they lie.

    Args:
        weights: (rows, cols), as quantize takes them.
        cut: the rows before and from this one are encoded in calls of their own as well.
        threads: how many to compare with one.

    Returns:
        The bytes, uint8 (rows, row_bytes).

    Raises:
        AssertionError: names tier and way, and the first row and block that differ.
    """
    if np.ndim(weights) != 2:
        raise UsageError(f"weights must be (rows, cols), not of shape {np.shape(weights)}")

    def encode(rows: npt.NDArray[Any], count: int) -> Bytes:
        return quantize(rows, format, importance=importance, weighting=weighting, threads=count)

    tiers = supported_tiers()
    with use_tier(tiers[0]):
        expected = encode(weights, 1)
    cut = min(cut, len(weights))
    for tier in tiers:
        with use_tier(tier):
            ways = {
                "one thread": encode(weights, 1),
                f"{threads} threads": encode(weights, threads),
                "transposed in memory": encode(np.asfortranarray(weights), 1),
                f"cut at row {cut}": np.concatenate([encode(weights[:cut], 1), encode(weights[cut:], 1)]),
            }
        for way, got in ways.items():
            _assert_equal_blocks(got, expected, format, f"tier {tier}, {way}: other bytes than {tiers[0]}, one thread")
    return expected


def assert_blocks_stand_alone(
    weights: npt.NDArray[Any],
    format: str,
    *,
    importance: npt.NDArray[Any] | None = None,
    weighting: Weighting = "plain",
    encode: Encoder | None = None,
    seed: int = 0,
) -> None:
    """Blocks in another order, with the importance of their columns, give the same blocks in that order.

    Args:
        seed: of the order.

    Raises:
        AssertionError: names the first row and block that differ.
    """
    encode = encode or _own_encoder(format, weighting)
    x, columns = _float32(weights), None if importance is None else _float32(importance)
    found = find_format(format)
    n_blocks = x.shape[1] // found.block_size
    order = np.random.default_rng(seed).permutation(n_blocks)
    moved = x.reshape(len(x), n_blocks, -1)[:, order].reshape(x.shape)
    with_them = None if columns is None else columns.reshape(n_blocks, -1)[order].reshape(-1)
    expected = encode(x, columns).reshape(len(x), n_blocks, -1)[:, order].reshape(len(x), -1)
    _assert_equal_blocks(encode(moved, with_them), expected, format, "blocks in another order: other bytes")


def assert_power_of_two_scaling(
    weights: npt.NDArray[Any],
    format: str,
    *,
    exponent: int = 1,
    importance: npt.NDArray[Any] | None = None,
    weighting: Weighting = "plain",
    encode: Encoder | None = None,
) -> int:
    """Weights times 2^exponent give the same bytes, but for the scales, which are multiplied by it.

    Holds where no rounding leaves the normal range of f16: for blocks whose scales are not zero and lie 16 times above
    the least normal f16 and below the largest, before and after (all that an encoder weighs against each other lies
    within that, if no column is without importance). Other blocks are not looked at.

    Args:
        importance: above zero, the largest within 2^40 of the smallest, so that no product of it leaves float32.

    Returns:
        How many blocks were compared. A test that draws its weights wants to know that it is not 0.

    Raises:
        AssertionError: names the first row and block that differ.
        UsageError: the format has no scales, or importance is not as said.
    """
    if format not in F16_SCALES:
        raise UsageError(f"{format} has no scales")
    encode = encode or _own_encoder(format, weighting)
    x, columns = _float32(weights), None if importance is None else _float32(importance)
    if columns is not None and not 0 < columns.max() <= columns.min() * 2.0**40:
        raise UsageError("importance has to be above zero, and the largest within 2^40 of the smallest")
    limit = find_format(format).max_abs
    factor = 2.0**exponent
    with np.errstate(over="ignore", under="ignore"):
        scaled = (x.astype(np.float64) * factor).astype(np.float32)
    exact = (scaled.astype(np.float64) == x.astype(np.float64) * factor) & (np.abs(scaled) <= limit)
    keep = exact.all(axis=1)
    first = encode(x[keep], columns)
    scales, codes = split_scales(first, format)
    scales_then, codes_then = split_scales(encode(scaled[keep], columns), format)
    low, high = (2.0**-14, 65504.0) if F16_SCALES[format] else (2.0**-126, 2.0**126)
    least, most = low * _MARGIN / min(1.0, factor), high / _MARGIN / max(1.0, factor)
    clear = ((np.abs(scales) >= least) & (np.abs(scales) <= most)).all(-1)
    same = (scales * factor == scales_then).all(-1) & (codes == codes_then).all(-1)
    wrong = np.flatnonzero(clear & ~same)
    if wrong.size:
        per_row = x.shape[1] // find_format(format).block_size
        row, block = int(np.flatnonzero(keep)[wrong[0] // per_row]), int(wrong[0] % per_row)
        what = "codes" if (codes[wrong[0]] != codes_then[wrong[0]]).any() else "scales"
        raise AssertionError(
            f"{format}: weights times 2^{exponent} have other {what} in {wrong.size} of {int(clear.sum())} blocks\n"
            f"  first: row {row}, block {block}, scales {scales[wrong[0]]} became {scales_then[wrong[0]]}"
        )
    return int(clear.sum())


def assert_requantizing_is_stable(
    packed: Bytes,
    format: str,
    *,
    importance: npt.NDArray[Any] | None = None,
    weighting: Weighting = "plain",
    encode: Encoder | None = None,
) -> None:
    """Encoding what was decoded once more keeps what the layout lets it keep.

    - f32, f16, bf16: the same bytes. mxfp4: the same values (a scale may be halved with all codes doubled).
    - q4_0, q5_0, q8_0, iq4_nl with importance (ones will do): the same values in blocks where an element lies at the
      far end of the grid (code -8, -16, +-127 or -127), for that element makes plain rounding find the scale again.
      Without importance quantkit searches quicker, and may prefer a scale that only seems to fit as well.
    - All others: no block further off than assert_within_bound allows. The second error may be larger than the first:
      for a block that the first encoding happened to meet exactly, the search need not find the same scale again.

    Rows whose decoded values are beyond the format's range (a scale rounded up at the very end of f16) are left out.

    Raises:
        AssertionError: names the first row and block that differ, or the worst element.
    """
    encode = encode or _own_encoder(format, weighting)
    found = find_format(format)
    columns = None if importance is None else _float32(importance)
    values = dequantize(packed, format)
    keep = (np.abs(values) <= found.max_abs).all(axis=1)
    values, packed = values[keep], packed[keep]
    if not values.size:
        return
    again = encode(values, columns)
    if found.block_size == 1:
        _assert_equal_blocks(again, packed, format, "decoded and encoded again: other bytes")
        return
    assert_within_bound(values, again, format, columns, weighting=weighting)
    before = values.reshape(-1, found.block_size)
    kept = (dequantize(again, format).reshape(before.shape) == before).all(axis=1)
    if format in E8M0_SCALES:
        must = np.ones(len(before), bool)
    elif format in _ENDS and columns is not None:
        scale = split_scales(packed, format)[0]
        ends = np.abs(scale) * _ENDS[format]
        must = (np.abs(before).max(axis=1, keepdims=True) == ends)[:, 0] & (np.abs(scale[:, 0]) >= 2.0**-14)
    else:
        return
    wrong = np.flatnonzero(must & ~kept)
    if wrong.size:
        row, block = divmod(int(wrong[0]), values.shape[1] // found.block_size)
        raise AssertionError(
            f"{format}: decoded and encoded again: other values in {wrong.size} of the {int(must.sum())} blocks that "
            f"can be kept\n  first: row {int(np.flatnonzero(keep)[row])}, block {block}"
        )


def _own_encoder(format: str, weighting: Weighting) -> Encoder:
    def encode(weights: Matrix, importance: Matrix | None) -> Bytes:
        return quantize(weights, format, importance=importance, weighting=weighting, threads=1)

    return encode


def _float32(values: npt.NDArray[Any]) -> Matrix:
    return np.ascontiguousarray(values, np.float32)


def _assert_equal_blocks(got: Bytes, expected: Bytes, format: str, what: str) -> None:
    size = find_format(format).block_bytes
    if got.shape != expected.shape:
        raise AssertionError(f"{format}: {what}: shape {got.shape}, not {expected.shape}")
    differ = (got != expected).reshape(len(got), -1, size).any(axis=2)
    if differ.any():
        row, block = divmod(int(np.argmax(differ)), differ.shape[1])
        raise AssertionError(
            f"{format}: {what} in {int(differ.sum())} of {differ.size} blocks\n  first: row {row}, block {block}: "
            f"{_hex(got, row, block, size)}\n  not {_hex(expected, row, block, size)}"
        )


def _hex(packed: Bytes, row: int, block: int, size: int) -> str:
    shown = packed[row, block * size : (block + 1) * size]
    return shown[:24].tobytes().hex(" ", 2) + (" ..." if size > 24 else "")
