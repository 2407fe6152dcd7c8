"""No element is worse than the plain encoder's bound for its whole scale block: quantkit.testing.bounds derives it."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.kernels.matrices import ROWS

from quantkit.kernels import FORMATS, quantize
from quantkit.kernels.codec import Weighting
from quantkit.testing import (
    IMPORTANCES,
    assert_within_bound,
    importances,
    make_importance,
    make_weights,
    weight_matrices,
)


@pytest.mark.parametrize("name", list(FORMATS))
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_bound(name: str, data: st.DataObject) -> None:
    x = data.draw(weight_matrices(name, families=ROWS))
    importance = data.draw(importances(x.shape[1]))
    weighting = data.draw(st.sampled_from(get_args(Weighting)))
    packed = quantize(x, name, importance=importance, weighting=weighting, threads=1)
    assert_within_bound(x, packed, name, importance, weighting=weighting)


@pytest.mark.parametrize("weights", [None, *IMPORTANCES])
@pytest.mark.parametrize("name", list(FORMATS))
def test_bound_on_every_kind_of_row(name: str, weights: str | None) -> None:
    x = make_weights(list(ROWS) * 4, 1024, 11, known=ROWS)
    importance = None if weights is None else make_importance(weights, 1024, 12)
    assert_within_bound(x, quantize(x, name, importance=importance, threads=1), name, importance)
