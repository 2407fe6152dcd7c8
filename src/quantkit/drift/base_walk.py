"""A candidate against log-probabilities in a file, as llama-perplexity --kl-divergence scores it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from quantkit.drift.kl_base import BLOCK_BYTES, FLOOR, KlBase, record_blocks
from quantkit.drift.output import OutputComparison, TokenScores
from quantkit.drift.progress import Progress
from quantkit.drift.sample import Sample
from quantkit.errors import UsageError
from quantkit.llama4.forward import Stream, Team, Weights

Doubles = npt.NDArray[np.float64]
_ROWS = 16  # in float64 at a time


@dataclass(frozen=True)
class KlBaseFacts:
    """What a file of log-probabilities does to the figures.

    Args:
        floor: no log-probability is further below the likeliest token's, in nats.
        step: the largest between two log-probabilities, in nats.
        uncounted: mean probability that KLD leaves out: 1 minus the sum of those above exp(-floor), as decoded.
            Negative where the rounding of 16 bits makes it so.
        statement: the same as a sentence.
    """

    floor: float
    step: float
    uncounted: float
    statement: str


@dataclass(frozen=True)
class _Base:
    """Of each scored token (n,)."""

    kld: Doubles
    log_p: Doubles
    confidence: Doubles
    counted: Doubles
    step: Doubles


def base_sample(base: KlBase, bos_id: int | None, tokens: int | None) -> Sample:
    """The tokens of the file, each chunk's first one replaced by BOS, as llama-perplexity evaluates them.

    Args:
        tokens: of the file's, rounded down to whole chunks; None takes all.
    """
    if tokens is not None and tokens < base.context:
        raise UsageError(f"{tokens} tokens do not fill one chunk of {base.context}, which {base.path} has")
    chunks = base.tokens[: None if tokens is None else tokens // base.context].copy()
    firsts = chunks[:, 0].copy()
    if bos_id is not None:
        chunks[:, 0] = bos_id
    positions = np.arange(base.context // 2, base.context - 1)
    scored = (np.arange(len(chunks))[:, None] * base.context + positions).reshape(-1)
    return Sample(chunks, np.zeros(chunks.size, np.int64), (None,), scored, firsts)


def walk_base(
    base: KlBase,
    candidate: Weights,
    sample: Sample,
    *,
    number: int = 1,
    n_candidates: int = 1,
    max_ram_bytes: int | None = None,
    folder: Path | None = None,
    threads: int = 0,
    progress: Callable[[Progress], None] | None = None,
) -> tuple[TokenScores, KlBaseFacts]:
    """All tokens through the candidate, and its logits, some records at a time, against the file's.

    KLD is the sum of p (ln p - ln q) over ids with ln p > -16, p as decoded and not normalized again.

    Raises:
        CheckpointError, NonFiniteError: from reading either.
        PlanRefusedError: more memory is needed than is allowed.
    """
    start, hp = time.monotonic(), candidate.hp
    total = (hp.n_layers + 1) * sample.chunks.size

    def tell(what: str, layer: int, share: float) -> None:
        if progress is not None:
            done = int((layer + share) * sample.chunks.size) + (number - 1) * total
            progress(Progress(what, number, layer, done, n_candidates * total, time.monotonic() - start))

    beside = 4 * min(BLOCK_BYTES, 4 * base.n_vocab * base.n_scored)  # logits, records, and both in float32
    limit = None if max_ram_bytes is None else max(1, max_ram_bytes - beside)
    team = Team(threads)
    try:
        with Stream(candidate, sample.chunks, max_ram_bytes=limit, folder=folder, threads=threads) as stream:
            for layer in range(hp.n_layers):
                stream.advance()
                tell(f"layer {layer + 1}", layer + 1, 0.0)
            comparison = OutputComparison(sample.scored, sample.targets, 1, team)
            found: list[_Base] = []
            for chunk in range(len(sample.chunks)):
                for first, stop in record_blocks(base.context, base.n_vocab):
                    begin = chunk * base.context
                    logits = stream.logits(begin + first, begin + stop)
                    records = slice(first - base.context // 2, stop - base.context // 2)
                    log_p = base.log_probabilities(chunk, records.start, records.stop)
                    comparison.add(slice(begin + first, begin + stop), slice(0, base.n_vocab), log_p, [logits])
                    found.append(_against(log_p, logits, sample.chunks[chunk, first + 1 : stop + 1]))
                tell("logits", hp.n_layers, (chunk + 1) / len(sample.chunks))
            (scores,) = comparison.results()
    finally:
        team.close()
    whole = _Base(*(np.concatenate(parts) for parts in zip(*(vars(one).values() for one in found), strict=True)))
    scores = replace(scores, kld=whole.kld, reference_log_p=whole.log_p, confidence=whole.confidence)
    return scores, _facts(whole)


def _against(log_p: npt.NDArray[np.float32], logits: npt.NDArray[np.float32], targets: npt.NDArray[np.int64]) -> _Base:
    """Of logits, and of log-probabilities as decoded: float32 (n, n_vocab)."""
    n = len(log_p)
    kld, counted, step = np.empty(n), np.empty(n), np.empty(n)
    for first in range(0, n, _ROWS):
        rows = slice(first, min(n, first + _ROWS))
        p, q = log_p[rows].astype(np.float64), logits[rows].astype(np.float64)
        q -= q.max(axis=1, keepdims=True)
        q -= np.log(np.exp(q).sum(axis=1, keepdims=True))
        weights = np.where(p > -FLOOR, np.exp(p), 0.0)
        kld[rows] = (weights * (p - q)).sum(axis=1)
        counted[rows] = weights.sum(axis=1)
        step[rows] = (p.max(axis=1) - p.min(axis=1)) / 65535
    true: Doubles = log_p[np.arange(n), targets].astype(np.float64)
    return _Base(kld, true, np.exp(log_p.max(axis=1).astype(np.float64)), counted, step)


def _facts(found: _Base) -> KlBaseFacts:
    step, uncounted = float(found.step.max()), float(1 - found.counted.mean())
    statement = (
        f"Log-probabilities of the reference are llama.cpp's, cut to 16 bits in steps of {step:.2g} nats at most, with "
        f"a floor {FLOOR:g} nats below the likeliest token; KLD leaves out ids below exp(-{FLOOR:g}), {uncounted:.2g} "
        "of the probability. So figures are comparable with llama-perplexity's, and no file has a drift of exactly 0"
    )
    return KlBaseFacts(FLOOR, step, uncounted, statement)
