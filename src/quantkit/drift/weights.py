"""How far weights lie from the reference's: a matrix or an expert of all models at a time, some rows of it decoded."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial

import numpy as np
import numpy.typing as npt

from quantkit.drift.models import Stored
from quantkit.drift.result import TensorDrift, WeightError
from quantkit.drift.states import decibels
from quantkit.errors import NonFiniteError
from quantkit.gguf import Imatrix
from quantkit.llama4.forward import Matrix, Team, Weights
from quantkit.llama4.forward.gguf_weights import text_shapes

Doubles = npt.NDArray[np.float64]

_ELEMENTS = 3 << 14  # at a time: copies in float64 stay in cache
_TASK = 1 << 22  # elements of a task
_READ_BYTES = 64 << 20  # of rows of a matrix read at once
_LAYER = re.compile(r"blk\.([0-9]+)\.")
_EXPERTS = re.compile(r"(blk\.[0-9]+)\.ffn_(?:gate|up|down)_exps\.weight")

# Columns of sums: of e², reference², candidate², their product, weighted e² and reference²; counts; the largest |e|
_NOISE, _SIGNAL, _OWN, _CROSS, _WEIGHTED_NOISE, _WEIGHTED_SIGNAL, _COUNT, _NONZERO, _ZEROED, _MAX = range(10)


def compare_weights(
    reference: Weights,
    candidates: Sequence[Weights],
    stored: Sequence[Mapping[str, Stored]],
    *,
    imatrix: Imatrix | None = None,
    threads: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[tuple[TensorDrift, ...]]:
    """All tensors of the text model, for each candidate.

    Args:
        stored: of the reference and of each candidate, by name; what is not named is told from what is read.
        imatrix: weights errors by column as well.
        threads: 0 takes all processors; no number depends on it.
        progress: is told a tensor's name, and how many weights are done of how many.

    Raises:
        CheckpointError: from reading.
        NonFiniteError: a weight is NaN or infinite; tensor and row are named.
    """
    shapes = {name: shape for name, shape in text_shapes(reference.hp).items() if _in_all(name, candidates)}
    total, done = sum(math.prod(shape) for shape in shapes.values()), 0
    found: list[dict[str, list[Doubles]]] = [{name: [] for name in shapes} for _ in candidates]
    formats: list[dict[str, Stored]] = [{} for _ in stored]
    models, importance = (reference, *candidates), _Importance(imatrix)
    scratch = _Scratch()
    with closing(Team(threads)) as team, team.at_work():
        for name, first, pieces in _pieces(models, shapes):
            shape = shapes[name]
            for piece, known, own in zip(pieces, stored, formats, strict=True):
                so_far = own[name].bytes if name in own else 0
                own[name] = known.get(name) or Stored(piece.format, so_far + piece.packed.nbytes)
            expert = first if len(shape) == 3 else None
            columns = importance.of(name, shape, expert or 0)
            for sums, candidate in zip(found, pieces[1:], strict=True):
                try:
                    row = first if expert is None else 0
                    sums[name].append(_compare(pieces[0], candidate, columns, team, row, scratch))
                except NonFiniteError as error:
                    if expert is not None:
                        error.what = f"expert {expert}: {error.what}"
                    raise
            done += len(pieces[0].packed) * shape[-1]
            if progress is not None:
                progress(name, done, total)
    return [
        tuple(_drift(name, shapes[name], sums[name], formats[0][name], own[name], imatrix) for name in shapes)
        for sums, own in zip(found, formats[1:], strict=True)
    ]


def _in_all(name: str, candidates: Sequence[Weights]) -> bool:
    """The output matrix may be tied on one side alone."""
    return all(name in text_shapes(weights.hp) for weights in candidates)


def _pieces(
    models: Sequence[Weights], shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, int, list[Matrix]]]:
    """(name, first row or expert, the piece of each model), in the order of names; experts' three matrices together."""
    seen: set[str] = set()
    for name, shape in shapes.items():
        routed = _EXPERTS.fullmatch(name)
        if routed:
            if routed[1] in seen:
                continue
            seen.add(routed[1])
            names = [f"{routed[1]}.ffn_{kind}_exps.weight" for kind in ("gate", "up", "down")]
            for expert in range(shape[0]):
                units = [weights.matrices(names, expert) for weights in models]
                for place, one in enumerate(names):
                    yield one, expert, [unit[place] for unit in units]
                for weights, unit in zip(models, units, strict=True):
                    weights.give_back(unit)
            continue
        n_rows = shape[0] if len(shape) > 1 else 1
        step = max(1, _READ_BYTES // (4 * shape[-1]))
        for first in range(0, n_rows, step):
            yield name, first, [weights.rows(name, first, min(step, n_rows - first)) for weights in models]


class _Importance:
    """Of columns, from an imatrix, which is asked once for all experts of a layer."""

    def __init__(self, imatrix: Imatrix | None) -> None:
        self._imatrix = imatrix
        self._kept: dict[str, npt.NDArray[np.float32] | None] = {}

    def of(self, name: str, shape: tuple[int, ...], expert: int) -> Doubles | None:
        """Float64 (cols,), of a matrix or one expert's."""
        if self._imatrix is None or len(shape) < 2:
            return None
        if name not in self._kept:
            if len(self._kept) == 3:  # gate, up and down take turns
                self._kept.clear()
            self._kept[name] = self._imatrix.importance(name, shape[0] if len(shape) == 3 else 1, shape[-1])
        found = self._kept[name]
        return None if found is None else found[expert].astype(np.float64)


class _Scratch(threading.local):
    """Two arrays of each thread: new ones would come from the system each time, which takes as long as all sums."""

    def __init__(self) -> None:
        self._arrays = [np.empty(0), np.empty(0)]

    def doubles(self, place: int, values: npt.NDArray[np.float32]) -> Doubles:
        """A copy, until the next call with the same place."""
        if self._arrays[place].size < values.size:
            self._arrays[place] = np.empty(values.size)
        copy: Doubles = self._arrays[place][: values.size].reshape(values.shape)
        copy[...] = values
        return copy


def _compare(
    reference: Matrix, candidate: Matrix, columns: Doubles | None, team: Team, first: int, scratch: _Scratch
) -> Doubles:
    """Sums over all weights of two pieces; see the columns above."""
    n_rows, cols = len(reference.packed), reference.tensor.shape[-1]
    step = max(1, _TASK // cols)
    starts = range(0, n_rows, step)
    sums = np.zeros((len(starts), _MAX + 1))

    def add(place: int, start: int) -> None:
        inner = max(1, _ELEMENTS // cols)
        for row in range(start, min(n_rows, start + step), inner):
            rows = slice(row, min(n_rows, start + step, row + inner))
            wanted, found = (
                scratch.doubles(side, one.tensor[rows].dequantize(threads=1))
                for side, one in enumerate((reference, candidate))
            )
            _add(sums[place], wanted, found, columns)
            if not np.isfinite(sums[place]).all():
                raise _not_finite(reference, wanted, candidate, found, first + row)

    team.run(partial(add, place, start) for place, start in enumerate(starts))
    return _total(list(sums))


def _add(sums: Doubles, wanted: Doubles, found: Doubles, columns: Doubles | None) -> None:
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is found in the sums
        sums[_COUNT] += wanted.size
        nonzero = wanted != 0
        sums[_NONZERO] += np.count_nonzero(nonzero)
        sums[_ZEROED] += np.count_nonzero(nonzero & (found == 0))
        sums[_SIGNAL] += np.vdot(wanted, wanted)
        sums[_OWN] += np.vdot(found, found)
        sums[_CROSS] += np.vdot(wanted, found)
        if columns is not None:
            sums[_WEIGHTED_SIGNAL] += np.einsum("rc,rc->c", wanted, wanted) @ columns
        found -= wanted
        sums[_NOISE] += np.vdot(found, found)
        if columns is not None:
            sums[_WEIGHTED_NOISE] += np.einsum("rc,rc->c", found, found) @ columns
        sums[_MAX] = max(sums[_MAX], np.abs(found, out=found).max())


def _not_finite(reference: Matrix, wanted: Doubles, candidate: Matrix, error: Doubles, first: int) -> NonFiniteError:
    """`error` is what is left of the candidate's weights: not finite where they, or the reference's, are not."""
    at_fault = reference if not np.isfinite(wanted).all() else candidate
    values = wanted if at_fault is reference else error
    row, col = np.unravel_index(int(np.argmin(np.isfinite(values))), values.shape)
    return NonFiniteError(f"{at_fault.name}: the weight in row {first + row}, column {col} is not finite")


def _total(sums: Sequence[Doubles]) -> Doubles:
    array = np.stack(sums)
    total: Doubles = array.sum(0)
    total[_MAX] = array[:, _MAX].max()
    return total


def _drift(
    name: str, shape: tuple[int, ...], sums: list[Doubles], reference: Stored, own: Stored, imatrix: Imatrix | None
) -> TensorDrift:
    layer = _LAYER.match(name)
    is_weighted = imatrix is not None and bool(_total(sums)[_WEIGHTED_SIGNAL])
    return TensorDrift(
        name=name,
        layer=int(layer[1]) if layer else None,
        type=own.type,
        reference_type=reference.type,
        shape=shape,
        bytes=own.bytes,
        error=_error(_total(sums), is_weighted=is_weighted),
        experts=tuple(_error(one, is_weighted=is_weighted) for one in sums) if len(shape) == 3 else (),
    )


def _error(sums: Doubles, *, is_weighted: bool) -> WeightError:
    values = [float(value) for value in sums]
    signal, own = values[_SIGNAL], values[_OWN]
    relative = _relative(values[_NOISE], signal)
    cosine = values[_CROSS] / math.sqrt(signal * own) if signal * own else float(signal == own)
    return WeightError(
        rmse=math.sqrt(values[_NOISE] / values[_COUNT]),
        relative_error=relative,
        sqnr_db=decibels(relative),
        cosine=max(-1.0, min(1.0, cosine)),
        gain=values[_CROSS] / signal if signal else math.inf if own else 1.0,
        max_abs=values[_MAX],
        rounded_to_zero=values[_ZEROED] / values[_NONZERO] if values[_NONZERO] else 0.0,
        importance_weighted=_relative(values[_WEIGHTED_NOISE], values[_WEIGHTED_SIGNAL]) if is_weighted else None,
    )


def _relative(noise: float, signal: float) -> float:
    return math.sqrt(noise / signal) if signal else math.inf if noise else 0.0
