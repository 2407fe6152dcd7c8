"""How far decoded weights lie from those they stand for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from quantkit.errors import NonFiniteError, UsageError
from quantkit.kernels.arrays import number_array, real_array, widened

Index = tuple[int | slice, ...]
Doubles = npt.NDArray[np.float64]

_BLOCK = 1 << 18  # elements at a time: float64 copies of this size stay in cache, and memory small


@dataclass(frozen=True)
class Deviation:
    """The error e = decoded - reference, in float64. Sums are weighted by `weights` where some were given.

    Attributes:
        rmse: root of the mean of e².
        relative: root of (sum of e² / sum of reference²); infinite where only the reference is zero.
        sqnr_db: signal to quantization noise, -20 log10(relative); infinite where there is no error.
        cosine: of the angle between both; 1 where both are zero, 0 where one is.
        max_abs: the largest |e|, whatever its weight.
        max_abs_index: where that is: (row, column), or (expert, row, column).
    """

    rmse: float
    relative: float
    sqnr_db: float
    cosine: float
    max_abs: float
    max_abs_index: tuple[int, ...]


def deviation(
    reference: Any, shape: tuple[int, ...], decode: Callable[[Index], npt.NDArray[Any]], weights: Any | None = None
) -> Deviation:
    """Compare a few rows at a time.

    Args:
        reference: floats of `shape`, any library's; float64 is not rounded.
        shape: (cols,), (rows, cols) or (experts, rows, cols).
        decode: index of one or more rows -> the decoded weights there.
        weights: (cols,) or (experts, cols); finite, not negative, not all zero.

    Raises:
        UsageError: shapes, dtypes or weights that do not fit.
        NonFiniteError: a value is NaN or infinite; its place is named.
    """
    array, type = real_array(reference, "reference")
    if array.shape != shape:
        raise UsageError(f"reference has shape {array.shape}, the tensor {shape}")
    if not array.size:
        raise UsageError(f"a tensor of shape {shape} has no weights to compare")
    columns = None if weights is None else _column_weights(weights, shape)
    totals, worst = np.zeros(5), -1.0
    worst_index: tuple[int, ...] = ()
    for lead, first, index in _blocks(shape):
        place = (*lead, first)
        wanted = _doubles(widened(array[index], type), "reference", place, shape)
        error = _doubles(decode(index), "decoded weight", place, shape)
        w = columns[lead] if columns is not None and columns.ndim > 1 else columns
        totals += _sums(wanted, error, w)
        error -= wanted
        totals[0] += _dot(error, error, w)
        at = int(np.argmax(np.abs(error, out=error)))
        if error.flat[at] > worst:
            worst, worst_index = float(error.flat[at]), _element(place, at, shape)
    return _figures(totals, worst, worst_index)


def _blocks(shape: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], int, Index]]:
    """(leading indices, first row, index) of runs of rows; one index, (), where there is one row alone."""
    if len(shape) == 1:
        yield (), 0, ()
        return
    step = max(1, _BLOCK // shape[-1])
    for lead in np.ndindex(*shape[:-2]):
        for first in range(0, shape[-2], step):
            yield lead, first, (*lead, slice(first, first + step))


def _doubles(part: npt.NDArray[Any], what: str, place: tuple[int, ...], shape: tuple[int, ...]) -> Doubles:
    doubles = part.reshape(-1, shape[-1]).astype(np.float64)
    finite = np.isfinite(doubles)
    if not finite.all():
        at = int(np.argmin(finite))
        index = ", ".join(map(str, _element(place, at, shape)))
        raise NonFiniteError(f"{what} {doubles.flat[at]} at [{index}] is not finite")
    return doubles


def _element(place: tuple[int, ...], at: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Index in the tensor of element `at` of the rows from `place` on."""
    row, col = divmod(at, shape[-1])
    return (col,) if len(shape) == 1 else (*place[:-1], place[-1] + row, col)


def _dot(a: Doubles, b: Doubles, w: Doubles | None) -> float:
    return float(np.vdot(a, b) if w is None else np.einsum("rc,rc->c", a, b) @ w)


def _sums(wanted: Doubles, found: Doubles, w: Doubles | None) -> Doubles:
    """Weighted sums of: nothing yet (the noise), reference², decoded², their product, one."""
    weight = wanted.size if w is None else len(wanted) * float(w.sum())
    return np.array([0.0, _dot(wanted, wanted, w), _dot(found, found, w), _dot(wanted, found, w), weight])


def _figures(totals: Doubles, worst: float, worst_index: tuple[int, ...]) -> Deviation:
    noise, signal, decoded, cross, weight = (float(total) for total in totals)
    relative = math.sqrt(noise / signal) if signal else math.inf if noise else 0.0
    cosine = cross / math.sqrt(signal) / math.sqrt(decoded) if signal and decoded else float(signal == decoded)
    return Deviation(
        rmse=math.sqrt(noise / weight),
        relative=relative,
        sqnr_db=-20 * math.log10(relative) if 0 < relative < math.inf else -math.inf if relative else math.inf,
        cosine=max(-1.0, min(1.0, cosine)),
        max_abs=worst,
        max_abs_index=worst_index,
    )


def _column_weights(weights: Any, shape: tuple[int, ...]) -> Doubles:
    array: Doubles = number_array(weights, "weights").astype(np.float64)
    fitting = list(dict.fromkeys([shape[-1:], (*shape[:-2], shape[-1])]))
    if array.shape not in fitting:
        raise UsageError(f"weights have shape {array.shape}, not {' or '.join(map(str, fitting))}")
    if not (array >= 0).all() or not 0 < array.max() < math.inf:
        raise UsageError("weights must be finite, not negative and not all zero")
    array /= array.max()  # only their ratios matter, and so no sum overflows
    return array
