"""What holds between encodings of related inputs, under hypothesis, on every tier; and that each assert can fail."""

from __future__ import annotations

import contextlib
import os
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantkit.errors import UsageError
from quantkit.kernels import FORMATS, build_info, current_tier, dequantize, quantize
from quantkit.kernels.codec import Weighting
from quantkit.testing import (
    assert_blocks_stand_alone,
    assert_power_of_two_scaling,
    assert_requantizing_is_stable,
    assert_same_bytes,
    importances,
    make_importance,
    make_weights,
    supported_tiers,
    use_tier,
    weight_matrices,
)
from quantkit.testing.families import WEIGHTS, Matrix
from quantkit.testing.layout import E8M0_SCALES, F16_SCALES, Bytes, split_scales

TIERS = supported_tiers()
BLOCKS = [name for name, found in FORMATS.items() if found.block_size > 1]
WEIGHTINGS = st.sampled_from(get_args(Weighting))

each_tier = pytest.mark.parametrize("tier", TIERS)


def near_a_thousand(x: Matrix) -> Matrix:
    """Rows times a power of two, so that the scales of all formats lie amid f16's range."""
    largest = np.abs(x).max(axis=1, keepdims=True).astype(np.float64)
    power = np.where(largest > 0, 9 - np.floor(np.log2(np.where(largest > 0, largest, 1))), 0)
    return np.ldexp(x.astype(np.float64), power.astype(int)).astype(np.float32)


@each_tier
@pytest.mark.parametrize("name", BLOCKS)
@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_powers_of_two_scale(name: str, tier: str, data: st.DataObject) -> None:
    x = near_a_thousand(data.draw(weight_matrices(name)))
    kind = data.draw(st.sampled_from([None, "ones", "lognormal"]))
    importance = None if kind is None else make_importance(kind, x.shape[1], data.draw(st.integers(0, 2**32 - 1)))
    exponent, weighting = data.draw(st.integers(-3, 2)), data.draw(WEIGHTINGS)
    with use_tier(tier):
        assert_power_of_two_scaling(x, name, exponent=exponent, importance=importance, weighting=weighting)


@pytest.mark.parametrize("name", BLOCKS)
def test_most_blocks_are_looked_at_when_scaled(name: str) -> None:
    x = near_a_thousand(make_weights(["gauss", "heavy", "model", "negative"] * 4, 1024, 3))
    assert assert_power_of_two_scaling(x, name, exponent=1) >= 0.9 * x.size / FORMATS[name].block_size


@each_tier
@pytest.mark.parametrize("name", list(FORMATS))
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_blocks_stand_alone(name: str, tier: str, data: st.DataObject) -> None:
    x = data.draw(weight_matrices(name, min_block=32, max_blocks=5))
    importance = data.draw(importances(x.shape[1]))
    weighting, seed = data.draw(WEIGHTINGS), data.draw(st.integers(0, 1000))
    with use_tier(tier):
        assert_blocks_stand_alone(x, name, importance=importance, weighting=weighting, seed=seed)


@each_tier
@pytest.mark.parametrize("name", list(FORMATS))
@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_requantizing_is_stable(name: str, tier: str, data: st.DataObject) -> None:
    x = data.draw(weight_matrices(name, min_block=32))
    importance, weighting = data.draw(importances(x.shape[1])), data.draw(WEIGHTINGS)
    with use_tier(tier):
        packed = quantize(x, name, importance=importance, weighting=weighting)
        assert_requantizing_is_stable(packed, name, importance=importance, weighting=weighting)


@pytest.mark.parametrize("name", ["q4_0", "q5_0", "q8_0", "iq4_nl"])
def test_most_blocks_of_usual_weights_are_kept_when_requantized(name: str) -> None:
    """So that the statement about them says something: plain rounding puts the extreme at the end of the grid."""
    x = make_weights(["model"] * 16, 1024, 4) * np.float32(50)
    values = dequantize(quantize(x, name), name)
    again = dequantize(quantize(values, name), name)
    assert (values == again).reshape(-1, 32).all(axis=1).mean() >= 0.95


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_scales_are_where_the_layout_says(data: st.DataObject) -> None:
    """Doubling a block's stored scales doubles its values."""
    name = data.draw(st.sampled_from(BLOCKS))
    x = near_a_thousand(data.draw(weight_matrices(name)))
    packed = quantize(x, name)
    scales, _ = split_scales(packed, name)
    blocks = packed.reshape(-1, FORMATS[name].block_bytes).copy()
    for column, offset in enumerate(F16_SCALES[name]):
        doubled = (2 * scales[:, column]).astype("<f2")
        blocks[:, offset : offset + 2] = doubled[:, None].view(np.uint8)
    for offset in E8M0_SCALES.get(name, ()):
        blocks[:, offset] += 1
    np.testing.assert_array_equal(dequantize(blocks.reshape(packed.shape), name), 2 * dequantize(packed, name))


def test_a_tier_is_used_within_and_not_after(monkeypatch: pytest.MonkeyPatch) -> None:
    for before in (None, "scalar"):
        if before is None:
            monkeypatch.delenv("QUANTKIT_TIER", raising=False)
        else:
            monkeypatch.setenv("QUANTKIT_TIER", before)
        for tier in TIERS:
            with contextlib.suppress(KeyError), use_tier(tier):
                assert current_tier() == tier
                raise KeyError
            assert os.environ.get("QUANTKIT_TIER") == before
    assert build_info()["tiers_supported"] == TIERS
    with pytest.raises(UsageError, match=r"no tier 'mmx' on this machine\n.*scalar"), use_tier("mmx"):
        pass


# Each assert sees a defect of the kind that it is there for.

WEIGHTS_OF_A_MODEL = make_weights(["model"] * 6, 512, 9) * np.float32(50)


def knows_its_place(x: Matrix, importance: Matrix | None) -> Bytes:
    """An encoder that treats the first block of a row better than the others."""
    packed = quantize(x, "q4_0", importance=importance)
    packed[:, :18] = quantize(x[:, :32], "q4_0", importance=np.ones(32))
    return packed


def test_an_encoder_whose_blocks_do_not_stand_alone() -> None:
    with pytest.raises(AssertionError, match=r"q4_0: blocks in another order: .*\n  first: row \d, block"):
        assert_blocks_stand_alone(WEIGHTS_OF_A_MODEL, "q4_0", encode=knows_its_place, seed=1)


def knows_its_size(x: Matrix, importance: Matrix | None) -> Bytes:
    """An encoder with a threshold that does not scale."""
    return quantize(np.where(np.abs(x) < 0.05, np.float32(0), x), "q8_0", importance=importance)


def test_an_encoder_that_does_not_scale() -> None:
    with pytest.raises(AssertionError, match=r"q8_0: weights times 2\^1 have other codes in \d+ of 96 blocks\n  first"):
        assert_power_of_two_scaling(WEIGHTS_OF_A_MODEL, "q8_0", encode=knows_its_size)
    with pytest.raises(UsageError, match="f16 has no scales"):
        assert_power_of_two_scaling(WEIGHTS_OF_A_MODEL, "f16")
    for importance in (make_importance("one column", 512, 0), make_importance("ratio", 512, 0)):
        with pytest.raises(UsageError, match="importance has to be above zero"):
            assert_power_of_two_scaling(WEIGHTS_OF_A_MODEL, "q8_0", importance=importance)


def drifts(x: Matrix, importance: Matrix | None) -> Bytes:
    """An encoder that shrinks weights a little every time."""
    return quantize(x * np.float32(0.99), "q8_0", importance=importance)


def test_an_encoder_that_drifts() -> None:
    packed = quantize(WEIGHTS_OF_A_MODEL, "q8_0")
    with pytest.raises(AssertionError, match="further off than its layout can explain"):
        assert_requantizing_is_stable(packed, "q8_0", encode=drifts)
    slightly = lambda x, importance: quantize(x * np.float32(0.999), "q8_0")  # noqa: E731
    with pytest.raises(AssertionError, match=r"decoded and encoded again: other values in \d+ of the \d+ blocks"):
        assert_requantizing_is_stable(packed, "q8_0", encode=slightly, importance=np.ones(512))
    cast = lambda x, importance: quantize(x * np.float32(1 + 2.0**-11), "f16")  # noqa: E731
    with pytest.raises(AssertionError, match="decoded and encoded again: other bytes"):
        assert_requantizing_is_stable(quantize(WEIGHTS_OF_A_MODEL, "f16"), "f16", encode=cast)


def test_bytes_that_depend_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def tilts(x: Matrix, format: str, *, threads: int, **options: object) -> Bytes:
        packed = quantize(x, format, threads=threads, **options)  # type: ignore[arg-type]
        packed[-1, -1] ^= threads == 3
        return packed

    monkeypatch.setattr("quantkit.testing.properties.quantize", tilts)
    words = (
        r"q4_0: tier scalar, 3 threads: other bytes than scalar, one thread in 1 of 96 blocks\n  first: row 5, block 15"
    )
    with pytest.raises(AssertionError, match=words):
        assert_same_bytes(WEIGHTS_OF_A_MODEL, "q4_0")


def test_every_family_is_drawn_from() -> None:
    """A name that hypothesis never meets would be a family that tests nothing."""
    seen: set[str] = set()
    families = {name: lambda rng, n, name=name: seen.add(name) or WEIGHTS[name](rng, n) for name in WEIGHTS}

    @given(x=weight_matrices("q8_0", max_rows=20, families=families))
    @settings(max_examples=100, deadline=None, database=None, derandomize=True)
    def draw(x: Matrix) -> None:
        assert np.isfinite(x).all()

    draw()
    assert seen == set(WEIGHTS)
