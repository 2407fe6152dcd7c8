"""The asserts name the worst block, and say no more than what the bytes say."""

from __future__ import annotations

import re

import ml_dtypes
import numpy as np
import pytest

from quantkit.errors import UsageError
from quantkit.kernels import FORMATS, dequantize, quantize
from quantkit.testing import (
    BOUNDS,
    assert_close_to,
    assert_within_bound,
    error_bounds,
    make_weights,
    worst_block,
)
from quantkit.testing.families import Matrix

WEIGHTS = make_weights(["gauss"] * 5, 512, 1)


def test_every_format_has_a_bound() -> None:
    assert BOUNDS.keys() == FORMATS.keys()


@pytest.mark.parametrize("name", list(FORMATS))
def test_bounds_are_not_generous(name: str) -> None:
    """The root mean square error of ordinary weights is at least a tenth of that of their bounds."""
    weights = make_weights(["gauss"] * 64, 1024, 2) * np.float32(50)
    error = dequantize(quantize(weights, name), name).astype(np.float64) - weights
    bounds = error_bounds(weights, name)
    assert bounds.shape == weights.shape
    assert np.sqrt((bounds**2).mean()) <= 10 * np.sqrt((error**2).mean())


@pytest.mark.parametrize("name", list(FORMATS))
def test_a_wrong_scale_is_found(name: str) -> None:
    """Weights encoded as if they were four times as large, in one block only."""
    size = max(32, FORMATS[name].block_size)
    spoilt = WEIGHTS * np.float32(50)
    right = spoilt.copy()
    spoilt[3, size : 2 * size] *= 4
    packed = quantize(spoilt, name)
    worst = worst_block(right, packed, name)
    assert (worst.row, worst.column // size) == (3, 1)
    assert worst.block == worst.column // FORMATS[name].block_size
    assert worst.blocks_over == (1 if FORMATS[name].block_size > 1 else worst.blocks_over)
    words = (
        f"{name}: further off than its layout can explain\n  worst: row 3, block {worst.block}, element {worst.element}"
    )
    with pytest.raises(AssertionError, match=re.escape(words)):
        assert_within_bound(right, packed, name)


def test_the_message_is_complete() -> None:
    weights = np.zeros((2, 64), np.float32)
    weights[1, 32:] = np.linspace(-1, 1, 32)
    packed = quantize(weights, "q8_0")
    packed[1, 34 + 2 + 5] = 127  # the code of element 5
    value, decoded = weights[1, 37], dequantize(packed, "q8_0")[1, 37]
    with pytest.raises(AssertionError) as caught:
        assert_within_bound(weights, packed, "q8_0")
    first, place, count = str(caught.value).split("\n")
    assert first == "q8_0: further off than its layout can explain"
    start = (
        f"  worst: row 1, block 1, element 5 (column 37): value {value:.9g}, decoded {decoded:.9g}, error 1.677, bound "
    )
    assert place.startswith(start)
    assert float(place.removeprefix(start)) == pytest.approx(np.sqrt(32) * (0.5 / 127 + 2.0**-11), rel=1e-3)
    assert count == "  blocks over their bound: 1 of 4, the worst 67 times"


def test_importance_decides_what_may_be_off() -> None:
    importance = np.ones(512, np.float32)
    importance[7] = 0
    packed = quantize(WEIGHTS, "q8_0", importance=importance)
    packed[2, 2 + 7] ^= 0x7F
    assert_within_bound(WEIGHTS, packed, "q8_0", importance)
    with pytest.raises(AssertionError, match=r"row 2, block 0, element 7"):
        assert_within_bound(WEIGHTS, packed, "q8_0")


def test_what_is_not_finite_is_over_every_bound() -> None:
    packed = quantize(WEIGHTS, "q8_0")
    packed[4, 34:36] = 0xFF  # a scale that is NaN
    with pytest.raises(AssertionError, match=r"row 4, block 1, element \d+ .* decoded nan, error nan"):
        assert_within_bound(WEIGHTS, packed, "q8_0")


def test_experts_and_other_types() -> None:
    experts = WEIGHTS.reshape(1, 5, 512).repeat(2, axis=0)
    importance = np.random.default_rng(3).random((2, 512)).astype(np.float32)
    for name in ("q4_k", "q4_0"):
        assert_within_bound(experts, quantize(experts, name, importance=importance), name, importance)
    bits = WEIGHTS.view(np.uint32) >> 16
    for weights in (bits.astype(np.uint16), WEIGHTS.astype(np.float16), WEIGHTS.astype(ml_dtypes.bfloat16)):
        assert_within_bound(weights, quantize(weights, "q4_k"), "q4_k")


@pytest.mark.parametrize(
    ("weights", "importance", "words"),
    [
        (WEIGHTS[:4], None, r"shapes \(4, 512\) and \(5, 512\)"),
        (WEIGHTS, np.ones(511), r"importance of shape \(511,\)"),
        (WEIGHTS.astype(complex), None, "complex"),
    ],
)
def test_what_does_not_fit_is_wrong_usage(weights: Matrix, importance: Matrix | None, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        assert_within_bound(weights, quantize(WEIGHTS, "q8_0"), "q8_0", importance)


def test_close_to() -> None:
    expected = np.arange(12.0).reshape(2, 6)
    actual = expected.copy()
    actual[1, 4] += 0.25
    actual[0, 2] += 0.125
    assert_close_to(expected, actual, bound=0.25, block_size=3)
    words = re.escape(
        "further off than its bound\n  worst: row 1, block 1, element 1 (column 4): value 10, decoded 10.25, "
        "error 0.25, bound 0.2\n  blocks over their bound: 1 of 4, the worst 1.25 times"
    )
    with pytest.raises(AssertionError, match=words):
        assert_close_to(expected, actual, bound=0.2, block_size=3)
    bounds = np.full((2, 6), 0.25)
    bounds[0, 2] = 0.01
    with pytest.raises(AssertionError, match=r"row 0, block 0, element 2"):
        assert_close_to(expected, actual, bound=bounds, block_size=3)
    with pytest.raises(AssertionError, match=r"row 0, block 0, element 2 .*, bound 0\n.*: 2 of 2, the worst inf times"):
        assert_close_to(expected, actual, bound=0, block_size=6)
    assert_close_to(expected, expected, bound=0, block_size=6)
    with pytest.raises(UsageError, match=r"bound of shape \(5,\) and blocks of 3 do not fit values of shape \(2, 6\)"):
        assert_close_to(expected, actual, bound=np.ones(5), block_size=3)
    with pytest.raises(UsageError, match=r"bound of shape \(\) and blocks of 32 do not fit"):
        assert_close_to(expected, actual, bound=1)
    with pytest.raises(UsageError, match="expected and actual have shapes"):
        assert_close_to(expected, actual[0], bound=1)


@pytest.mark.parametrize("name", list(FORMATS))
def test_close_to_takes_the_bounds_of_a_format(name: str) -> None:
    """Plain rounding of each element alone is stricter than the bound of a block; the root of its sum is that bound."""
    size = FORMATS[name].block_size
    bounds = error_bounds(WEIGHTS, name).reshape(-1, size)
    per_block = np.sqrt((bounds**2).sum(axis=1, keepdims=True)).repeat(size, axis=1).reshape(WEIGHTS.shape)
    assert_close_to(WEIGHTS, dequantize(quantize(WEIGHTS, name), name), bound=per_block * 1.00001, block_size=size)
