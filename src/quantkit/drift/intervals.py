"""How sure a mean over tokens is, when tokens of a document are alike and a few of them weigh more than all others.

A mean over tokens is the ratio of two sums over clusters, of values and of tokens; its standard error is that of the
ratio estimator (Cochran, Sampling Techniques, 1977, 6.4). Intervals are bootstrap-t (Efron 1982; Hall 1988): clusters
are drawn with replacement, and the quantiles of (mean* - mean) / error* take the place of Student's t. Unlike those of
plain percentiles and of t they know of skewness, which is why they hold for KL divergences (tools/coverage.py measures
how often). What they lack with few clusters is of the order of 1/n (Hall 1988), and so is what is added here. Positive
quantities are treated on a log scale. The seed is fixed: the same values have the same interval.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from quantkit.drift.clusters import Clusters, Doubles

MIN_CLUSTERS = 5  # with fewer, a draw is often one cluster alone, and no interval is given
DRAWS = 4000
SEED = 20261123
_ELEMENTS = 1 << 21  # of a batch of draws
_ROUNDING = 1e-10  # of squares that cancel: below this share they are none
_MOST_ALIKE = 0.8  # correlation of neighbouring blocks: what a few of them say beyond that is noise


@dataclass(frozen=True)
class Mean:
    """A mean over tokens.

    Args:
        value: it.
        ci95: its 95 % interval; None with fewer than five clusters, or where one of them alone differs from the others.
        effective_tokens: that many independent tokens would tell as much.
        p_value: two-sided, of the hypothesis that it is 0; None without an interval.
    """

    value: float
    ci95: tuple[float, float] | None
    effective_tokens: float
    p_value: float | None


def mean(values: Doubles, groups: Clusters, *, positive: bool = False) -> Mean:
    """The mean of values by token (n,), float64.

    Args:
        positive: values cannot be negative, and nor can the interval.
    """
    sums, sizes = groups.sums(values), groups.sizes
    low, high, p = bootstrap_t(sums, sizes, positive=positive, chunks_per_block=groups.chunks_per_block)
    known = groups.count >= MIN_CLUSTERS and bool(np.isfinite(low[0]) and np.isfinite(high[0]))
    return Mean(
        value=float(values.mean()),
        ci95=(float(low[0]), float(high[0])) if known else None,
        effective_tokens=effective_tokens(values, groups),
        p_value=float(p[0]) if known else None,
    )


def effective_tokens(values: Doubles, groups: Clusters) -> float:
    """Variance of a token over that of the mean: how many independent tokens would tell as much; at most all."""
    return float(_effective(groups.sums(values), groups.sizes, float(values.var()), groups.chunks_per_block))


def share(hits: Doubles, groups: Clusters, *, design_effect: float = 1.0) -> Mean:
    """The share of tokens that are 1 and not 0, with the interval of `wilson`.

    Args:
        design_effect: tokens over effective tokens, where all hits are equal and do not tell.
    """
    sums, sizes = groups.sums(hits), groups.sizes
    low, high, effective = wilson(sums, sizes, design_effect=design_effect, chunks_per_block=groups.chunks_per_block)
    known = groups.count >= MIN_CLUSTERS
    return Mean(float(hits.mean()), (float(low[0]), float(high[0])) if known else None, float(effective[0]), None)


def wilson(
    sums: Doubles, sizes: Doubles, *, design_effect: float = 1.0, chunks_per_block: int | None = None
) -> tuple[Doubles, Doubles, Doubles]:
    """95 % intervals of shares, for any number of data sets at once.

    Shares near 0 and 1 rest on a few tokens, too few to resample; Wilson's interval (1927) holds there. Tokens are as
    many as are effective, cut by (z / t)² for the clusters that this is known from (Korn and Graubard 1998).

    Args:
        sums, sizes: hits and tokens by cluster, (clusters,) or (data sets, clusters).
        design_effect: as in `share`.
        chunks_per_block: as in `bootstrap_t`.

    Returns:
        (low, high, effective tokens), float64 (data sets,).
    """
    sums, sizes = (np.atleast_2d(array) for array in np.broadcast_arrays(sums, sizes))
    n = sizes.sum(1)
    p = sums.sum(1) / n
    mixed = (p > 0) & (p < 1)
    effective = np.where(mixed, _effective(sums, sizes, p * (1 - p), chunks_per_block), n / max(1.0, design_effect))
    z = NormalDist().inv_cdf(0.975)
    clusters = sums.shape[1]
    m = effective * (z / (student_t(max(1, clusters - 1)) * _caution(clusters, chunks_per_block))) ** 2
    middle = (p + z * z / (2 * m)) / (1 + z * z / m)
    reach = z / (1 + z * z / m) * np.sqrt(p * (1 - p) / m + z * z / (4 * m * m))
    return np.minimum(p, np.maximum(0, middle - reach)), np.maximum(p, np.minimum(1, middle + reach)), effective


def bootstrap_t(
    sums: Doubles, sizes: Doubles, *, positive: bool = False, chunks_per_block: int | None = None
) -> tuple[Doubles, Doubles, Doubles]:
    """95 % intervals of sum(sums) / sum(sizes), and two-sided p values of 0, for any number of data sets at once.

    Args:
        sums, sizes: by cluster, (clusters,) or (data sets, clusters).
        positive: on a log scale.
        chunks_per_block: clusters follow each other, and neighbours may be alike; None for documents.

    Returns:
        (low, high, p), float64 (data sets,). Low and high are the mean where clusters do not differ, and may be
        infinite where so few differ that many draws have none of them.
    """
    sums, sizes = (np.atleast_2d(array) for array in np.broadcast_arrays(sums, sizes))
    value, error = _ratio(sums, sizes, chunks_per_block)
    n = sums.shape[1]
    error = error * _caution(n, chunks_per_block)
    studentized = np.concatenate([_studentized(counts, sums, sizes, value, positive) for counts in _draws(n)])
    with np.errstate(invalid="ignore"):
        below, above = np.quantile(studentized, [0.975, 0.025], axis=0)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        own = np.where(value == 0, 0.0, value / error)
        if positive:
            scale = np.where(value > 0, error / value, 0.0)
            low, high = value * np.exp(-_times(below, scale)), value * np.exp(-_times(above, scale))
        else:
            low, high = value - _times(below, error), value - _times(above, error)
    least = np.minimum((studentized >= own).sum(0), (studentized <= own).sum(0))
    return low, high, np.minimum(1.0, 2 * (least + 1) / (len(studentized) + 1))


def student_t(freedom: int) -> float:
    """The 97.5 % quantile of Student's t, by its expansion around the normal's (Abramowitz and Stegun 26.7.5); at four
    degrees of freedom 0.3 % too small, with more less so."""
    z = NormalDist().inv_cdf(0.975)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return math.fsum(term / freedom**power for power, term in enumerate(terms))


def _effective(sums: Doubles, sizes: Doubles, variance: Doubles | float, chunks_per_block: int | None) -> Doubles:
    """Effective tokens of data sets whose tokens have this variance."""
    n = sizes.sum(-1)
    if sums.shape[-1] < 2:
        return np.ones_like(n)
    _, error = _ratio(sums, sizes, chunks_per_block)
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Doubles = np.where((error > 0) & (variance > 0), np.minimum(n, variance / np.square(error)), n)
    return found


def _ratio(sums: Doubles, sizes: Doubles, chunks_per_block: int | None) -> tuple[Doubles, Doubles]:
    """Ratio of the totals over the last axis, and its standard error."""
    n, total = sums.shape[-1], sizes.sum(-1)
    value = sums.sum(-1) / total
    residuals = sums - value[..., None] * sizes
    error = np.sqrt(np.square(residuals).sum(-1) * (n / max(1, n - 1))) / total
    return value, error * _inflation(residuals) if chunks_per_block else error


def _caution(n: int, chunks_per_block: int | None) -> float:
    """What few clusters know too little of: none is drawn that is worse than all of them. As large as simulations ask
    for; of long blocks, what `_inflation` adds to the error is as much."""
    return 1.0 if chunks_per_block and chunks_per_block > 1 else (n + 4) / (n + 2)


def _inflation(residuals: Doubles) -> Doubles:
    """By how much the error of a mean is larger where neighbours are alike: that of an autoregression of first order,
    by their correlation without its bias (Marriott and Pope 1954); never smaller, since few blocks tell little."""
    n, squares = residuals.shape[-1], np.square(residuals).sum(-1)
    found = (residuals[..., 1:] * residuals[..., :-1]).sum(-1) / np.where(squares > 0, squares, 1.0)
    alike = np.clip(found + (1 + 4 * found) / n, 0, _MOST_ALIKE)
    inflation: Doubles = np.sqrt((1 + alike) / (1 - alike))
    return inflation


def _times(quantile: Doubles, error: Doubles) -> Doubles:
    """Their product, 0 where there is no error."""
    return np.where(error > 0, quantile * error, 0.0)


def _draws(count: int) -> Iterator[Doubles]:
    """How often each cluster is drawn, (draws, count) some draws at a time."""
    rng = np.random.default_rng(SEED)
    step = max(1, _ELEMENTS // count)
    for first in range(0, DRAWS, step):
        yield rng.multinomial(count, np.full(count, 1 / count), min(step, DRAWS - first)).astype(np.float64)


def _studentized(counts: Doubles, sums: Doubles, sizes: Doubles, value: Doubles, positive: bool) -> Doubles:
    """(mean* - mean) / error* of each draw and data set, (draws, data sets)."""
    n = sums.shape[1]
    total = counts @ sizes.T
    residuals = sums - value[:, None] * sizes  # around the mean, so that no large numbers cancel
    shift = counts @ residuals.T / total  # mean* - mean
    around = counts @ np.square(residuals).T
    squares = around - 2 * shift * (counts @ (residuals * sizes).T) + np.square(shift) * (counts @ np.square(sizes).T)
    squares[squares < _ROUNDING * around] = 0
    error = np.sqrt(squares * (n / max(1, n - 1))) / total
    with np.errstate(divide="ignore", invalid="ignore"):
        if positive:
            drawn = value + shift
            found: Doubles = np.log(drawn / value) / (error / drawn)
        else:
            found = shift / error
    found[np.isnan(found)] = 0  # nothing differs from nothing
    return found
