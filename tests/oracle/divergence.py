"""How far a quantized file's next-token distribution is from the reference's, by llama.cpp's logits.

Each quantized file is decoded by the `gguf` package to a float32 file, which llama.cpp multiplies without rounding
activations to 8 bits; with the quantized file itself, that rounding comes on top.

Two implementations of one model differ by float32's rounding, by 1e-12 nats a token here. But of some thousand tokens
one has two experts whose router logits are as near as that, and then it depends on the implementation, its processor
and its BLAS which expert it gets: there, and by attention in what follows, even the *references* of both are as far
apart as quantization leaves. One such token was 0.4 % of q8_0's mean. So such tokens are told by their
log-probabilities (`same_way`) and counted, and all others are held against each other far more strictly than means.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tests.oracle.llama import Model

from quantkit.drift import TokenScores
from quantkit.drift.sample import Sample

Doubles = npt.NDArray[np.float64]
ROUNDING = 1e-4  # of a log-probability; a token that takes another expert changes by a hundred times as much


def log_softmax(logits: npt.NDArray[np.floating]) -> Doubles:
    """Log-probabilities (n, vocabulary)."""
    wide = logits.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(-1, keepdims=True))


def log_probabilities(path: Path, sample: Sample) -> Doubles:
    """Of scored tokens, by llama.cpp: (n, vocabulary)."""
    with Model(path, n_ctx=sample.context) as model:
        found = []
        for first, chunk in zip(range(0, sample.chunks.size, sample.context), sample.chunks, strict=True):
            mine = (sample.scored >= first) & (sample.scored < first + sample.context)
            found.append(log_softmax(model.logits(chunk)[sample.scored[mine] - first]))
        return np.concatenate(found)


@dataclass(frozen=True)
class Divergence:
    """Per scored token, all of shape (n,)."""

    kld: Doubles
    reference_log_p: Doubles
    candidate_log_p: Doubles
    same_top1: npt.NDArray[np.bool_]

    @property
    def mean_kld(self) -> float:
        return float(self.kld.mean())

    @property
    def top1_agreement(self) -> float:
        return float(self.same_top1.mean())

    @property
    def perplexity_ratio(self) -> float:
        """The candidate's over the reference's."""
        return float(np.exp((self.reference_log_p - self.candidate_log_p).mean()))

    def same_way(self, scores: TokenScores) -> npt.NDArray[np.bool_]:
        """Tokens whose true successor has the same log-probability, but for rounding, in both implementations."""
        reference = np.abs(scores.reference_log_p - self.reference_log_p) < ROUNDING
        same: npt.NDArray[np.bool_] = reference & (np.abs(scores.candidate_log_p - self.candidate_log_p) < ROUNDING)
        return same


def divergence(p: Doubles, q: Doubles, targets: npt.NDArray[np.int64]) -> Divergence:
    """Of log-probabilities (n, vocabulary) of the reference and a candidate; targets are the text's next tokens."""
    rows = np.arange(len(p))
    return Divergence((np.exp(p) * (p - q)).sum(1), p[rows, targets], q[rows, targets], p.argmax(1) == q.argmax(1))
