"""What quantization did to the next-token distribution, token by token, from logits that come in pieces.

No row of the vocabulary is ever held: of each token there is a running maximum, the sum of exponentials below it, the
sum of reference probabilities times differences of logits, and the five largest logits. Sums are in float64, in an
order that depends on the pieces alone; equal logits have a divergence of exactly 0.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from quantkit.errors import NonFiniteError, UsageError
from quantkit.llama4.forward import Team

Doubles = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]

TOP = 5
_PIECE = 1 << 15  # elements at a time: three arrays of float64 stay in a core's second cache


@dataclass(frozen=True)
class TokenScores:
    """Per scored token, all of shape (n,); probabilities are those of the whole vocabulary, logarithms natural.

    Args:
        kld: KL divergence of the candidate's distribution from the reference's, float64. Never negative but for
            rounding, about 1e-14.
        reference_log_p, candidate_log_p: ln p of the token that the text has next, float64.
        reference_top1, candidate_top1: the likeliest token, int64; of equal ones the lowest.
        top5_shared: how many tokens are among the five likeliest of both, int64.
        confidence: the reference's probability of its likeliest token, float64.
        targets: the token that the text has next, int64.
    """

    kld: Doubles
    reference_log_p: Doubles
    candidate_log_p: Doubles
    reference_top1: Ids
    candidate_top1: Ids
    top5_shared: Ids
    confidence: Doubles
    targets: Ids


class OutputComparison:
    """Compares the logits of candidates with those of a reference, as `Stream.logit_blocks` yields them.

    Args:
        scored: numbers of the tokens whose logits count, ascending, int64 (n,).
        targets: the token that follows each of them in the text, int64 (n,).
        n_candidates: how many are compared at once.
        team: shares the work out; no result depends on it. None for one thread.
    """

    def __init__(self, scored: Ids, targets: Ids, n_candidates: int, team: Team | None = None) -> None:
        if scored.ndim != 1 or scored.shape != targets.shape or not scored.size or (np.diff(scored) <= 0).any():
            raise UsageError(f"scored tokens {scored.shape} do not ascend, or do not fit targets {targets.shape}")
        self._scored, self._targets, self._team = scored, targets, team
        self._reference = _Running(targets)
        self._candidates = [_Running(targets) for _ in range(n_candidates)]
        self._cross = np.zeros((n_candidates, len(scored)))
        self._local = threading.local()

    def add(self, tokens: slice, ids: slice, reference: Floats, candidates: Sequence[Floats]) -> None:
        """One piece of all models: of the same tokens, and of the next ids of the vocabulary that they have not seen.

        Args:
            tokens, ids: with start and stop.
            reference, candidates: float32 (tokens, ids).
        """
        shape = (tokens.stop - tokens.start, ids.stop - ids.start)
        for logits in (reference, *candidates):
            if logits.shape != shape:
                raise UsageError(f"logits {logits.shape} are not those of {shape[0]} tokens and {shape[1]} ids")
        tasks = (
            partial(self._add, rows, block, ids, reference[block], [logits[block] for logits in candidates])
            for rows, block in self._runs(tokens, max(1, _PIECE // shape[1]))
        )
        if self._team is None:
            for task in tasks:
                task()
        else:
            self._team.run(tasks)

    def results(self) -> list[TokenScores]:
        """After the last piece, one for each candidate.

        Raises:
            NonFiniteError: a logit is NaN or infinite.
        """
        reference = self._reference
        log_sum = reference.log_sum
        found = []
        for candidate, cross in zip(self._candidates, self._cross, strict=True):
            own = candidate.log_sum
            with np.errstate(invalid="ignore"):
                kld = cross / reference.total - (log_sum - own)
            if not np.isfinite(kld).all():
                at = int(np.argmin(np.isfinite(kld)))
                raise NonFiniteError(f"logits of token {self._scored[at]} are not all finite")
            found.append(
                TokenScores(
                    kld=kld,
                    reference_log_p=reference.true - log_sum,
                    candidate_log_p=candidate.true - own,
                    reference_top1=reference.top_ids[:, 0].copy(),
                    candidate_top1=candidate.top_ids[:, 0].copy(),
                    top5_shared=_shared(reference.top_ids, candidate.top_ids),
                    confidence=1 / reference.total,
                    targets=self._targets,
                )
            )
        return found

    def _runs(self, tokens: slice, n_rows: int) -> Iterator[tuple[slice, slice]]:
        """(places among the scored tokens, rows of the piece) of tokens that follow each other, `n_rows` at most."""
        first, stop = np.searchsorted(self._scored, (tokens.start, tokens.stop)).tolist()
        while first < stop:
            here = self._scored[first : min(stop, first + n_rows)]
            gaps = np.flatnonzero(np.diff(here) != 1)
            n = int(gaps[0]) + 1 if len(gaps) else len(here)
            row = int(here[0]) - tokens.start
            yield slice(first, first + n), slice(row, row + n)
            first += n

    def _add(self, rows: slice, block: slice, ids: slice, reference: Floats, candidates: list[Floats]) -> None:
        shape = reference.shape
        exponentials, other = self._scratch("exponentials", shape), self._scratch("other", shape)
        shrink = self._reference.add(rows, ids, reference, exponentials)
        for number, logits in enumerate(candidates):
            np.subtract(reference, logits, out=other, dtype=np.float64)  # exact: both are float32
            cross = self._cross[number, rows]
            cross *= shrink
            cross += np.einsum("ij,ij->i", exponentials, other)
            self._candidates[number].add(rows, ids, logits, other)

    def _scratch(self, name: str, shape: tuple[int, ...]) -> Doubles:
        """An array of this thread, of any content."""
        size = shape[0] * shape[1]
        arrays = self._local.__dict__
        if name not in arrays or arrays[name].size < size:
            arrays[name] = np.empty(size)
        flat: Doubles = arrays[name]
        return flat[:size].reshape(shape)


class _Running:
    """What is kept of one model's logits, of shape (n, ...)."""

    def __init__(self, targets: Ids) -> None:
        n = len(targets)
        self._targets = targets
        self.peak = np.full(n, -np.inf)
        self.total = np.zeros(n)  # of exp(logit - peak)
        self.true = np.full(n, np.nan)
        self.top_ids = np.full((n, TOP), -1)
        self._top = np.full((n, TOP), -np.inf, np.float32)

    @property
    def log_sum(self) -> Doubles:
        with np.errstate(invalid="ignore"):
            log_sum: Doubles = self.peak + np.log(self.total)
        return log_sum

    def add(self, rows: slice, ids: slice, logits: Floats, exponentials: Doubles) -> Doubles:
        """Fill `exponentials` with exp(logits - peak), and return what earlier sums of such are multiplied with."""
        highest = logits.max(axis=1)
        self._keep_top(rows, ids, logits, highest)
        targets = self._targets[rows]
        at = np.flatnonzero((targets >= ids.start) & (targets < ids.stop))
        self.true[rows][at] = logits[at, targets[at] - ids.start]
        before = self.peak[rows].copy()
        peak = np.maximum(before, highest, out=self.peak[rows])
        with np.errstate(invalid="ignore"):  # what is not finite is found in the end
            shrink: Doubles = np.exp(before - peak)
            np.subtract(logits, peak[:, None], out=exponentials)
            np.exp(exponentials, out=exponentials)
        total = self.total[rows]
        total *= shrink
        total += exponentials.sum(axis=1)
        return shrink

    def _keep_top(self, rows: slice, ids: slice, logits: Floats, highest: Floats) -> None:
        top, top_ids = self._top[rows], self.top_ids[rows]
        at = np.flatnonzero(highest > top[:, -1])  # ids ascend: an equal one has a lower id already
        if not len(at):
            return
        part = logits[at]
        columns = _largest(part, min(TOP, part.shape[1]))
        values = np.concatenate([top[at], np.take_along_axis(part, columns, 1)], axis=1)
        numbers = np.concatenate([top_ids[at], columns + ids.start], axis=1)
        order = np.argsort(-values, axis=1, kind="stable")[:, :TOP]
        top[at] = np.take_along_axis(values, order, 1)
        top_ids[at] = np.take_along_axis(numbers, order, 1)


def _largest(values: Floats, count: int) -> Ids:
    """Columns of the `count` largest values of each row, of equal ones the lowest, ascending: (rows, count)."""
    place = values.shape[1] - count
    least = np.partition(values, place, axis=1)[:, place]
    chosen = values >= least[:, None]
    for row in np.flatnonzero(chosen.sum(axis=1) != count):  # several are equal to the least
        chosen[row] = False
        chosen[row, np.argsort(-values[row], kind="stable")[:count]] = True
    return np.nonzero(chosen)[1].reshape(-1, count)


def _shared(first: Ids, second: Ids) -> Ids:
    """How many numbers both rows have: (n, TOP) and (n, TOP) -> (n,)."""
    both = (first[:, :, None] == second[:, None, :]) & (first[:, :, None] >= 0)
    shared: Ids = both.any(axis=2).sum(axis=1)
    return shared
