"""Whether tokens go to the experts that they went to: with one expert a token, one that does not has another output."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quantkit.llama4.forward.floats import Floats

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class RouterDrift:
    """A candidate's router against the reference's, over the tokens of one layer.

    Args:
        agreement: share of tokens whose first expert is the same.
        kl: mean KL divergence of softmax(candidate's logits) from softmax(reference's), over all experts.
        weighted_flips: of tokens that change their expert, the sum of the reference's margins (first minus second
            logit) over that of all tokens: flips of tokens that were undecided weigh little.
        load: share of tokens that goes to each expert.
        load_shift: half the sum of |load - reference's load|: the share of tokens that would have to be moved.
    """

    agreement: float
    kl: float
    weighted_flips: float
    load: tuple[float, ...]
    load_shift: float


@dataclass(frozen=True)
class LayerRouting:
    """One layer with experts.

    Args:
        layer: counted from 0.
        load: of the reference.
        local: the candidate's router on the reference's hidden states.
        cumulative: the candidate's router on its own.
    """

    layer: int
    load: tuple[float, ...]
    local: RouterDrift
    cumulative: RouterDrift


class RouterSums:
    """Collects pairs of router logits, in float64."""

    def __init__(self, n_experts: int) -> None:
        self._n = self._same = 0
        self._kl = self._margin = self._flipped = 0.0
        self._loads = np.zeros((2, n_experts), np.int64)

    def add(self, reference: Floats, candidate: Floats) -> None:
        """float32 (n, experts) both."""
        wanted, found = reference.astype(np.float64), candidate.astype(np.float64)
        first, second = wanted.argmax(1), found.argmax(1)
        flips = first != second
        p, log_p = _softmax(wanted)
        _, log_q = _softmax(found)
        self._n += len(wanted)
        self._same += int((~flips).sum())
        self._kl += float((p * (log_p - log_q)).sum())
        if wanted.shape[1] > 1:
            top = np.partition(wanted, -2, axis=1)
            margins = top[:, -1] - top[:, -2]
            self._margin += float(margins.sum())
            self._flipped += float(margins[flips].sum())
        for load, experts in zip(self._loads, (first, second), strict=True):
            load += np.bincount(experts, minlength=len(load))

    @property
    def reference_load(self) -> tuple[float, ...]:
        return tuple((self._loads[0] / self._n).tolist())

    def figures(self) -> RouterDrift:
        loads = self._loads / self._n
        return RouterDrift(
            agreement=self._same / self._n,
            kl=self._kl / self._n,
            weighted_flips=self._flipped / self._margin if self._margin else 0.0,
            load=tuple(loads[1].tolist()),
            load_shift=float(np.abs(loads[1] - loads[0]).sum() / 2),
        )


def _softmax(logits: Doubles) -> tuple[Doubles, Doubles]:
    """Probabilities and their logarithms."""
    shifted = logits - logits.max(1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return np.exp(log_p), log_p
