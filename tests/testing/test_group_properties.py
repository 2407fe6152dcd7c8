"""What holds between group quantizations of related inputs, on every tier; and that each assert can fail."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantkit.errors import UsageError
from quantkit.kernels import quantize_groups
from quantkit.testing import (
    assert_groups_power_of_two_scaling,
    assert_groups_requantizing_is_stable,
    assert_groups_same_bytes,
    assert_groups_stand_alone,
    importances,
    make_weights,
    supported_tiers,
    use_tier,
    weight_matrices,
)
from quantkit.testing.families import Matrix
from quantkit.testing.group_properties import Groups

BITS = [2, 3, 4, 5, 6, 8]
SIZES = [32, 64, 128, -1]
SCALES = ["f32", "f16", "bf16"]

each_tier = pytest.mark.parametrize("tier", supported_tiers())
each_kind = pytest.mark.parametrize("symmetric", [False, True], ids=["affine", "symmetric"])


def drawn(data: st.DataObject, symmetric: bool) -> tuple[Matrix, dict[str, Any]]:
    """Rows of several groups, and how to quantize them."""
    x = data.draw(weight_matrices("f32", min_block=128, max_blocks=3))
    return x, {
        "bits": data.draw(st.sampled_from(BITS)),
        "group_size": data.draw(st.sampled_from(SIZES)),
        "scale_dtype": data.draw(st.sampled_from(SCALES)),
        "importance": data.draw(importances(x.shape[1])),
        "symmetric": symmetric,
    }


@each_kind
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_bytes_are_the_same_whatever_the_way(symmetric: bool, data: st.DataObject) -> None:
    x, options = drawn(data, symmetric)
    cut, threads = data.draw(st.integers(0, len(x))), data.draw(st.sampled_from([2, 3]))
    assert_groups_same_bytes(x, **options, cut=cut, threads=threads)


@each_tier
@each_kind
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_groups_stand_alone(symmetric: bool, tier: str, data: st.DataObject) -> None:
    x, options = drawn(data, symmetric)
    seed = data.draw(st.integers(0, 1000))
    with use_tier(tier):
        assert_groups_stand_alone(x, **options, seed=seed)


@each_tier
@each_kind
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_powers_of_two_scale(symmetric: bool, tier: str, data: st.DataObject) -> None:
    x, options = drawn(data, symmetric)
    exponent = data.draw(st.integers(-6, 6))
    with use_tier(tier):
        assert_groups_power_of_two_scaling(x, **options, exponent=exponent)


@each_tier
@each_kind
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_requantizing_is_stable(symmetric: bool, tier: str, data: st.DataObject) -> None:
    x, options = drawn(data, symmetric)
    with use_tier(tier):
        groups = quantize_groups(x, **options)
        options.pop("scale_dtype")
        assert_groups_requantizing_is_stable(*groups, **options)


USUAL = make_weights(["gauss", "heavy", "model", "laplace"] * 4, 1024, 3)


@each_kind
@pytest.mark.parametrize("scale_dtype", SCALES)
@pytest.mark.parametrize("bits", BITS)
def test_most_groups_of_usual_weights_are_looked_at(bits: int, scale_dtype: str, symmetric: bool) -> None:
    """So that the statements about them say something."""
    x = USUAL * np.float32(100)
    assert (
        assert_groups_power_of_two_scaling(x, bits, symmetric=symmetric, scale_dtype=scale_dtype) >= 0.9 * x.size / 64
    )
    groups = quantize_groups(x, bits, 64, symmetric, scale_dtype=scale_dtype)
    kept = assert_groups_requantizing_is_stable(*groups, bits, 64, symmetric=symmetric)
    assert kept >= (0 if (bits, scale_dtype) == (8, "bf16") else 0.2) * x.size / 64


# Each assert sees a defect of the kind that it is there for.


def own(x: Matrix, importance: Matrix | None) -> Groups:
    return quantize_groups(x, importance=importance)


def test_a_quantizer_whose_groups_do_not_stand_alone() -> None:
    def knows_its_place(x: Matrix, importance: Matrix | None) -> Groups:
        packed, scales, biases = own(x, importance)
        scales[:, 0] *= np.float32(0.99)
        return packed, scales, biases

    with pytest.raises(AssertionError, match=r"groups in another order: other scales in \d+ of 256 groups\n  first"):
        assert_groups_stand_alone(USUAL, encode=knows_its_place, seed=1)


def test_a_quantizer_that_does_not_scale() -> None:
    def knows_its_size(x: Matrix, importance: Matrix | None) -> Groups:
        return own(np.where(np.abs(x) < 0.01, np.float32(0), x), importance)

    with pytest.raises(AssertionError, match=r"4 bits: weights times 2\^1 have other codes, .* in \d+ of 256 groups\n"):
        assert_groups_power_of_two_scaling(USUAL, encode=knows_its_size)


def test_a_quantizer_that_drifts() -> None:
    def drifts(x: Matrix, importance: Matrix | None) -> Groups:
        packed, scales, biases = own(x, importance)
        return packed, scales * np.float32(0.99), biases

    groups = own(USUAL, None)
    with pytest.raises(
        AssertionError, match=r"quantized again: other values in \d+ of the \d+ groups that can be kept"
    ):
        assert_groups_requantizing_is_stable(*groups, encode=drifts)
    with pytest.raises(AssertionError, match="further off than its layout can explain"):
        assert_groups_requantizing_is_stable(*groups, encode=lambda x, importance: own(x * np.float32(1.3), importance))


def test_bytes_that_depend_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def tilts(x: Matrix, *options: Any) -> Groups:
        packed, scales, biases = quantize_groups(x, *options)
        packed[-1, -1] ^= options[-1] == 3
        return packed, scales, biases

    monkeypatch.setattr("quantkit.testing.group_properties.quantize_groups", tilts)
    words = (
        r"scalar, 3 threads: other than scalar, one thread: other codes in 1 of 256 groups\n  first: row 15, group 15"
    )
    with pytest.raises(AssertionError, match=words):
        assert_groups_same_bytes(USUAL)
    with pytest.raises(UsageError, match="weights must be"):
        assert_groups_same_bytes(USUAL[0])


def test_mlx_has_some_of_it() -> None:
    """Its quantizer under the same asserts: groups stand alone, and scale; but a second pass moves values."""

    def theirs(x: Matrix, importance: Matrix | None) -> Groups:
        packed, scales, biases = (np.array(part) for part in mx.quantize(mx.array(x), 64, 4))
        return packed, scales, biases

    assert_groups_stand_alone(USUAL, encode=theirs)
    assert assert_groups_power_of_two_scaling(USUAL, encode=theirs) > 200
