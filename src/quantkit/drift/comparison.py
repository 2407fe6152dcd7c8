"""Two quantized files against each other: which tensors differ, and which layer loses what one loses to the other."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from quantkit.checkpoint.reader import FileReader
from quantkit.drift.differences import Difference
from quantkit.drift.models import names_of
from quantkit.drift.progress import Progress
from quantkit.drift.result import Candidate, Drift, TensorDrift, plain
from quantkit.drift.run import drift
from quantkit.drift.sample import Score
from quantkit.errors import CheckpointError
from quantkit.gguf import GgufTensor, open_gguf

AnyPath = str | os.PathLike[str]

SCHEMA = 1
_BYTES = 1 << 24  # of both files at a time


@dataclass(frozen=True)
class TensorDifference:
    """A tensor that the two files do not store alike.

    Args:
        name, layer: GGUF's; None outside the layers.
        types, bytes, relative_errors: in the first file and in the second; errors as in WeightError.
        better: whose error is smaller; None for equal ones.
    """

    name: str
    layer: int | None
    types: tuple[str, str]
    bytes: tuple[int, int]
    relative_errors: tuple[float, float]
    better: Literal["first", "second"] | None


@dataclass(frozen=True)
class LayerDifference:
    """A layer's own error in both files.

    Args:
        relative_errors: of the hidden states that the layer leaves when it is given the reference's; without text, of
            all its weights together.
        gap: second's squared error minus the first's.
        share: gap over the sum of all layers' gaps in the same direction as that sum; 0 for a layer that goes the
            other way.
    """

    layer: int
    relative_errors: tuple[float, float]
    gap: float
    share: float


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Args:
        schema: of its JSON.
        drift: of both files against the reference.
        same: how many tensors are the same bytes in both.
        tensors: those that are not, the largest difference of errors first.
        layers: in order.
        difference: of mean KLD, paired by token; None without text.
        statement: the outcome in a sentence or two.
    """

    schema: int
    drift: Drift
    same: int
    tensors: tuple[TensorDifference, ...]
    layers: tuple[LayerDifference, ...]
    difference: Difference | None
    statement: str

    def to_json(self) -> dict[str, Any]:
        """Only dicts, lists, texts, numbers, booleans and None."""
        converted: dict[str, Any] = plain(self)
        return converted


def compare(
    first: AnyPath,
    second: AnyPath,
    reference: AnyPath,
    *,
    text: Iterable[AnyPath] | None = None,
    tokens: int | None = None,
    context: int | None = None,
    score: Score | None = None,
    imatrix: AnyPath | None = None,
    max_ram_bytes: int | None = None,
    threads: int = 0,
    progress: Callable[[Progress], None] | None = None,
) -> Comparison:
    """Hold two GGUFs of one model against each other, as `drift` of both from the reference sees them.

    Args:
        first, second: GGUF files of the same model, whoever made them.
        reference: checkpoint folder, or GGUF of f32, f16 or bf16.
        text: as for `drift`; without it, weights alone are compared.
        tokens, context, score, imatrix, max_ram_bytes, threads, progress: as for `drift`.

    Raises:
        As `drift`.
    """
    texts = list(text or ())
    found = drift(
        reference,
        [first, second],
        text=texts or None,
        tokens=tokens,
        context=context,
        score=score,
        weights_only=not texts,
        imatrix=imatrix,
        max_ram_bytes=max_ram_bytes,
        threads=threads,
        progress=progress,
    )
    one, other = found.candidates
    alike = _same_bytes(Path(first), Path(second))
    pairs = list(zip(one.tensors, other.tensors, strict=True))
    tensors = sorted(
        (_tensor(a, b) for a, b in pairs if a.name not in alike),
        key=lambda pair: -abs(pair.relative_errors[1] - pair.relative_errors[0]),
    )
    layers = _layers(one, other)
    difference = found.differences[0] if found.differences else None
    statement = _statement(names_of([one.file, other.file]), len(alike), tensors, layers, difference)
    return Comparison(SCHEMA, found, len(alike), tuple(tensors), layers, difference, statement)


def _same_bytes(first: Path, second: Path) -> set[str]:
    """Names of tensors with the same type and bytes in both files."""
    others = {tensor.name: tensor for tensor in open_gguf(second).tensors}
    with closing(FileReader()) as reader:
        return {
            tensor.name
            for tensor in open_gguf(first).tensors
            if (other := others.get(tensor.name)) is not None
            and (tensor.type, tensor.shape) == (other.type, other.shape)
            and _equal(reader, tensor, other)
        }


def _equal(reader: FileReader, first: GgufTensor, second: GgufTensor) -> bool:
    for start in range(0, first.n_bytes, _BYTES):
        parts = []
        for tensor in (first, second):
            part = np.empty(min(_BYTES, tensor.n_bytes - start), np.uint8)
            try:
                reader.read_into(tensor.file, part.data, tensor.offset_bytes + start)
            except (OSError, EOFError) as error:
                raise CheckpointError(f"{tensor.file}: {tensor.name} cannot be read: {error}") from error
            parts.append(part)
        if not np.array_equal(parts[0], parts[1]):
            return False
    return True


def _tensor(first: TensorDrift, second: TensorDrift) -> TensorDifference:
    errors = first.error.relative_error, second.error.relative_error
    better: Literal["first", "second"] | None = None
    if errors[0] != errors[1]:
        better = "first" if errors[0] < errors[1] else "second"
    return TensorDifference(
        first.name, first.layer, (first.type, second.type), (first.bytes, second.bytes), errors, better
    )


def _layers(first: Candidate, second: Candidate) -> tuple[LayerDifference, ...]:
    errors = list(zip(_own_errors(first), _own_errors(second), strict=True))
    gaps = [b**2 - a**2 for (_, a), (_, b) in errors]
    direction = math.copysign(1.0, sum(gaps))
    total = sum(gap for gap in gaps if gap * direction > 0)
    return tuple(
        LayerDifference(layer, (a, b), gap, gap / total if gap * direction > 0 else 0.0)
        for ((layer, a), (_, b)), gap in zip(errors, gaps, strict=True)
    )


def _own_errors(one: Candidate) -> list[tuple[int, float]]:
    """(layer, error of its own): of hidden states, or where there was no text of weights."""
    own = [(layer.layer, layer.local.relative_error) for layer in one.layers if layer.local is not None]
    if own:
        return own
    sums: dict[int, tuple[float, float]] = {}
    for tensor in one.tensors:
        if tensor.layer is not None:
            error, size = sums.get(tensor.layer, (0.0, 0.0))
            squares = math.prod(tensor.shape) * tensor.error.rmse**2
            relative = tensor.error.relative_error
            sums[tensor.layer] = error + squares, size + (squares / relative**2 if relative else 0.0)
    return [(layer, math.sqrt(error / size) if size else 0.0) for layer, (error, size) in sorted(sums.items())]


def _statement(
    names: Sequence[str],
    n_same: int,
    tensors: Sequence[TensorDifference],
    layers: Sequence[LayerDifference],
    difference: Difference | None,
) -> str:
    if not tensors:
        return f"{names[0]} and {names[1]} hold the same bytes in all {n_same} tensors"
    parts = [] if difference is None else [difference.statement]
    if difference is None:
        smaller = [sum(one.better == which for one in tensors) for which in ("first", "second")]
        parts.append(
            f"of {len(tensors)} tensors that differ {names[0]} is nearer to the reference in {smaller[0]}, "
            f"{names[1]} in {smaller[1]}"
        )
    worst = max(layers, key=lambda layer: layer.share, default=None)
    if worst is not None and worst.share > 0:
        loser, at = (names[1], 1) if worst.gap > 0 else (names[0], 0)
        words = f"{worst.share:.0%} of what {loser} loses is lost in layer {worst.layer}"
        within = [one for one in tensors if one.layer == worst.layer and one.better == ("first", "second")[1 - at]]
        if within:
            most = within[0]
            words += f", where {most.name} is {most.types[at]} with an error of {most.relative_errors[at]:.2%}, and "
            words += f"{most.types[1 - at]} with {most.relative_errors[1 - at]:.2%} in {names[1 - at]}"
        parts.append(words)
    return "; ".join(parts)
