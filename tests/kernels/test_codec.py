"""The Python door of the codecs: what it takes, what it refuses in words, and what no importance means."""

from __future__ import annotations

import re
import warnings
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from quantkit.errors import UsageError
from quantkit.kernels import FORMATS, dequantize, encode_into, quantize, row_bytes

WEIGHTS = np.random.default_rng(1).standard_normal((4, 512)).astype(np.float32)
PACKED = quantize(WEIGHTS, "q8_0")


@pytest.mark.parametrize("name", list(FORMATS))
def test_without_importance_the_search_is_quicker_and_nearly_as_good_as_with_ones(name: str) -> None:
    weights = np.random.default_rng(2).standard_normal((64, 1024)).astype(np.float32)
    ones = np.ones(1024, np.float32)
    absent, equal = (
        float(np.square(dequantize(quantize(weights, name, importance=importance), name) - weights).sum())
        for importance in (None, ones)
    )
    assert absent <= 1.15 * equal


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16, "float32"])
def test_weights_are_decoded_to_any_float(dtype: Any) -> None:
    decoded = dequantize(PACKED, "q8_0", dtype=dtype)
    assert decoded.dtype == np.dtype(dtype)
    assert np.array_equal(decoded, dequantize(PACKED, "q8_0").astype(dtype))


@pytest.mark.parametrize("dtype", [np.uint16, int, bool, complex, object, "S4", None, "no such type"])
def test_weights_are_not_decoded_to_anything_else(dtype: Any) -> None:
    with pytest.raises(UsageError, match="cannot be decoded to dtype"):
        dequantize(PACKED, "q8_0", dtype=dtype)


@pytest.mark.parametrize("threads", [-1, None, 1.5, "2", 1 << 31])
def test_threads_are_a_whole_number(threads: Any) -> None:
    with pytest.raises(UsageError, match=r"threads is .*\n.*0 takes all processors"):
        quantize(WEIGHTS, "q8_0", threads=threads)
    with pytest.raises(UsageError, match=r"threads is"):
        dequantize(PACKED, "q8_0", threads=threads)


def test_threads_of_numpy_are_taken() -> None:
    assert np.array_equal(quantize(WEIGHTS, "q8_0", threads=np.int64(2)), PACKED)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [None, 8, ["q8_0"], "q8_O", ""])
def test_a_format_that_is_not_there(name: Any) -> None:
    for call in (
        lambda: quantize(WEIGHTS, name),
        lambda: dequantize(PACKED, name),
        lambda: row_bytes(name, 256),
    ):
        with pytest.raises(UsageError, match=r"unknown format .*\n.*q8_0"):
            call()


@pytest.mark.parametrize("value", [1e39, np.inf, np.nan, -1.0, -1e-50, np.float64(np.finfo(np.float32).max) * 1.0001])
@pytest.mark.parametrize("experts", [False, True])
def test_importance_that_float32_does_not_hold(value: float, experts: bool) -> None:
    importance = np.ones(512)
    importance[7] = value
    weights, given = (WEIGHTS[None], importance[None]) if experts else (WEIGHTS, importance)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UsageError, match=re.escape(f"importance {value!s} at column 7 is")):
            quantize(weights, "q4_k", importance=given)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, ml_dtypes.bfloat16, np.int32, bool])
def test_importance_of_another_type(dtype: Any) -> None:
    importance = np.arange(512) % 7 % 2 * np.ones(512, dtype)
    expected = quantize(WEIGHTS, "q4_k", importance=importance.astype(np.float32))
    assert np.array_equal(quantize(WEIGHTS, "q4_k", importance=importance), expected)


@pytest.mark.parametrize("importance", [np.ones(512, complex), np.full(512, "1"), np.full(512, None)])
def test_importance_that_is_no_number(importance: Any) -> None:
    with pytest.raises(UsageError, match="importance has dtype"):
        quantize(WEIGHTS, "q4_k", importance=importance)


@pytest.mark.parametrize("shape", [(), (511,), (1, 512), (3, 512), (2, 511), (2, 512, 1)])
def test_importance_of_another_shape(shape: tuple[int, ...]) -> None:
    importance = np.ones(shape, np.float32)
    with pytest.raises(UsageError, match="importance has shape"):
        quantize(WEIGHTS, "q4_k", importance=importance)
    with pytest.raises(UsageError, match="importance has shape"):
        quantize(WEIGHTS.reshape(2, 2, 512), "q4_k", importance=importance)


def test_rows_of_experts_are_those_of_matrices() -> None:
    importance = np.random.default_rng(3).random((2, 512)).astype(np.float32)
    packed = quantize(WEIGHTS.reshape(2, 2, 512), "q4_k", importance=importance)
    for expert in range(2):
        rows = quantize(WEIGHTS[2 * expert : 2 * expert + 2], "q4_k", importance=importance[expert])
        assert np.array_equal(packed[expert], rows)


def test_out_of_another_size_is_refused() -> None:
    source = WEIGHTS.reshape(-1).view(np.uint8)
    for out in (
        np.empty(PACKED.size - 1, np.uint8),
        np.empty(PACKED.shape, np.int8),
        np.empty((544 * 2, 4), np.uint8).T,
    ):
        with pytest.raises(UsageError, match="out must be C-contiguous uint8"):
            encode_into(out, source, format="q8_0", dtype="f32", rows=4, cols=512)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"weighting": "square"}, r"unknown weighting 'square'\n.*magnitude"),
        ({"weighting": None}, "unknown weighting None"),
        ({"dtype": "f64"}, r"unknown scalar type 'f64'\n.*bf16"),
        ({"offset_elements": 1}, "beyond the source"),
        ({"row_stride": 513}, "beyond the source"),
        ({"offset_elements": -1}, "negative"),
        ({"scale": np.ones(3, np.float32)}, "scale"),
    ],
)
def test_arguments_that_do_not_fit_together(wrong: dict[str, Any], words: str) -> None:
    out = np.empty_like(PACKED)
    right = {"format": "q8_0", "dtype": "f32", "rows": 4, "cols": 512}
    encode_into(out, WEIGHTS.reshape(-1).view(np.uint8), **right)
    assert np.array_equal(out, PACKED)
    with pytest.raises(UsageError, match=words):
        encode_into(out, WEIGHTS.reshape(-1).view(np.uint8), **{**right, **wrong})
