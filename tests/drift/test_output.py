"""Statistics of logits that come in pieces, against those of whole rows in float64, and against closed forms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantkit.drift.output import TOP, OutputComparison, TokenScores
from quantkit.errors import NonFiniteError, UsageError
from quantkit.llama4.forward import Team


def compare(
    reference: np.ndarray,
    candidates: list[np.ndarray],
    scored: np.ndarray,
    targets: np.ndarray,
    *,
    ids: int = 100,
    tokens: int = 7,
    team: Team | None = None,
) -> list[TokenScores]:
    """In pieces of so many ids and tokens, in the order of `Stream.logit_blocks`."""
    comparison = OutputComparison(scored, targets, len(candidates), team)
    n, vocabulary = reference.shape
    for first_id in range(0, vocabulary, ids):
        some = slice(first_id, min(vocabulary, first_id + ids))
        for first in range(0, n, tokens):
            part = slice(first, min(n, first + tokens))
            comparison.add(part, some, reference[part, some], [logits[part, some] for logits in candidates])
    return comparison.results()


def every(n: int) -> np.ndarray:
    return np.arange(n)


def plain(reference: np.ndarray, candidate: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
    """The same of whole rows, by the book."""

    def log_softmax(logits: np.ndarray) -> np.ndarray:
        wide = logits.astype(np.longdouble)
        wide -= wide.max(1, keepdims=True)
        return wide - np.log(np.exp(wide).sum(1, keepdims=True))

    p, q = log_softmax(reference), log_softmax(candidate)
    tops = [np.argsort(-logits, axis=1, kind="stable")[:, :TOP] for logits in (reference, candidate)]
    rows = np.arange(len(targets))
    return {
        "kld": (np.exp(p) * (p - q)).sum(1),
        "reference_log_p": p[rows, targets],
        "candidate_log_p": q[rows, targets],
        "reference_top1": tops[0][:, 0],
        "candidate_top1": tops[1][:, 0],
        "top5_shared": np.array([len(set(a) & set(b)) for a, b in zip(*tops, strict=True)]),
        "confidence": np.exp(p).max(1),
    }


def check(scores: TokenScores, wanted: dict[str, Any]) -> None:
    for name, values in wanted.items():
        got = getattr(scores, name)
        if got.dtype == np.int64:
            np.testing.assert_array_equal(got, values, err_msg=name)
        else:
            np.testing.assert_allclose(got, values.astype(np.float64), rtol=1e-11, atol=1e-12, err_msg=name)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 30),
    vocabulary=st.integers(1, 300),
    ids=st.integers(1, 310),
    tokens=st.integers(1, 31),
    spread=st.sampled_from([0.01, 1.0, 8.0, 60.0]),
    change=st.sampled_from([1e-4, 0.1, 3.0]),
    grid=st.sampled_from([0.0, 0.5]),
)
def test_pieces_do_not_show(
    seed: int, n: int, vocabulary: int, ids: int, tokens: int, spread: float, change: float, grid: float
) -> None:
    """Any pieces; on a grid many logits are equal, and the lowest ids come first."""
    rng = np.random.default_rng(seed)
    reference = rng.normal(0, spread, (n, vocabulary)).astype(np.float32)
    candidates = [(reference + rng.normal(0, change, reference.shape)).astype(np.float32) for _ in range(2)]
    if grid:
        reference, *candidates = (np.round(logits / grid) * np.float32(grid) for logits in (reference, *candidates))
    targets = rng.integers(0, vocabulary, n)
    results = compare(reference, candidates, every(n), targets, ids=ids, tokens=tokens)
    for scores, candidate in zip(results, candidates, strict=True):
        check(scores, plain(reference, candidate, targets))
        np.testing.assert_array_equal(scores.targets, targets)


def test_only_scored_tokens_count() -> None:
    rng = np.random.default_rng(1)
    reference = rng.normal(0, 4, (64, 500)).astype(np.float32)
    candidate = (reference + rng.normal(0, 0.3, reference.shape)).astype(np.float32)
    scored = np.array([3, 4, 5, 9, 20, 21, 22, 40, 63])
    targets = rng.integers(0, 500, len(scored))
    (scores,) = compare(reference, [candidate], scored, targets)
    check(scores, plain(reference[scored], candidate[scored], targets))


def test_equal_logits_are_exactly_alike() -> None:
    """Whatever the pieces of other sizes would round: the difference is 0, not small."""
    logits = np.random.default_rng(2).normal(0, 9, (40, 5000)).astype(np.float32)
    targets = np.random.default_rng(3).integers(0, 5000, 40)
    (scores,) = compare(logits, [logits.copy()], every(40), targets, ids=333, tokens=13)
    assert (scores.kld == 0).all()
    assert (scores.reference_log_p == scores.candidate_log_p).all()
    assert (scores.reference_top1 == scores.candidate_top1).all()
    assert (scores.top5_shared == TOP).all()


def test_threads_do_not_show() -> None:
    rng = np.random.default_rng(4)
    reference = rng.normal(0, 4, (50, 3000)).astype(np.float32)
    candidate = (reference + rng.normal(0, 0.3, reference.shape)).astype(np.float32)
    targets = rng.integers(0, 3000, 50)
    team = Team(3)
    results = [compare(reference, [candidate], every(50), targets, tokens=50, team=one)[0] for one in (None, team)]
    team.close()
    for name in vars(results[0]):
        np.testing.assert_array_equal(getattr(results[0], name), getattr(results[1], name), err_msg=name)


@pytest.mark.parametrize("boost", [-20.0, -1.0, 0.001, 0.5, 10.0])
def test_uniform_against_one_boosted_token(boost: float) -> None:
    """KL(u || q) with q raised by `boost` at one of V tokens is ln((V - 1 + e^boost) / V) - boost / V."""
    vocabulary, boosted = 2000, np.float32(boost)
    reference = np.full((1, vocabulary), 3, np.float32)
    candidate = np.full((1, vocabulary), -5, np.float32)
    candidate[0, 1234] += boosted
    boost = float(candidate[0, 1234]) + 5
    (scores,) = compare(reference, [candidate], every(1), np.array([1234]))
    wanted = np.log1p(np.expm1(boost) / vocabulary) - boost / vocabulary
    assert scores.kld[0] == pytest.approx(wanted, abs=1e-13)
    assert scores.candidate_log_p[0] == pytest.approx(boost - np.log(vocabulary - 1 + np.exp(boost)), abs=1e-12)
    assert scores.confidence[0] == pytest.approx(1 / vocabulary)


def test_two_tokens_by_hand() -> None:
    """p = (3/4, 1/4), q = (1/2, 1/2): KL = ln 2 - H(1/4) in nats."""
    reference = np.log(np.array([[3.0, 1.0]])).astype(np.float32)
    (scores,) = compare(reference, [np.zeros((1, 2), np.float32)], every(1), np.array([1]))
    assert scores.kld[0] == pytest.approx(np.log(2) + 0.75 * np.log(0.75) + 0.25 * np.log(0.25), abs=1e-7)
    assert scores.reference_log_p[0] == pytest.approx(np.log(0.25), abs=1e-7)
    assert scores.candidate_log_p[0] == pytest.approx(np.log(0.5), abs=1e-15)
    assert scores.top5_shared[0] == 2  # there are no more


def test_a_constant_on_all_logits_is_no_drift() -> None:
    reference = np.round(np.random.default_rng(5).normal(0, 4, (20, 800)) * 64).astype(np.float32) / 64
    (scores,) = compare(reference, [reference + np.float32(2.5)], every(20), np.zeros(20, np.int64))
    np.testing.assert_allclose(scores.kld, 0, atol=1e-13)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("which", [0, 1])
def test_logits_that_are_not_finite_are_refused(value: float, which: int) -> None:
    models = [np.zeros((8, 300), np.float32), np.ones((8, 300), np.float32)]
    models[which][5, 250] = value
    with pytest.raises(NonFiniteError, match="token 5"):
        compare(models[0], [models[1]], every(8), np.zeros(8, np.int64))


def test_pieces_that_do_not_fit_are_refused() -> None:
    comparison = OutputComparison(every(4), every(4), 1)
    piece = np.zeros((4, 10), np.float32)
    with pytest.raises(UsageError, match="4 tokens and 20 ids"):
        comparison.add(slice(0, 4), slice(0, 20), piece, [piece])
    for scored, targets in ((np.array([2, 1]), every(2)), (every(3), every(2)), (every(0), every(0))):
        with pytest.raises(UsageError, match="scored"):
            OutputComparison(scored, targets, 1)
