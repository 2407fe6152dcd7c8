"""Asserts on decoded weights that name the worst block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from quantkit.errors import UsageError
from quantkit.kernels import dequantize
from quantkit.kernels.arrays import number_array, real_array, widened
from quantkit.kernels.codec import Weighting
from quantkit.kernels.formats import find_format
from quantkit.testing.bounds import BOUNDS, Values, stretched
from quantkit.testing.layout import F16_SCALES

_SLACK = 1 + 1e-4  # of an encoder's float32 sums
_UNSEEN = 1e-37  # squares of float32 vanish below 1e-38 or so, and with them an encoder's sight of the error


@dataclass(frozen=True)
class WorstBlock:
    """The block whose error is largest in units of its bound, and the element in it that has most of that."""

    row: int
    """Of the rows one under the other; expert * rows + row for three-dimensional weights."""
    block: int
    """Within the row."""
    element: int
    """Within the block."""
    column: int
    """Within the row: block * block_size + element."""
    value: float
    decoded: float
    bound: float
    """The largest |error| that this element can have in a block that keeps its bound; infinite without importance."""
    share: float
    """The block's error in units of its bound: 1 is the most that is allowed."""
    blocks_over: int
    n_blocks: int

    @property
    def error(self) -> float:
        return abs(self.decoded - self.value)

    def __str__(self) -> str:
        return (
            f"row {self.row}, block {self.block}, element {self.element} (column {self.column}): "
            f"value {self.value:.9g}, decoded {self.decoded:.9g}, error {self.error:.4g}, bound {self.bound:.4g}"
        )


def worst_block(
    weights: Any,
    packed: Any,
    format: str,
    *,
    importance: Any | None = None,
    weighting: Weighting = "plain",
) -> WorstBlock:
    """The block of `packed` that is worst in units of its bound: see assert_within_bound."""
    size = find_format(format).block_size
    x = to_float64(weights, "weights")
    decoded = dequantize(packed, format).astype(np.float64)
    _same_shape(x, decoded, f"weights and the decoded {format}")
    blocks = x.reshape(-1, size)
    w = _weights_of_blocks(x, importance, weighting, size)
    unseen = _UNSEEN * size if size > 1 else 0.0
    allowed = (w * BOUNDS[format](blocks) ** 2).sum(-1)
    if weighting == "unbiased" and format in F16_SCALES and F16_SCALES[format]:
        allowed = stretched(allowed, (w * blocks**2).sum(-1))
    allowed = allowed * _SLACK + unseen
    with np.errstate(divide="ignore", invalid="ignore"):
        found = w * (decoded.reshape(-1, size) - blocks) ** 2
        bound = np.sqrt(allowed[:, None] / w)
        total = found.sum(-1)
        share = np.where(total == 0, 0.0, np.sqrt(total / allowed))
    return _describe(x, decoded, found, bound, share)


def assert_within_bound(
    weights: Any,
    packed: Any,
    format: str,
    importance: Any | None = None,
    *,
    weighting: Weighting = "plain",
) -> None:
    """No block is further off than the layout of the format can explain: see quantkit.testing.bounds.

    With w the importance of the columns (ones without it, and in blocks where all of it is zero) and b the bounds of
    error_bounds(weights, format), every block has sum_j w_j e_j^2 <= sum_j w_j b_j^2, so that each of its elements i
    has w_i e_i^2 <= sum_j w_j b_j^2. (quantkit.testing.bounds.stretched says what weighting "unbiased" adds.)

    Args:
        weights: (rows, cols) or (experts, rows, cols), finite floats of any library; uint16 holds bfloat16 bits.
        packed: uint8 (..., row_bytes), the bytes under test.
        format: one of quantkit.kernels.FORMATS.
        importance: (cols,), or (experts, cols), with which `packed` was made.
        weighting: with which `packed` was made: see quantkit.kernels.quantize.

    Raises:
        AssertionError: names the worst block: row, block, element, value, error, bound.
        UsageError: shapes or names that do not fit.
    """
    worst = worst_block(weights, packed, format, importance=importance, weighting=weighting)
    if not worst.share <= 1:
        raise AssertionError(_complaint(f"{format}: further off than its layout can explain", worst))


def assert_close_to(expected: Any, actual: Any, *, bound: npt.ArrayLike, block_size: int = 32) -> None:
    """|actual - expected| <= bound everywhere; where not, the worst block is named.

    Args:
        expected: (..., cols), any float, finite.
        actual: of the same shape: weights decoded by whatever is under test, or a product of them.
        bound: a number, or an array that broadcasts to the shape; error_bounds(weights, format) makes one for weights.
        block_size: in which the place is told.

    Raises:
        AssertionError: names the element that is worst in units of its bound: row, block, element, value, error, bound.
        UsageError: shapes that do not fit.
    """
    x, y = to_float64(expected, "expected"), to_float64(actual, "actual")
    _same_shape(x, y, "expected and actual")
    try:
        limits = np.broadcast_to(np.asarray(bound, np.float64), x.shape).reshape(-1, block_size)
    except ValueError:
        raise UsageError(
            f"bound of shape {np.shape(bound)} and blocks of {block_size} do not fit values of shape {x.shape}"
        ) from None
    if not x.size:
        return
    with np.errstate(invalid="ignore", divide="ignore"):
        error = np.abs(y - x).reshape(-1, block_size)
        found = np.where(error == 0, 0.0, error / limits)
    worst = _describe(x, y, found, limits, found.max(-1))
    if not worst.share <= 1:
        raise AssertionError(_complaint("further off than its bound", worst))


def check_blocks(
    name: str, x: Values, decoded: Values, bounds: Values, size: int, importance: Any | None, slack: float
) -> None:
    """sum w e^2 <= sum w b^2 for blocks of `size`; all of one shape. AssertionError names the worst."""
    _same_shape(x, decoded, "weights and what was decoded")
    w = _weights_of_blocks(x, importance, "plain", size)
    allowed = (w * bounds.reshape(-1, size) ** 2).sum(-1) * slack + _UNSEEN * size
    with np.errstate(divide="ignore", invalid="ignore"):
        found = w * (decoded - x).reshape(-1, size) ** 2
        bound = np.sqrt(allowed[:, None] / w)
        total = found.sum(-1)
        share = np.where(total == 0, 0.0, np.sqrt(total / allowed))
    worst = _describe(x, decoded, found, bound, share)
    if not worst.share <= 1:
        raise AssertionError(_complaint(f"{name}: further off than its layout can explain", worst))


def to_float64(values: Any, name: str = "values") -> Values:
    """float64 of any library's floats; uint16 is taken for bfloat16 bits, as quantize does."""
    array = widened(*real_array(values, name))
    if array.ndim < 1:
        raise UsageError(f"{name} is a single number", hint="Give (rows, cols).")
    return array.astype(np.float64)


def _weights_of_blocks(x: Values, importance: Any | None, weighting: Weighting, size: int) -> Values:
    """As encoders make them: the largest of a block is 1, and blocks whose weights are all zero are weighted evenly."""
    columns = np.ones(x.shape[-1]) if importance is None else number_array(importance, "importance").astype(np.float64)
    if columns.ndim == 2 and x.ndim == 3:
        columns = columns[:, None, :]
    try:
        w = _normalise(np.broadcast_to(columns, x.shape).reshape(-1, size))
    except ValueError:
        raise UsageError(f"importance of shape {columns.shape} does not fit weights of shape {x.shape}") from None
    if weighting == "magnitude":
        blocks = x.reshape(-1, size)
        top = np.abs(blocks).max(-1, keepdims=True)
        blocks = blocks / np.where(top > 0, top, 1)
        w = _normalise(w * np.sqrt((blocks**2).mean(-1, keepdims=True) + blocks**2))
    return w


def _normalise(w: Values) -> Values:
    largest = w.max(-1, keepdims=True)
    return np.where(largest > 0, w / np.where(largest > 0, largest, 1), 1.0)


def _same_shape(x: Values, y: Values, what: str) -> None:
    if x.shape != y.shape:
        raise UsageError(f"{what} have shapes {x.shape} and {y.shape}")


def _describe(x: Values, decoded: Values, found: Values, bound: Values, share: Values) -> WorstBlock:
    """found: (blocks, size), what each element adds to its block's error; share: (blocks,). NaN is over every bound."""
    size, cols = found.shape[1], x.shape[-1]
    share = np.where(np.isnan(share), np.inf, share)
    at = int(np.argmax(share))
    at = at * size + int(np.argmax(np.where(np.isnan(found[at]), np.inf, found[at])))
    row, column = divmod(at, cols)
    return WorstBlock(
        row=row,
        block=column // size,
        element=column % size,
        column=column,
        value=float(x.reshape(-1)[at]),
        decoded=float(decoded.reshape(-1)[at]),
        bound=float(bound.reshape(-1)[at]),
        share=float(share.max()),
        blocks_over=int((share > 1).sum()),
        n_blocks=len(share),
    )


def _complaint(what: str, worst: WorstBlock) -> str:
    over = f"{worst.blocks_over} of {worst.n_blocks}, the worst {worst.share:.3g} times"
    return f"{what}\n  worst: {worst}\n  blocks over their bound: {over}"
