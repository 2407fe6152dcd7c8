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

SCHEMA = 2  # of --json: raised when a key changes its meaning or goes away
EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"
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
    """What a layer, or what stands before or behind them all, errs by itself in both files.

    Args:
        name: "embedding", "layer 0" and so on, "output".
        layer: None for the embedding and the output.
        relative_errors: of the hidden states that the embedding makes, and that the layer leaves when it is given the
            reference's; of the output's weights. Without text, of all its weights together.
        gap: second's squared error minus the first's.
        share: gap over the sum of all gaps in the direction in which the files differ; 0 for what goes the other way,
            and for all where the files cannot be told apart or the errors do not explain the difference.
    """

    name: str
    layer: int | None
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
        layers: in order, with the embedding before and the output behind them.
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
    difference = found.differences[0] if found.differences else None
    layers = _layers(one, other, difference)
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


def _layers(first: Candidate, second: Candidate, difference: Difference | None) -> tuple[LayerDifference, ...]:
    errors = [_own_errors(first), _own_errors(second)]
    gaps = {layer: errors[1][layer] ** 2 - error**2 for layer, error in errors[0].items()}
    direction = math.copysign(1.0, sum(gaps.values()))
    if difference is not None and (not difference.told_apart or difference.kld * direction < 0):
        direction = 0.0
    total = sum(gap for gap in gaps.values() if gap * direction > 0)
    return tuple(
        LayerDifference(
            f"layer {layer}" if isinstance(layer, int) else layer,
            layer if isinstance(layer, int) else None,
            (errors[0][layer], errors[1][layer]),
            gap,
            gap / total if gap * direction > 0 else 0.0,
        )
        for layer, gap in gaps.items()
    )


def _own_errors(one: Candidate) -> dict[int | str, float]:
    """By layer, and of "embedding" and "output": of hidden states, or where there was no text of weights."""
    sums: dict[int | None, tuple[float, float]] = {}
    alone: dict[str, float] = {}
    for tensor in one.tensors:
        error, size = sums.get(tensor.layer, (0.0, 0.0))
        squares = math.prod(tensor.shape) * tensor.error.rmse**2
        relative = tensor.error.relative_error
        sums[tensor.layer] = error + squares, size + (squares / relative**2 if relative else 0.0)
        alone[tensor.name] = relative
    layers = {
        layer: math.sqrt(error / size) if size else 0.0 for layer, (error, size) in sums.items() if layer is not None
    }
    own = {layer.layer: layer.local.relative_error for layer in one.layers if layer.local is not None}
    embedding = alone[EMBEDDING] if one.embedding is None else one.embedding.relative_error
    found: dict[int | str, float] = {"embedding": embedding}
    found.update((layer, own.get(layer, error)) for layer, error in sorted(layers.items()))
    return found | {"output": alone.get(OUTPUT, alone[EMBEDDING])}


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
    worst = max(layers, key=lambda layer: layer.share)
    if worst.share > 0:
        loser, at = (names[1], 1) if worst.gap > 0 else (names[0], 0)
        words = f"{worst.share:.0%} of what {loser} loses is lost in {_place(worst)}"
        within = [one for one in tensors if _is_in(one, worst) and one.better == ("first", "second")[1 - at]]
        if within:
            most = within[0]
            words += f", where {most.name} is {most.types[at]} with an error of {most.relative_errors[at]:.2%}, and "
            words += f"{most.types[1 - at]} with {most.relative_errors[1 - at]:.2%} in {names[1 - at]}"
        parts.append(words)
    elif difference is not None and difference.told_apart:
        parts.append("what embedding, layers and output err by themselves does not explain it")
    return "; ".join(parts)


def _place(one: LayerDifference) -> str:
    return one.name if one.layer is not None else f"the {one.name}"


def _is_in(tensor: TensorDifference, part: LayerDifference) -> bool:
    if part.layer is not None:
        return tensor.layer == part.layer
    return tensor.name == (OUTPUT if part.name == "output" else EMBEDDING)
