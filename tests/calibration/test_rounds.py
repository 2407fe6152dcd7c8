"""Which experts are short, and when another round would not help."""

from __future__ import annotations

import numpy as np
import pytest

from quantkit.calibration import ShortExpert
from quantkit.calibration.rounds import has_stalled, short_experts
from quantkit.gguf import Imatrix, ImatrixEntry


def imatrix(*layers: list[float]) -> Imatrix:
    entries = {
        f"blk.{layer}.ffn_{kind}_exps.weight": ImatrixEntry(np.ones((len(counts), 8)), np.array(counts))
        for layer, counts in enumerate(layers)
        for kind in ("gate", "up", "down")
    }
    dense = {"blk.0.attn_q.weight": ImatrixEntry(np.ones((1, 8)), np.array([3.0]))}
    return Imatrix(dense | entries, (), 1, 8)


def test_experts_below_the_floor_are_named() -> None:
    short = short_experts(imatrix([10.0, 9.0], [0.0, 11.0]), 10)
    assert short == (ShortExpert(0, 1, 9), ShortExpert(1, 0, 0))
    assert short_experts(imatrix([10.0, 9.0]), 0) == ()
    assert short_experts(imatrix(), 10) == ()


@pytest.mark.parametrize(
    ("after", "stalled"),
    [
        ([100.0, 0.0], True),
        ([104.0, 0.0], True),
        ([105.0, 0.0], False),
        ([100.0, 1.0], False),  # its first token
        ([900.0, 0.0], False),  # one of the two has enough
    ],
)
def test_a_round_that_adds_under_five_percent_to_every_short_expert_is_the_last(
    after: list[float], stalled: bool
) -> None:
    before = short_experts(imatrix([100.0, 0.0]), 500)
    assert has_stalled(before, short_experts(imatrix(after), 500)) is stalled
