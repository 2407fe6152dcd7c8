"""What a format cannot hold is refused with its row and column, wherever it lies and whatever type it has."""

from __future__ import annotations

import numpy as np
import pytest

from quantkit.errors import NonFiniteError
from quantkit.kernels import FORMATS, build_info, dequantize, encode_into, quantize, row_bytes
from quantkit.testing.families import Matrix

TIERS = build_info()["tiers_supported"]
ROWS = 19  # leaves lanes empty
DTYPES = ["f32", "f16", "bf16", "f8_e4m3"]


def scalars(x: Matrix, dtype: str) -> np.ndarray:
    """The bits of x in a source type; x is exact in it, or NaN or infinite."""
    if dtype == "bf16":
        return (x.view(np.uint32) >> 16).astype(np.uint16)
    if dtype == "f16":
        return x.astype(np.float16).view(np.uint16)
    if dtype == "f8_e4m3":
        sign = np.signbit(x).astype(np.uint8) << 7
        codes = np.where(np.isnan(x), 0x7F, np.where(x == 0, 0, 0x38))  # 1.0
        return (codes | sign).astype(np.uint8)
    return x.view(np.uint32)


def encode(name: str, bits: np.ndarray, dtype: str, transposed: bool, scale: Matrix | None = None) -> np.ndarray:
    rows, cols = bits.shape
    out = np.empty((rows, row_bytes(name, cols)), np.uint8)
    encode_into(
        out,
        np.ascontiguousarray(bits.T if transposed else bits).reshape(-1).view(np.uint8),
        format=name,
        dtype=dtype,
        rows=rows,
        cols=cols,
        row_stride=1 if transposed else cols,
        col_stride=rows if transposed else 1,
        scale=scale,
        threads=2,
    )
    return out


def refusal(name: str, bits: np.ndarray, dtype: str, transposed: bool, scale: Matrix | None = None) -> NonFiniteError:
    with pytest.raises(NonFiniteError) as caught:
        encode(name, bits, dtype, transposed, scale)
    return caught.value


@pytest.fixture(autouse=True, params=TIERS)
def tier(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("QUANTKIT_TIER", request.param)
    return request.param


@pytest.fixture(params=[False, True], ids=["contiguous", "transposed"])
def transposed(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", list(FORMATS))
def test_nan_and_infinity(name: str, dtype: str, transposed: bool) -> None:
    cols = 2 * max(32, FORMATS[name].block_size)
    rng = np.random.default_rng(3)
    bad = [np.nan] if dtype == "f8_e4m3" else [np.nan, np.inf, -np.inf]  # fp8 has no infinity
    for value in bad:
        for row, col in ((0, 0), (ROWS - 1, cols - 1), (int(rng.integers(ROWS)), int(rng.integers(cols)))):
            x = np.ones((ROWS, cols), np.float32)
            x[row, col] = value
            error = refusal(name, scalars(x, dtype), dtype, transposed)
            assert (error.row, error.col) == (row, col)
            np.testing.assert_equal(error.value, value)
            assert f"row {row}, column {col}" in str(error)
            assert "not finite" in str(error)


@pytest.mark.parametrize("name", list(FORMATS))
def test_the_first_bad_weight_in_row_order_is_named(name: str, transposed: bool) -> None:
    cols = 2 * max(32, FORMATS[name].block_size)
    x = np.ones((ROWS, cols), np.float32)
    x[[17, 4, 4], [0, cols - 1, 33]] = np.nan, np.inf, np.nan
    error = refusal(name, scalars(x, "f32"), "f32", transposed)
    assert (error.row, error.col) == (4, 33)


def in_dtype(value: float, dtype: str) -> float:
    """The largest magnitude of the source type that is at most `value`."""
    if dtype == "bf16":
        return float((np.array([value], np.float32).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)[0])
    return float(np.float32(value))


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("name", list(FORMATS))
def test_beyond_the_largest_magnitude(name: str, dtype: str, transposed: bool) -> None:
    cols, limit = 2 * max(32, FORMATS[name].block_size), FORMATS[name].max_abs
    x = np.zeros((ROWS, cols), np.float32)
    x[5, 40] = -in_dtype(limit, dtype)
    assert np.isfinite(dequantize(encode(name, scalars(x, dtype), dtype, transposed), name)).all()
    bits = scalars(x, dtype)
    bits[5, 40] += 1  # the next magnitude that the type has; infinity where it has none
    error = refusal(name, bits, dtype, transposed)
    assert (error.row, error.col) == (5, 40)
    assert error.value < -limit
    if np.isfinite(error.value):
        assert f"largest magnitude of {name}" in str(error)


@pytest.mark.parametrize("name", list(FORMATS))
def test_a_scale_counts(name: str, transposed: bool) -> None:
    """An fp8 weight is judged after its row's scale has been multiplied in."""
    cols, limit = 2 * max(32, FORMATS[name].block_size), FORMATS[name].max_abs
    bits = scalars(np.zeros((ROWS, cols), np.float32), "f8_e4m3")
    bits[7, 9] = bits[8, 9] = 0xFE  # -448
    scale = np.ones(ROWS, np.float32)
    scale[7] = np.float32(limit) / np.float32(512)
    encode(name, bits, "f8_e4m3", transposed, scale)
    scale[8] = np.float32(limit) / np.float32(256)
    error = refusal(name, bits, "f8_e4m3", transposed, scale)
    assert (error.row, error.col) == (8, 9)


@pytest.mark.parametrize("name", list(FORMATS))
def test_an_expert_is_named(name: str) -> None:
    cols = max(32, FORMATS[name].block_size)
    x = np.ones((3, 4, cols), np.float32)
    x[2, 3, 1] = np.nan
    with pytest.raises(NonFiniteError, match=r"expert 2: weight nan at row 3, column 1 is not finite"):
        quantize(x, name)
