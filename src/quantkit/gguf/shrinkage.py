"""How far an expert's own statistics are believed: an empirical-Bayes estimate of its mean squares.

Model, for column j of expert e with n tokens: the mean square m[e, j] scatters around the expert's true value with
variance NOISE × truth² / n, and the true values of the experts scatter around the layer's mean[j] with variance
between × mean[j]². The best estimate that is linear in the data is Bühlmann and Straub's credibility estimate,

    estimate = z m + (1 - z) mean,   z = n / (n + k),   k = NOISE (1 + between) / between,   mean = Σ z m / Σ z

(H. Bühlmann and E. Straub, "Glaubwürdigkeit für Schadensätze", 1970; H. Bühlmann and A. Gisler, *A Course in
Credibility Theory*, 2005, chapter 4). For Gaussian activations, whose NOISE is 2, and an inverse-gamma prior it is the
posterior mean itself, and k is the number of tokens that the prior counts for. `between` is not assumed but estimated
from the experts' scatter, one number for all columns, by the equation of R. C. Paule and J. Mandel ("Consensus Values
and Weighting Factors", 1982): the weighted squares of the deviations are to be as large as expected. So experts that
differ no more than by chance are pooled (k is infinite), and experts whose columns have little in common, as those of
ffn_down, keep to their own data.

The layer's mean[j] is shrunk in the same way toward the mean over columns, by the scatter of the columns against the
error that mean[j] has from so many experts and tokens: hierarchical credibility (W. S. Jewell, "The use of collateral
data in credibility theory", 1975; Bühlmann and Gisler, chapter 6). It matters for ffn_down: column j of one expert has
nothing to do with column j of another, and the pooled statistics of such columns are noise around a constant.

NOISE is the relative variance of x² over tokens, times the number of neighbouring tokens that tell no more than one. On
a trained model of this family (8 layers, 16 experts, 200,000 tokens of ten kinds of text) that is 2.5 to 4 times 4 for
the inputs of gate and up, and 40 to 110 times 3 for those of down. 12 is the small end: larger values cost more where
there are many tokens than they gain where there are few (docs/benchmarks/imatrix.md). It is not estimated: a file with
about as many tokens for each expert does not tell it from `between`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import UsageError

NOISE = 12.0
_COLUMNS = 512  # that `between` is estimated from
_LEAST, _MOST, _STEPS = 1e-6, 1e6, 30  # of `between`, by bisection

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Shrunk:
    """Estimates of one tensor.

    Args:
        means: float64 (experts, cols), mean squares.
        pooled: float64 (cols,), the layer's, itself shrunk: what an expert that saw nothing has. A column in which no
            expert saw anything but zeros stays zero.
        credibility: float64 (experts,), z: the share of an expert's own data in its estimate; 0 where it saw nothing.
        prior_tokens: k, how many tokens the pooled statistics count for; infinite where the experts are alike.
    """

    means: Float64
    pooled: Float64
    credibility: Float64
    prior_tokens: float


def shrink(sums: NDArray[Any], counts: Float64, effective: Float64 | None = None, *, noise: float = NOISE) -> Shrunk:
    """Estimate the mean squares of each expert's inputs from its own data and that of the others.

    The same input gives the same bits on every machine: sums run in the order of experts and columns.

    Args:
        sums: (experts, cols), Σx², not negative.
        counts: (experts,), tokens seen, at least one of them above 0.
        effective: (experts,), effective sample sizes, at most the counts; None: the counts.
        noise: relative variance of the square of one token.

    Raises:
        UsageError: shapes that do not fit, or no expert saw a token.
    """
    sizes = counts if effective is None else effective
    if sums.ndim != 2 or counts.shape != (len(sums),) or sizes.shape != counts.shape:
        raise UsageError(f"sums of shape {sums.shape} with counts of shape {counts.shape} and {sizes.shape}")
    seen = sizes > 0
    if not seen.any():
        raise UsageError("no expert saw a token, so that there is nothing to estimate from")
    own = sums[seen].astype(np.float64) / counts[seen, None]
    tokens = sizes[seen]
    if len(own) == 1:  # how much others would differ is unknown, and its data are all there is
        k, pooled = 0.0, own[0]
    else:
        step = -(-own.shape[1] // _COLUMNS)
        between = _between(np.ascontiguousarray(own[:, ::step]), tokens, noise)
        k = noise * (1 + between) / between if between else math.inf
        weights = _weights(tokens, noise, between)
        pooled = _toward_constant(_weighted_mean(own, weights), 1 / math.fsum(weights))
    credibility = np.zeros(len(sums))
    credibility[seen] = tokens / (tokens + k)
    means = np.tile(pooled, (len(sums), 1))
    means[seen] += credibility[seen, None] * (own - pooled)
    return Shrunk(means, pooled, credibility, k)


def _between(own: Float64, tokens: Float64, noise: float) -> float:
    """Relative variance of the experts' true values: the root of Paule and Mandel's equation, 0 where it has none."""
    if _excess(own, tokens, noise, 0.0) <= 0:
        return 0.0
    low, high = _LEAST, _MOST
    for _ in range(_STEPS):
        middle = math.sqrt(low * high)
        if _excess(own, tokens, noise, middle) > 0:
            low = middle
        else:
            high = middle
    return low if low > _LEAST else 0.0


def _excess(own: Float64, tokens: Float64, noise: float, between: float) -> float:
    """Weighted squares of the deviations from the mean, less what they come to if `between` is right."""
    weights = _weights(tokens, noise, between)
    mean = _weighted_mean(own, weights)
    used = mean > 0
    if not used.any():
        return 0.0
    deviations = (own[:, used] / mean[used] - 1) ** 2
    # By columns first: numpy adds rows up one after the other, and what lies in a row in an order of its own.
    squares = np.ascontiguousarray(deviations.T).sum(axis=0) / int(used.sum())
    return math.fsum(weights * squares) - (len(own) - 1)


def _weighted_mean(rows: Float64, weights: Float64) -> Float64:
    total: Float64 = (rows * weights[:, None]).sum(axis=0)
    return total / math.fsum(weights)


def _weights(tokens: Float64, noise: float, between: float) -> Float64:
    """One over the relative variance of each expert's mean squares around the layer's."""
    return 1 / (between + noise * (1 + between) / tokens)


def _toward_constant(mean: Float64, error: float) -> Float64:
    """The layer's means by column, of relative variance `error`, shrunk toward the mean over columns."""
    used = mean > 0
    if not used.any():
        return mean
    level = math.fsum(mean[used]) / int(used.sum())
    scatter = math.fsum((mean[used] / level - 1) ** 2) / int(used.sum())
    between = max(scatter - error, 0.0) / (1 + error)
    share = between / (between + error)  # for the least error in units of each column's own size, large and small alike
    return np.where(used, level + share * (mean - level), 0.0)
