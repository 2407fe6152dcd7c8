"""Intervals hold as often as they say: tokens are alike within a document, and a few outweigh all others."""

from __future__ import annotations

import numpy as np
import pytest

from quantkit.drift.clusters import MIN_DOCUMENTS, Clusters, clusters
from quantkit.drift.intervals import (
    MIN_CLUSTERS,
    bootstrap_t,
    effective_tokens,
    mean,
    share,
    student_t,
)
from quantkit.drift.output import OutputComparison
from quantkit.errors import UsageError

RUNS = 1000


def heavy(rng: np.random.Generator, documents: int, tokens: int) -> tuple[np.ndarray, np.ndarray, float]:
    """KLD-like tokens: log-normal, each like the one before it (0.6), each document with a level of its own, and
    documents of any length. Sums and sizes (RUNS, documents), and the true mean; mean over median is 2.9 as for real
    files, whose KLD has medians of a third of the mean."""
    token, level, like = 1.4, 0.4, 0.6
    sizes = np.maximum(20, tokens * np.exp(rng.normal(-0.18, 0.6, (RUNS, documents)))).astype(int)
    sums, levels = np.zeros(sizes.shape), rng.normal(0, level, sizes.shape)
    state = rng.normal(0, token, sizes.shape)
    for place in range(sizes.max()):
        sums += np.where(place < sizes, np.exp(levels + state), 0)
        state = like * state + np.sqrt(1 - like**2) * rng.normal(0, token, sizes.shape)
    return sums, sizes.astype(np.float64), float(np.exp((token**2 + level**2) / 2))


def covered(low: np.ndarray, high: np.ndarray, truth: float) -> float:
    return float(np.mean((low <= truth) & (truth <= high)))


@pytest.mark.parametrize(("documents", "tokens"), [(40, 200), (100, 100), (300, 40)])
def test_coverage_of_documents(documents: int, tokens: int) -> None:
    sums, sizes, truth = heavy(np.random.default_rng(documents), documents, tokens)
    for positive in (False, True):
        low, high, _ = bootstrap_t(sums, sizes, positive=positive)
        assert 0.93 <= covered(low, high, truth) <= 0.97
    assert low.min() > 0


@pytest.mark.parametrize("count", [5, 8, 12, 20])
def test_coverage_of_few_clusters(count: int) -> None:
    """Here it begins to break, to the side that docs/drift.md names: up to 3 points too little, never the worse."""
    sums, sizes, truth = heavy(np.random.default_rng(count), count, 400)
    low, high, _ = bootstrap_t(sums, sizes, positive=True)
    assert 0.92 <= covered(low, high, truth) <= 0.97


def test_coverage_from_logits_of_known_divergence() -> None:
    """The whole way, from logits: q is p with one token's logit raised by b, so that a token's divergence is
    ln(1 + p (e^b - 1)) - p b. b is log-normal, like that of the token before (0.6), with a level by document."""
    rng, documents, tokens, like, level = np.random.default_rng(11), 50, 20, 0.6, 0.4
    state = rng.normal(size=(RUNS, documents, tokens))
    for place in range(1, tokens):
        state[:, :, place] = like * state[:, :, place - 1] + np.sqrt(1 - like**2) * state[:, :, place]
    boost = 0.5 * np.exp(0.5 * (level * rng.normal(size=(RUNS, documents, 1)) + state))
    logits = np.linspace(0, 2, 8, dtype=np.float32)
    p = float(np.exp(logits[3].astype(np.float64)) / np.exp(logits.astype(np.float64)).sum())
    reference = np.tile(logits, (boost.size, 1))
    candidate = reference.copy()
    candidate[:, 3] += boost.reshape(-1).astype(np.float32)
    comparison = OutputComparison(np.arange(boost.size), np.zeros(boost.size, np.int64), 1)
    comparison.add(slice(0, boost.size), slice(0, 8), reference, [candidate])
    (scores,) = comparison.results()

    def known(b: np.ndarray) -> np.ndarray:
        return np.logaddexp(np.log(1 - p), np.log(p) + b) - p * b

    given = candidate[:, 3].astype(np.float64) - logits[3]
    np.testing.assert_allclose(scores.kld, known(given), rtol=1e-9, atol=1e-12)
    points, weights = np.polynomial.hermite_e.hermegauss(60)
    truth = float(known(0.5 * np.exp(0.5 * np.sqrt(1 + level**2) * points)) @ weights / weights.sum())
    sums = scores.kld.reshape(RUNS, documents, tokens).sum(2)
    assert sums.sum() / boost.size == pytest.approx(truth, rel=0.01)
    low, high, _ = bootstrap_t(sums, np.full(documents, float(tokens)), positive=True)
    assert 0.93 <= covered(low, high, truth) <= 0.97


def test_independent_tokens_would_be_too_sure() -> None:
    """What tools that treat tokens as independent print covers far less on the same data."""
    sums, sizes, truth = heavy(np.random.default_rng(1), 100, 100)
    errors = np.sqrt(np.exp(1.4**2 + 0.4**2) - 1) * truth / np.sqrt(sizes.sum(1))
    means = sums.sum(1) / sizes.sum(1)
    assert covered(means - 1.96 * errors, means + 1.96 * errors, truth) < 0.8


@pytest.mark.parametrize("chunks", [60, 200])
def test_coverage_of_blocks_of_one_long_text(chunks: int) -> None:
    """One document: chunks are like their neighbours (0.4), and the blocks know."""
    rng, like, per_chunk = np.random.default_rng(chunks), 0.4, 16
    levels = np.empty((RUNS, chunks))
    levels[:, 0] = rng.normal(size=RUNS)
    for chunk in range(1, chunks):
        levels[:, chunk] = like * levels[:, chunk - 1] + np.sqrt(1 - like**2) * rng.normal(size=RUNS)
    tokens = np.exp(0.5 * levels[:, :, None] + rng.normal(0, 1, (RUNS, chunks, per_chunk)))
    groups = clusters(np.zeros(chunks * per_chunk, int), np.repeat(np.arange(chunks), per_chunk))
    sums = np.stack([groups.sums(run.reshape(-1)) for run in tokens])
    low, high, _ = bootstrap_t(sums, groups.sizes, positive=True)
    assert 0.91 <= covered(low, high, float(np.exp((0.25 + 1) / 2))) <= 0.97
    single = Clusters("chunks", np.repeat(np.arange(chunks), per_chunk), chunks, 1, 1)
    narrow = bootstrap_t(np.stack([single.sums(run.reshape(-1)) for run in tokens]), single.sizes, positive=True)
    assert covered(*narrow[:2], float(np.exp((0.25 + 1) / 2))) < 0.91


@pytest.mark.parametrize("p", [0.5, 0.9, 0.99])
def test_coverage_of_shares(p: float) -> None:
    """Hits of a document hang together: each document has a rate of its own, beta-distributed around p."""
    rng, documents, tokens = np.random.default_rng(int(100 * p)), 60, 100
    rates = rng.beta(20 * p, 20 * (1 - p), (RUNS, documents))
    groups = clusters(np.repeat(np.arange(documents), tokens), np.arange(documents * tokens) // 512)
    found = [
        share((rng.random((documents, tokens)) < rate[:, None]).reshape(-1).astype(float), groups) for rate in rates
    ]
    intervals = np.array([one.ci95 for one in found])
    assert 0.92 <= covered(intervals[:, 0], intervals[:, 1], p) <= 0.975
    assert np.median([one.effective_tokens for one in found]) < 0.35 * documents * tokens


def test_shares_of_all_and_none() -> None:
    groups = clusters(np.repeat(np.arange(50), 20), np.zeros(1000, int))
    everything, nothing = share(np.ones(1000), groups), share(np.zeros(1000), groups)
    assert everything.ci95 is not None
    assert nothing.ci95 is not None
    assert everything.ci95[1] == 1
    assert everything.ci95[0] == pytest.approx(1 - 1.96**2 * (1.96 / 2.0096) ** -2 / 1000, abs=2e-4)
    assert nothing.ci95 == pytest.approx((0, 1 - everything.ci95[0]))
    wider = share(np.ones(1000), groups, design_effect=5)
    assert wider.ci95 is not None
    assert 1 - wider.ci95[0] == pytest.approx(5 * (1 - everything.ci95[0]), rel=0.03)


def test_p_values_are_level_where_nothing_differs() -> None:
    """Of paired differences around 0, a share of 5 % has p below 0.05; of real ones, nearly all."""
    rng = np.random.default_rng(6)
    sums, sizes, _ = heavy(rng, 60, 60)
    others, other_sizes, _ = heavy(rng, 60, 60)
    low, high, p = bootstrap_t(sums - others / other_sizes * sizes, sizes)
    assert 0.025 <= np.mean(p < 0.05) <= 0.075
    assert ((low > 0) | (high < 0))[p < 0.049].all()
    assert not ((low > 0) | (high < 0))[p > 0.051].any()
    _, _, p = bootstrap_t(2 * sums - others / other_sizes * sizes, sizes)
    assert np.mean(p < 0.05) > 0.9


def test_effective_tokens() -> None:
    rng = np.random.default_rng(7)
    labels = np.repeat(np.arange(200), 50)
    groups = clusters(labels, labels)
    assert effective_tokens(rng.normal(size=10_000), groups) == pytest.approx(10_000, rel=0.25)
    levels = rng.normal(size=200)[labels]
    assert effective_tokens(levels, groups) == pytest.approx(200, rel=0.02)
    # variance 1 within and 1 between documents of 50: an effect of 1 + 49 / 2
    assert effective_tokens(levels + rng.normal(size=10_000), groups) == pytest.approx(10_000 / 25.5, rel=0.25)
    assert effective_tokens(np.ones(10_000), groups) == 10_000


def test_the_same_values_have_the_same_interval() -> None:
    values = np.random.default_rng(8).gamma(0.3, size=4000)
    groups = clusters(np.repeat(np.arange(80), 50), np.zeros(4000, int))
    first = mean(values, groups, positive=True)
    assert mean(values, groups, positive=True) == first
    assert first.ci95 is not None
    assert first.ci95[0] < first.value == values.mean() < first.ci95[1]
    scaled = mean(values * 1024, groups, positive=True)
    assert scaled.ci95 == pytest.approx(tuple(1024 * end for end in first.ci95), rel=1e-12)


def test_nothing_and_too_little_to_tell() -> None:
    groups = clusters(np.repeat(np.arange(50), 20), np.zeros(1000, int))
    for positive in (False, True):
        zero = mean(np.zeros(1000), groups, positive=positive)
        assert (zero.value, zero.ci95, zero.effective_tokens, zero.p_value) == (0, (0, 0), 1000, 1)
    few = clusters(np.zeros(40, int), np.repeat(np.arange(MIN_CLUSTERS - 1), 10))
    values = np.random.default_rng(9).random(40)
    assert (few.count, mean(values, few).ci95, share(values.round(), few).ci95) == (MIN_CLUSTERS - 1, None, None)
    one = clusters(np.zeros(40, int), np.zeros(40, int))
    assert (mean(values, one).ci95, mean(values, one).effective_tokens) == (None, 1)
    alone = np.zeros(1000)
    alone[:20] = 1  # most draws do not hold the one document that differs, and have no error
    assert mean(alone, groups).ci95 is None


def test_documents_or_blocks() -> None:
    chunks = np.repeat(np.arange(100), 8)
    many = clusters(np.arange(800) // 20 + 7, chunks)
    assert (many.kind, many.count, many.chunks_per_block, many.documents) == ("documents", MIN_DOCUMENTS, None, 40)
    assert many.sizes.tolist() == [20] * 40
    few = clusters(np.arange(800) // 21, chunks)
    assert (few.kind, few.count, few.chunks_per_block, few.documents) == ("chunks", 20, 5, 39)
    assert few.sizes.tolist() == [40] * 20
    odd = clusters(np.zeros(344, int), chunks[:344])
    assert (odd.count, odd.chunks_per_block, odd.sizes[-1]) == (21, 2, 24)
    part = many.only(np.arange(800) < 100)
    assert (part.kind, part.count, part.documents, part.sizes.tolist()) == ("documents", 5, 5, [20] * 5)
    with pytest.raises(UsageError, match="no scored tokens"):
        clusters(np.zeros(0, int), np.zeros(0, int))


def test_student_t() -> None:
    """Values of the tables."""
    for freedom, wanted in ((4, 2.7764), (7, 2.3646), (12, 2.1788), (39, 2.0227), (1000, 1.9623)):
        assert student_t(freedom) == pytest.approx(wanted, rel=3e-3 if freedom == 4 else 5e-4)
