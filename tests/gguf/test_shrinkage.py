"""The estimator against closed forms, and its risk against both of what it lies between on simulated statistics."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantkit.errors import UsageError
from quantkit.gguf import shrink
from quantkit.gguf.shrinkage import NOISE


def gamma_sums(rng: np.random.Generator, true: np.ndarray, counts: np.ndarray, noise: float) -> np.ndarray:
    """Σx² of `counts` tokens whose squares have mean `true` and relative variance `noise`."""
    shapes = np.maximum(counts, 1e-9)[:, None] / noise
    return np.where(counts[:, None] > 0, rng.gamma(shapes, 1 / shapes, true.shape), 0) * true * counts[:, None]


def test_two_experts_in_closed_form() -> None:
    """Equal counts n: the equation becomes (ratio of the means' variance) = between + noise (1 + between) / n."""
    n, noise = 400.0, 2.0
    means = np.array(
        [[1.0, 3.0], [3.0, 1.0]]
    )  # around 2: relative deviations of ±1/2, sum of squares 1/2 = E - 1 times
    found = shrink(means * n, np.array([n, n]), noise=noise)
    scatter = 0.5  # Σ over experts of the squared deviation, over E - 1
    between = (scatter - noise / n) / (1 + noise / n)
    k = noise * (1 + between) / between
    assert found.prior_tokens == pytest.approx(k, rel=1e-6)
    np.testing.assert_allclose(found.credibility, n / (n + k), rtol=1e-6)
    np.testing.assert_allclose(found.pooled, [2, 2])
    np.testing.assert_allclose(found.means, 2 + (means - 2) * n / (n + k), rtol=1e-6)


def test_the_estimate_is_the_sum_with_the_pooled_tokens_added() -> None:
    """(Σx² + k mean) / (n + k): k tokens of the pooled statistics, as a conjugate prior counts them."""
    rng = np.random.default_rng(1)
    counts = np.array([5.0, 50.0, 500.0, 5000.0])
    sums = gamma_sums(rng, rng.gamma(2.0, 0.5, (4, 300)), counts, 2.0)
    found = shrink(sums, counts)
    k = found.prior_tokens
    assert 0 < k < math.inf
    np.testing.assert_allclose(found.means, (sums + k * found.pooled) / (counts + k)[:, None], rtol=1e-12)
    assert np.all(np.diff(found.credibility) > 0)


def test_experts_that_differ_by_chance_alone_are_pooled() -> None:
    counts = np.array([100.0, 900.0])
    own = np.array([[1.01, 2.0], [0.99, 2.02]])
    found = shrink(own * counts[:, None], counts)
    assert found.prior_tokens == math.inf
    assert found.credibility.tolist() == [0, 0]
    assert np.array_equal(found.means, np.tile(found.pooled, (2, 1)))
    # all tokens together, less the share of the columns' scatter that so many tokens make by chance
    mean = (own * counts[:, None]).sum(axis=0) / 1000
    error, scatter = NOISE / 1000, ((mean / mean.mean() - 1) ** 2).mean()
    between = (scatter - error) / (1 + error)
    share = between / (between + error)
    assert 0.8 < share < 1
    np.testing.assert_allclose(found.pooled, mean.mean() + share * (mean - mean.mean()))


def test_columns_that_experts_do_not_share_are_pooled_to_a_constant() -> None:
    """As those of ffn_down: what the pooled statistics of a column say is chance, and an unseen expert's are level."""
    rng = np.random.default_rng(9)
    counts = np.array([2000.0] * 8 + [0.0])
    own = gamma_sums(rng, rng.gamma(0.5, 2.0, (9, 1024)), counts, 2.0)
    apart = shrink(own, counts)
    raw = own[:8].sum(axis=0) / 16000
    assert apart.pooled.std() / apart.pooled.mean() < 0.1 < 0.3 < raw.std() / raw.mean()
    profile = rng.gamma(0.5, 2.0, 1024)  # the same scatter over columns, but shared: it stays
    shared = shrink(gamma_sums(rng, profile * rng.gamma(10, 0.1, (9, 1024)), counts, 2.0), counts)
    assert np.corrcoef(shared.pooled, profile)[0, 1] > 0.98
    assert shared.pooled.std() / profile.std() > 0.9


def test_a_column_that_nobody_uses_stays_zero() -> None:
    rng = np.random.default_rng(4)
    counts = np.array([10.0, 0.0, 700.0])
    sums = gamma_sums(rng, rng.gamma(1.0, 1.0, (3, 64)), counts, 2.0)
    sums[:, 5] = 0
    assert (shrink(sums, counts).means[:, 5] == 0).all()
    assert (shrink(sums, counts).means[:, :5] > 0).all()


def test_an_expert_that_saw_nothing_takes_the_pooled_statistics() -> None:
    rng = np.random.default_rng(2)
    counts = np.array([300.0, 0.0, 700.0, 0.0])
    found = shrink(gamma_sums(rng, rng.gamma(1.0, 1.0, (4, 64)), counts, 2.0), counts)
    for expert in (1, 3):
        assert found.credibility[expert] == 0
        assert np.array_equal(found.means[expert], found.pooled)
    assert not np.allclose(found.means[0], found.pooled)


def test_one_expert_alone_is_believed_and_stands_for_the_others() -> None:
    found = shrink(np.array([[0.0, 0.0], [6.0, 8.0]]), np.array([0.0, 2.0]))
    assert found.means.tolist() == [[3, 4], [3, 4]]
    assert found.credibility.tolist() == [0, 1]


def test_less_effective_tokens_are_believed_less() -> None:
    rng = np.random.default_rng(3)
    counts = np.full(4, 200.0)
    sums = gamma_sums(rng, rng.gamma(2.0, 0.5, (4, 100)), counts, 2.0)
    effective = np.array([200.0, 200.0, 20.0, 200.0])
    found = shrink(sums, counts, effective)
    assert found.credibility[2] < found.credibility[0] == found.credibility[1]
    assert np.array_equal(shrink(sums, counts, counts).means, shrink(sums, counts).means)


@pytest.mark.parametrize("noise", [2.0, NOISE])
@pytest.mark.parametrize("between", [0.02, 0.1, 0.5, 2.0])
@pytest.mark.parametrize("tokens", [3, 30, 300])
def test_risk_is_below_that_of_raw_and_of_pooled_statistics(noise: float, between: float, tokens: int) -> None:
    """Squared error by column over simulated layers; in the limits it may only equal the better of the two."""
    rng = np.random.default_rng(int(1000 * between + tokens + noise))
    risks = np.zeros(3)
    for _ in range(8):
        profile = rng.lognormal(0, 1, 256)
        true = profile * rng.gamma(1 / between, between, (16, 256))
        counts = np.maximum(rng.poisson(tokens * rng.gamma(2.0, 0.5, 16)), 1).astype(float)
        sums = gamma_sums(rng, true, counts, noise)
        raw = sums / counts[:, None]
        pooled = np.tile(sums.sum(axis=0) / counts.sum(), (16, 1))
        for i, estimate in enumerate((raw, pooled, shrink(sums, counts, noise=noise).means)):
            risks[i] += np.mean((estimate - true) ** 2 / profile) / profile.mean()
    assert risks[2] < 1.02 * risks[:2].min()
    best = between / (between + noise * (1 + between) / tokens)  # how far an expert of so many tokens is to be believed
    if 0.1 < best < 0.9:
        assert risks[2] < 0.97 * risks[:2].min()


def test_the_scatter_between_experts_is_found_again() -> None:
    rng = np.random.default_rng(5)
    between = 0.25
    true = rng.lognormal(0, 1, 512) * rng.gamma(1 / between, between, (64, 512))
    counts = rng.integers(50, 2000, 64).astype(float)
    found = shrink(gamma_sums(rng, true, counts, 2.0), counts, noise=2.0)
    assert found.prior_tokens == pytest.approx(2 * (1 + between) / between, rel=0.1)


@st.composite
def layers(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    experts, cols = draw(st.integers(1, 12)), draw(st.integers(1, 40))
    counts = rng.integers(0, 10 ** draw(st.integers(0, 6)) + 1, experts).astype(float)
    counts[rng.integers(experts)] += 1
    true = rng.lognormal(0, draw(st.floats(0, 4)), cols) * rng.gamma(1.0, 1.0, (experts, cols))
    true[:, rng.random(cols) < 0.1] = 0
    return gamma_sums(rng, true, counts, NOISE), counts


@settings(max_examples=50, deadline=None)
@given(layers(), st.integers(-40, 40))
def test_properties(layer: tuple[np.ndarray, np.ndarray], exponent: int) -> None:
    sums, counts = layer
    found = shrink(sums, counts)
    assert np.isfinite(found.means).all()
    assert (found.means >= 0).all()
    seen = counts > 0
    raw = sums[seen] / counts[seen, None]
    low, high = np.minimum(raw, found.pooled), np.maximum(raw, found.pooled)
    assert (found.means[seen] >= low * (1 - 1e-12)).all()
    assert (found.means[seen] <= high * (1 + 1e-12)).all()
    assert (found.pooled <= raw.max() * (1 + 1e-12)).all()
    assert ((found.pooled == 0) == (raw == 0).all(axis=0)).all()
    # powers of two go through without a rounding of their own
    assert np.array_equal(shrink(sums * 2.0**exponent, counts).means, found.means * 2.0**exponent)
    # and experts have no order
    order = np.random.default_rng(0).permutation(len(counts))
    np.testing.assert_allclose(shrink(sums[order], counts[order]).means, found.means[order], rtol=1e-6)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UsageError, match="no expert saw a token"):
        shrink(np.zeros((2, 3)), np.zeros(2))
    for sums, counts, effective in (
        (np.ones(3), np.ones(3), None),
        (np.ones((2, 3)), np.ones(3), None),
        (np.ones((2, 3)), np.ones(2), np.ones(1)),
    ):
        with pytest.raises(UsageError, match="sums of shape"):
            shrink(sums, counts, effective)
