"""Per-token scores in a few numbers: what reports, gates and tables show of a candidate's output."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from quantkit.drift.clusters import Clusters
from quantkit.drift.intervals import Mean, mean, share
from quantkit.drift.output import TOP, TokenScores

Interval = tuple[float, float]


@dataclass(frozen=True)
class Kld:
    """KL divergence of the candidate's next-token distribution from the reference's, in nats, over scored tokens.

    Args:
        mean, ci95: and its 95 % interval; None where there are too few documents or chunks for one.
        effective_tokens: that many independent tokens would tell as much about the mean.
        median, p90, p95, p99, p999, max: of tokens; p999 is exceeded by one in a thousand.
    """

    mean: float
    ci95: Interval | None
    effective_tokens: float
    median: float
    p90: float
    p95: float
    p99: float
    p999: float
    max: float


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean -ln p of the text's tokens.

    Args:
        reference, candidate: each one's.
        ln_ratio, ci95: ln(candidate / reference), and its 95 % interval; tokens are paired.
        effective_tokens: for ln_ratio.
    """

    reference: float
    candidate: float
    ln_ratio: float
    ci95: Interval | None
    effective_tokens: float


@dataclass(frozen=True)
class DeltaP:
    """Candidate's minus reference's probability of the token that the text has, 0 to 1.

    Args:
        mean, ci95: negative where the candidate is less sure of the text.
        rms: root of the mean square.
        min, p001, p01, p05, p25, median, p75, p95, p99, p999, max: quantiles over tokens.
    """

    mean: float
    ci95: Interval | None
    rms: float
    min: float
    p001: float
    p01: float
    p05: float
    p25: float
    median: float
    p75: float
    p95: float
    p99: float
    p999: float
    max: float


@dataclass(frozen=True)
class Flips:
    """Whether the likeliest token is the one that the text has; shares of scored tokens.

    Args:
        reference_correct, candidate_correct: where it is.
        correct_to_wrong, wrong_to_correct: where that changed.
    """

    reference_correct: float
    candidate_correct: float
    correct_to_wrong: float
    wrong_to_correct: float


@dataclass(frozen=True)
class Figures:
    """A candidate's output over some scored tokens.

    Args:
        tokens: how many.
        top1_agreement, top1_ci95: share of tokens whose likeliest next token is the reference's.
        top5_overlap: mean share of the five likeliest that both have.
    """

    tokens: int
    kld: Kld
    perplexity: Perplexity
    top1_agreement: float
    top1_ci95: Interval | None
    top5_overlap: float
    delta_p: DeltaP
    flips: Flips


def figures(scores: TokenScores, groups: Clusters) -> Figures:
    """Of all tokens in `scores`, and `groups` of the same tokens."""
    n = len(scores.kld)
    kld = mean(scores.kld, groups, positive=bool((scores.kld > 0).any() and scores.kld.mean() > 0))
    same = share((scores.reference_top1 == scores.candidate_top1) * 1.0, groups, design_effect=n / kld.effective_tokens)
    return Figures(
        tokens=n,
        kld=_kld(scores, kld),
        perplexity=_perplexity(scores, groups),
        top1_agreement=same.value,
        top1_ci95=same.ci95,
        top5_overlap=float(scores.top5_shared.mean()) / TOP,
        delta_p=_delta_p(scores, groups),
        flips=_flips(scores),
    )


def only(scores: TokenScores, tokens: np.ndarray) -> TokenScores:
    """The scores of some tokens, a mask (n,)."""
    return TokenScores(**{name: values[tokens] for name, values in vars(scores).items()})


def _kld(scores: TokenScores, found: Mean) -> Kld:
    median, p90, p95, p99, p999 = np.quantile(scores.kld, [0.5, 0.9, 0.95, 0.99, 0.999]).tolist()
    return Kld(
        mean=found.value,
        ci95=found.ci95,
        effective_tokens=found.effective_tokens,
        median=median,
        p90=p90,
        p95=p95,
        p99=p99,
        p999=p999,
        max=float(scores.kld.max()),
    )


def _perplexity(scores: TokenScores, groups: Clusters) -> Perplexity:
    ratio = mean(scores.reference_log_p - scores.candidate_log_p, groups)
    return Perplexity(
        reference=float(np.exp(-scores.reference_log_p.mean())),
        candidate=float(np.exp(-scores.candidate_log_p.mean())),
        ln_ratio=ratio.value,
        ci95=ratio.ci95,
        effective_tokens=ratio.effective_tokens,
    )


def _delta_p(scores: TokenScores, groups: Clusters) -> DeltaP:
    change = np.exp(scores.candidate_log_p) - np.exp(scores.reference_log_p)
    found = mean(change, groups)
    ranks = [0, 0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999, 1]
    return DeltaP(
        found.value, found.ci95, math.sqrt(float(np.square(change).mean())), *np.quantile(change, ranks).tolist()
    )


def _flips(scores: TokenScores) -> Flips:
    before, after = (top == scores.targets for top in (scores.reference_top1, scores.candidate_top1))
    return Flips(
        reference_correct=float(before.mean()),
        candidate_correct=float(after.mean()),
        correct_to_wrong=float((before & ~after).mean()),
        wrong_to_correct=float((~before & after).mean()),
    )
