"""The bound of MLX-style groups holds for quantkit and for MLX itself, and is not generous."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantkit.kernels import dequantize_groups, quantize_groups
from quantkit.testing import (
    assert_groups_within_bound,
    group_error_bounds,
    importances,
    make_weights,
    weight_matrices,
)

WEIGHTS = make_weights(["gauss"] * 16, 512, 1)


@pytest.mark.parametrize("symmetric", [False, True], ids=["affine", "symmetric"])
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_bound(symmetric: bool, data: st.DataObject) -> None:
    x = data.draw(weight_matrices("q4_k", max_blocks=1))
    importance = data.draw(importances(256))
    bits, size = data.draw(st.sampled_from([2, 3, 4, 5, 6, 8])), data.draw(st.sampled_from([32, 64, 128, -1]))
    scale_dtype = data.draw(st.sampled_from(["f32", "f16", "bf16"]))
    groups = quantize_groups(x, bits, size, symmetric, importance, scale_dtype)
    assert_groups_within_bound(x, *groups, bits, size, importance, symmetric=symmetric)


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_mlx_keeps_it(bits: int) -> None:
    groups = [np.array(array) for array in mx.quantize(mx.array(WEIGHTS), 64, bits)]
    assert_groups_within_bound(WEIGHTS, *groups, bits, 64)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [False, True], ids=["affine", "symmetric"])
def test_it_is_not_generous_and_finds_a_wrong_code(symmetric: bool, bits: int) -> None:
    packed, scales, biases = quantize_groups(WEIGHTS, bits, 64, symmetric)
    error = dequantize_groups(packed, scales, biases, bits, 64) - WEIGHTS
    bounds = group_error_bounds(WEIGHTS, bits, 64, symmetric=symmetric)
    assert np.sqrt((bounds**2).mean()) <= 10 * np.sqrt((error**2).mean())
    scales[3, 2] *= 4
    with pytest.raises(AssertionError, match=rf"{bits} bits in groups of 64: further off .*\n  worst: row 3, block 2,"):
        assert_groups_within_bound(WEIGHTS, packed, scales, biases, bits, 64, symmetric=symmetric)
