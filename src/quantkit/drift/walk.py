"""The reference and all candidates side by side: each advances one layer, and that layer is compared and let go."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quantkit.drift.output import OutputComparison, TokenScores
from quantkit.drift.progress import Progress
from quantkit.drift.routing import LayerRouting
from quantkit.drift.sample import Sample
from quantkit.drift.states import StateError, StateErrorSums
from quantkit.drift.watch import Arrangement, CandidateWatch, LayerDrift, ReferenceWatch
from quantkit.errors import PlanRefusedError
from quantkit.llama4.forward import Blocks, Stream, Team, Weights, estimate, team_size
from quantkit.llama4.forward.blocks import spans
from quantkit.llama4.forward.floats import Floats

COPIED = 16  # one chunk of so many has copies, and there are two of each
_ROWS = 960
_SCORE_BYTES = 250  # of what is kept of a token's logits, of each model


@dataclass(frozen=True)
class Walked:
    """What a walk found out about one candidate; `embedding` is the error of the states that its first layer gets."""

    scores: TokenScores
    embedding: StateError
    routing: tuple[LayerRouting, ...]
    layers: tuple[LayerDrift, ...]


def walk(
    reference: Weights,
    candidates: Sequence[Weights],
    sample: Sample,
    *,
    local: bool = True,
    max_ram_bytes: int | None = None,
    folder: Path | None = None,
    threads: int = 0,
    blocks: Blocks | None = None,
    progress: Callable[[Progress], None] | None = None,
    at_end: Callable[[Stream], None] | None = None,
) -> list[Walked]:
    """Compare each candidate with the reference, layer by layer and then token by token.

    Args:
        local: also what each layer does by itself, on one chunk of sixteen: an eighth more time.
        max_ram_bytes: of the whole process, about; where hidden states do not fit in, they are kept in files.
        threads: 0 takes all processors; no result depends on it.
        at_end: is given the reference's stream after its last layer; its first tokens are the sample's.

    Raises:
        PlanRefusedError: more memory is needed than is allowed.
        CheckpointError, NonFiniteError: from reading weights.
    """
    arrangement = _arrangement(sample, local=local)
    tokens = arrangement.tokens(sample.chunks)
    blocks = blocks or Blocks()
    beside = 4 * (arrangement.halves.stop - arrangement.n) * 2 * reference.hp.hidden_size
    beside += sample.chunks.size * (4 * reference.hp.n_experts + _SCORE_BYTES * (1 + len(candidates)))
    limits = _limits([reference, *candidates], tokens.shape, blocks, max_ram_bytes, beside, threads)
    watch = ReferenceWatch(reference.hp, arrangement)
    watches = [CandidateWatch(weights.hp, arrangement, watch) for weights in candidates]
    with ExitStack() as stack:
        streams = [
            stack.enter_context(
                Stream(
                    weights,
                    tokens,
                    observer=observer,
                    max_ram_bytes=limit,
                    folder=folder,
                    blocks=blocks,
                    threads=threads,
                )
            )
            for weights, observer, limit in zip([reference, *candidates], [watch, *watches], limits, strict=True)
        ]
        tell = _Teller(progress, reference.hp.n_layers, len(streams), sample.chunks.size)
        text = slice(0, arrangement.n)
        embeddings = [_figures(streams[0], stream, text, sample.context) for stream in streams[1:]]
        routing: list[list[LayerRouting]] = [[] for _ in candidates]
        layers: list[list[LayerDrift]] = [[] for _ in candidates]
        for layer in range(reference.hp.n_layers):
            is_routed = layer in reference.hp.moe_layers
            name = f"blk.{layer}.ffn_gate_inp.weight"
            routers = [_router(weights, name) for weights in (reference, *candidates)] if is_routed else []
            watch.begin(name, routers)
            copies = slice(arrangement.whole.start, arrangement.halves.stop)
            before = streams[0].states.read(copies)  # each its own: rounding differs by place
            streams[0].advance()
            tell(0, layer + 1)
            for number, (stream, observer) in enumerate(zip(streams[1:], watches, strict=True)):
                observer.begin()
                stream.states.write(copies, before)
                stream.advance()
                if is_routed:
                    routing[number].append(observer.layer_routing(layer, watch.local[number]))
                load = watch.local[number].reference_load if is_routed else ()
                layers[number].append(_layer(layer, arrangement, streams[0], stream, observer, load))
                tell(number + 1, layer + 1)
        if at_end is not None:
            at_end(streams[0])
        scores = _compare_logits(streams, reference.hp.vocab_size, sample, threads, tell)
    return [
        Walked(found, embedding, tuple(routed), tuple(drifts))
        for found, embedding, routed, drifts in zip(scores, embeddings, routing, layers, strict=True)
    ]


class _Teller:
    def __init__(self, progress: Callable[[Progress], None] | None, n_layers: int, n_models: int, n: int) -> None:
        self._progress, self._n_layers, self._n = progress, n_layers, n
        self._total = (n_layers + 1) * n_models * n
        self._start, self._steps = time.monotonic(), 0

    def __call__(self, model: int, layer: int, share: float | None = None) -> None:
        """One model has done a layer, or all have `share` of their logits."""
        if share is None:
            self._steps += 1
        if self._progress is not None:
            models = self._total // (self._n_layers + 1) // self._n
            done = int((self._steps + models * (share or 0.0)) * self._n)
            what = f"layer {layer}" if share is None else "logits"
            seconds = time.monotonic() - self._start
            self._progress(Progress(what, model, layer, done, self._total, seconds))


def _arrangement(sample: Sample, *, local: bool) -> Arrangement:
    n = len(sample.chunks)
    count = max(1, n // COPIED) if local else 0
    chosen = (np.arange(count) * n + n // 2) // max(1, count)  # evenly, each in the middle of its stretch
    return Arrangement(sample.chunks.size, sample.context, tuple(chosen.tolist()))


def _limits(
    models: Sequence[Weights],
    shape: tuple[int, ...],
    blocks: Blocks,
    max_ram_bytes: int | None,
    beside: int,
    threads: int,
) -> list[int | None]:
    """What each stream may take: all it wants, or so little that its hidden states go to a file.

    Args:
        beside: bytes that are taken beside all streams.
    """
    if max_ram_bytes is None:
        return [None] * len(models)
    memories = [estimate(weights, shape[0], shape[1], blocks, team_size(threads)) for weights in models]
    working = beside + sum(memory.working for memory in memories)
    if working > max_ram_bytes:
        raise PlanRefusedError(
            f"{max_ram_bytes:,} bytes of memory are allowed, and {working:,} are needed beside hidden states",
            hint="Allow more, or compare fewer files at once.",
        )
    if working + sum(memory.states for memory in memories) <= max_ram_bytes:
        return [None] * len(models)
    return [memory.working for memory in memories]


def _router(weights: Weights, name: str) -> Floats:
    (matrix,) = weights.matrices([name])
    values: Floats = matrix.tensor.dequantize()
    return values


def _layer(
    layer: int,
    arrangement: Arrangement,
    reference: Stream,
    candidate: Stream,
    observer: CandidateWatch,
    load: Sequence[float],
) -> LayerDrift:
    """Args: load: of each expert in the reference; none in a dense layer."""
    experts, mean = observer.expert_drifts(load) if load else ((), None)
    copies = arrangement.whole.stop > arrangement.whole.start

    def figures(rows: slice) -> StateError:
        return _figures(reference, candidate, rows, arrangement.context)

    return LayerDrift(
        layer=layer,
        error=figures(slice(0, arrangement.n)),
        local=figures(arrangement.whole) if copies else None,
        attention=observer.attention_error.figures(),
        feed_forward=figures(arrangement.halves) if copies else None,
        experts=experts,
        expert_error=mean,
    )


def _figures(reference: Stream, candidate: Stream, rows: slice, context: int) -> StateError:
    """Of hidden states, each chunk's first token left out."""
    sums = StateErrorSums()
    for part in spans(rows.start, rows.stop, _ROWS):
        counted = np.arange(part.start, part.stop) % context > 0
        sums.add(reference.states.read(part)[counted], candidate.states.read(part)[counted])
    found = sums.figures()
    assert found is not None
    return found


def _compare_logits(
    streams: Sequence[Stream], vocab_size: int, sample: Sample, threads: int, tell: Callable[[int, int, float], None]
) -> list[TokenScores]:
    team = Team(threads)
    try:
        comparison = OutputComparison(sample.scored, sample.targets, len(streams) - 1, team)
        n_layers, told = streams[0].layer, time.monotonic()
        for pieces in zip(*(stream.logit_blocks(0, sample.chunks.size) for stream in streams), strict=True):
            tokens, ids, logits = pieces[0]
            comparison.add(tokens, ids, logits, [other for _, _, other in pieces[1:]])
            if (now := time.monotonic()) - told > 0.1:
                told = now
                tell(0, n_layers, ids.start / vocab_size)
        tell(0, n_layers, 1.0)
        return comparison.results()
    finally:
        team.close()
