"""Families make what they promise, the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantkit.errors import UsageError
from quantkit.testing import (
    ACTIVATIONS,
    CHANNELS,
    IMPORTANCES,
    WEIGHTS,
    activations,
    formats,
    importances,
    make_activations,
    make_importance,
    make_weights,
    weight_matrices,
)
from quantkit.testing.families import F16_MAX

SEEDS = range(20)


@pytest.mark.parametrize("family", list(WEIGHTS))
def test_weights(family: str) -> None:
    for seed in SEEDS:
        for channels in CHANNELS:
            x = make_weights([family] * 3, 96, seed, channels=channels)
            assert x.shape == (3, 96)
            assert x.dtype == np.float32
            assert np.isfinite(x).all()
            assert np.abs(x).max() <= F16_MAX
            np.testing.assert_array_equal(x, make_weights([family] * 3, 96, seed, channels=channels))
    assert np.abs(make_weights([family], 96, 1, max_abs=0.5)).max() <= 0.5


@pytest.mark.parametrize("family", list(IMPORTANCES))
def test_importance(family: str) -> None:
    for seed in SEEDS:
        w = make_importance(family, 96, seed)
        assert w.shape == (96,)
        assert w.dtype == np.float32
        assert np.isfinite(w).all()
        assert (w >= 0).all()


@pytest.mark.parametrize("family", list(ACTIVATIONS))
def test_activations(family: str) -> None:
    for seed in SEEDS:
        x = make_activations([family] * 2, 96, seed)
        assert x.shape == (2, 96)
        assert x.dtype == np.float32
        assert np.isfinite(x).all()


def test_what_the_hard_ones_are_hard_for() -> None:
    """Each promise of the names, on one seed: a family that lost its point would pass all tests that use it."""
    n = 2048
    row = {family: make_weights([family], n, 5)[0] for family in WEIGHTS}
    tiny = np.finfo(np.float32).tiny
    assert (np.abs(row["subnormal"]) < tiny).all()
    assert np.signbit(row["signed zero"]).any()
    assert not row["signed zero"].any()
    assert np.abs(row["outlier"]).max() > 10 * np.sort(np.abs(row["outlier"]))[-20]
    assert len(np.unique(np.abs(row["ties"]))) <= 17
    assert len(np.unique(row["constant"])) <= n // 32
    assert np.log10(np.abs(row["range"][row["range"] != 0])).std() > 10
    assert np.count_nonzero(row["one element"]) == 1
    assert (np.abs(row["largest"]) == F16_MAX).any()
    kurtosis = (row["heavy"] ** 4).mean() / (row["heavy"] ** 2).mean() ** 2
    assert kurtosis > 50
    x = make_weights(["gauss"] * 64, n, 5, channels="outlier channels")
    sizes = np.sqrt((x.astype(np.float64) ** 2).mean(axis=0))
    assert 0 < (sizes > 8 * np.median(sizes)).mean() < 0.05
    w = make_importance("ratio", n, 5)
    assert float(w.max()) / float(w[w > 0].min()) > 1e50


def test_names_that_are_not_known() -> None:
    for call in (
        lambda: make_weights(["guass"], 32, 0),
        lambda: make_weights(["gauss"], 32, 0, channels="odd"),
        lambda: make_importance("none", 32, 0),
        lambda: make_activations(["relu"], 32, 0),
    ):
        with pytest.raises(UsageError, match=r"unknown family .*\n.*Known: "):
            call()


@given(data=st.data())
@settings(max_examples=50, deadline=None)
def test_strategies(data: st.DataObject) -> None:
    name = data.draw(formats(blocks=False))
    x = data.draw(weight_matrices(name, min_rows=2, max_rows=4, max_blocks=2, min_block=32, max_abs=3.0))
    assert 2 <= len(x) <= 4
    assert x.shape[1] % 32 == 0
    assert np.abs(x).max() <= 3.0
    w = data.draw(importances(x.shape[1]))
    assert w is None or w.shape == x.shape[1:]
    y = data.draw(activations(x.shape[1], max_rows=3))
    assert y.shape[1] == x.shape[1]
    assert len(y) <= 3
    assert x.dtype == y.dtype == np.float32
