"""Figures of tokens whose scores are known: each quantile has the value of its rank."""

from __future__ import annotations

import numpy as np
import pytest

from quantkit.drift.clusters import clusters
from quantkit.drift.figures import figures
from quantkit.drift.output import TokenScores

N = 10_001  # ranks 0 .. 10,000: the quantile q is the value of rank 10,000 q


def scores(kld: np.ndarray, change: np.ndarray) -> TokenScores:
    """Of tokens with these divergences, whose true token has the probability 0.5, changed so."""
    zeros = np.zeros(N, np.int64)
    return TokenScores(
        kld=kld,
        reference_log_p=np.full(N, np.log(0.5)),
        candidate_log_p=np.log(0.5 + change),
        reference_top1=zeros,
        candidate_top1=zeros,
        top5_shared=zeros + 5,
        confidence=np.full(N, 0.5),
        targets=zeros,
    )


def test_quantiles_by_value() -> None:
    rng = np.random.default_rng(0)
    ranks = np.arange(N) / (N - 1)
    kld, change = rng.permutation(ranks**3), rng.permutation(0.4 * ranks - 0.1)
    found = figures(scores(kld, change), clusters(np.arange(N) // 100, np.arange(N) // 512))
    for name, rank in {"median": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p999": 0.999, "max": 1}.items():
        assert getattr(found.kld, name) == pytest.approx(rank**3, rel=1e-9), name
    places = {"min": 0, "p001": 0.001, "p01": 0.01, "p05": 0.05, "p25": 0.25, "median": 0.5}
    places |= {"p75": 0.75, "p95": 0.95, "p99": 0.99, "p999": 0.999, "max": 1}
    for name, rank in places.items():
        assert getattr(found.delta_p, name) == pytest.approx(0.4 * rank - 0.1, abs=1e-12), name
    assert found.delta_p.mean == pytest.approx(0.1, abs=1e-12)
    assert found.delta_p.rms == pytest.approx(np.sqrt(np.square(change).mean()), rel=1e-12)
    assert found.kld.mean == pytest.approx(np.mean(kld), rel=1e-12)
