"""Texts whose true mean is known: tokens with the tails of KL divergences that are like the ones before them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from quantkit.drift.clusters import Clusters, clusters

Doubles = npt.NDArray[np.float64]
Simulated = tuple[Doubles, Doubles, float]  # sums and sizes by cluster (runs, clusters), and the true mean

TOKEN, LEVEL, LIKE = 1.4, 0.4, 0.6  # spread of ln KLD by token and by document; correlation of neighbouring tokens
RATE = 0.5  # spread of a share's log odds by document
EVENNESS = 20  # of beta-distributed shares, the sum of both parameters: tokens of a document correlate by 1/21
POINTS, WEIGHTS = np.polynomial.hermite_e.hermegauss(60)


def covered(low: Doubles, high: Doubles, truth: float) -> float:
    return float(np.mean((low <= truth) & (truth <= high)))


def kld_of_documents(
    rng: np.random.Generator, runs: int, documents: int, tokens: int, *, level: float = LEVEL, like: float = LIKE
) -> Simulated:
    """Log-normal tokens, each document with a level of its own, and documents of any length; mean over median is 2.9
    as for real files, whose KLD has medians of a third of the mean."""
    sizes = _sizes(rng, runs, documents, tokens)
    sums, levels = np.zeros(sizes.shape), rng.normal(0, level, sizes.shape)
    state = rng.normal(0, TOKEN, sizes.shape)
    for place in range(int(sizes.max())):
        sums += np.where(place < sizes, np.exp(levels + state), 0)
        state = like * state + np.sqrt(1 - like**2) * rng.normal(0, TOKEN, sizes.shape)
    return sums, sizes, float(np.exp((TOKEN**2 + level**2) / 2))


def kld_of_chunks(rng: np.random.Generator, runs: int, chunks: int, alike: float, *, tokens: int = 64) -> Simulated:
    """One long text: the levels of neighbouring chunks correlate; in the blocks that `clusters` makes of them."""
    sums, state = np.zeros((runs, chunks)), rng.normal(0, TOKEN, (runs, chunks))
    for _ in range(tokens):
        sums += np.exp(state)
        state = LIKE * state + np.sqrt(1 - LIKE**2) * rng.normal(0, TOKEN, (runs, chunks))
    sums *= np.exp(LEVEL * _levels(rng, runs, chunks, alike))
    return *_blocks(sums, tokens), float(np.exp((TOKEN**2 + LEVEL**2) / 2))


def share_of_documents(rng: np.random.Generator, runs: int, documents: int, tokens: int, share: float) -> Simulated:
    """Hits at a rate that each document has for itself."""
    sizes = _sizes(rng, runs, documents, tokens)
    hits = rng.binomial(sizes.astype(int), _rate(share, rng.normal(size=sizes.shape)))
    return hits.astype(np.float64), sizes, _true_share(share)


def share_of_uneven_documents(
    rng: np.random.Generator, runs: int, documents: int, tokens: int, share: float
) -> Simulated:
    """The same with rates from a beta distribution: of shares near 1, nearly all misses lie in a few documents."""
    sizes = _sizes(rng, runs, documents, tokens)
    hits = rng.binomial(sizes.astype(int), rng.beta(EVENNESS * share, EVENNESS * (1 - share), sizes.shape))
    return hits.astype(np.float64), sizes, share


def share_of_chunks(
    rng: np.random.Generator, runs: int, chunks: int, alike: float, share: float, *, tokens: int = 200
) -> Simulated:
    """Hits at rates that are alike in neighbouring chunks of one long text."""
    hits = rng.binomial(tokens, _rate(share, _levels(rng, runs, chunks, alike)))
    return *_blocks(hits.astype(np.float64), tokens), _true_share(share)


def blocks(chunks: int) -> Clusters:
    """What `clusters` makes of so many chunks of one long text."""
    return clusters(np.zeros(chunks, np.int64), np.arange(chunks))


def _sizes(rng: np.random.Generator, runs: int, documents: int, tokens: int) -> Doubles:
    return np.floor(np.maximum(20, tokens * np.exp(rng.normal(-0.18, 0.6, (runs, documents)))))


def _levels(rng: np.random.Generator, runs: int, n: int, alike: float) -> Doubles:
    levels = rng.normal(size=(runs, n))
    for at in range(1, n):
        levels[:, at] = alike * levels[:, at - 1] + np.sqrt(1 - alike**2) * levels[:, at]
    return levels


def _blocks(sums: Doubles, tokens: int) -> tuple[Doubles, Doubles]:
    groups = blocks(sums.shape[1])
    found = np.stack([groups.sums(run) for run in sums])
    return found, np.broadcast_to(groups.sizes * tokens, found.shape)


def _rate(share: float, level: Doubles) -> Doubles:
    odds = np.log(share / (1 - share)) + RATE * level
    rate: Doubles = 1 / (1 + np.exp(-odds))
    return rate


def _true_share(share: float) -> float:
    return float(_rate(share, POINTS) @ WEIGHTS / WEIGHTS.sum())
