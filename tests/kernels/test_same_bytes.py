"""The bytes do not depend on the tier, on threads, on how rows are cut, on where they lie, or on the source's type."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.kernels.matrices import ROWS

from quantkit.kernels import FORMATS, dequantize, encode_into, quantize, row_bytes
from quantkit.testing import (
    assert_same_bytes,
    importances,
    make_importance,
    make_weights,
    supported_tiers,
    use_tier,
    weight_matrices,
)
from quantkit.testing.families import Matrix

TIERS = supported_tiers()
NAMES = list(FORMATS)
Bytes = npt.NDArray[np.uint8]


def as_dtype(x: Matrix, dtype: str) -> npt.NDArray[np.generic]:
    """The matrix in a source type (never beyond 65504), bf16 as its bits."""
    if dtype == "bf16":
        return (x.view(np.uint32) >> 16).astype(np.uint16)
    return x.astype(np.float16 if dtype == "f16" else np.float32)


def as_f32(x: npt.NDArray[np.generic], dtype: str) -> Matrix:
    return (x.astype(np.uint32) << 16).view(np.float32) if dtype == "bf16" else x.astype(np.float32)


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_tier_threads_place_and_type_do_not_show(name: str, data: st.DataObject) -> None:
    x = data.draw(weight_matrices(name, min_block=32, families=ROWS))
    rows, cols = x.shape
    importance = data.draw(importances(cols))
    weighting = data.draw(st.sampled_from(["plain", "magnitude", "unbiased"]))
    dtype = data.draw(st.sampled_from(["f32", "f16", "bf16"]))
    source = as_dtype(x, dtype)
    options = {"importance": importance, "weighting": weighting}
    with use_tier("scalar"):
        expected = quantize(as_f32(source, dtype), name, threads=1, **options)
    if FORMATS[name].block_size > 1:
        assert np.isfinite(dequantize(expected, name)).all()
    cut = data.draw(st.integers(0, rows))
    got = assert_same_bytes(source, name, cut=cut, threads=data.draw(st.sampled_from([2, 3])), **options)
    np.testing.assert_array_equal(got, expected)
    for this in TIERS:
        with use_tier(this):
            # a slice of a wider array, from an odd offset
            wide = np.zeros((rows, cols + 5), source.dtype)
            wide[:, 3 : 3 + cols] = source
            out = np.empty((rows, row_bytes(name, cols)), np.uint8)
            encode_into(
                out,
                wide.reshape(-1).view(np.uint8),
                format=name,
                dtype=dtype,
                rows=rows,
                cols=cols,
                offset_elements=3,
                row_stride=cols + 5,
                threads=1,
                **options,
            )
            np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
@settings(max_examples=10, deadline=None)
def test_fp8_with_a_scale_is_its_float32_product(name: str, data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    rows, cols = data.draw(st.integers(1, 20)), 2 * max(32, FORMATS[name].block_size)
    codes = rng.choice(np.array([b for b in range(256) if b & 0x7F != 0x7F], np.uint8), (rows, cols))
    scale = (10.0 ** rng.uniform(-30, 2, rows)).astype(np.float32)
    exponent, mantissa = (codes >> 3 & 15).astype(np.int32), (codes & 7).astype(np.float64)
    magnitude = np.where(exponent == 0, np.ldexp(mantissa, -9), np.ldexp(8 + mantissa, exponent - 10))
    values = np.where(codes & 0x80, -magnitude, magnitude).astype(np.float32) * scale[:, None]
    importance = data.draw(importances(cols))
    with use_tier("scalar"):
        expected = quantize(values, name, importance=importance, threads=1)
    for this in TIERS:
        for source, strides in ((codes, (cols, 1)), (np.ascontiguousarray(codes.T), (1, rows))):
            out = np.empty_like(expected)
            with use_tier(this):
                encode_into(
                    out,
                    source.reshape(-1),
                    format=name,
                    dtype="f8_e4m3",
                    rows=rows,
                    cols=cols,
                    row_stride=strides[0],
                    col_stride=strides[1],
                    importance=importance,
                    scale=scale,
                    threads=1,
                )
            np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("name", NAMES)
def test_many_tasks(name: str) -> None:
    """More rows and columns than one task or one transposed tile holds, and counts that leave lanes empty."""
    x = make_weights((list(ROWS) * 13)[:267], 512, 5, known=ROWS)
    options = {"importance": make_importance("lognormal", 512, 6), "weighting": "magnitude"}
    expected = quantize(x, name, threads=1, **options)
    np.testing.assert_array_equal(quantize(x, name, threads=3, **options), expected)
    np.testing.assert_array_equal(quantize(np.asfortranarray(x), name, threads=2, **options), expected)
    for row in (0, 1, 130, 266):
        np.testing.assert_array_equal(quantize(x[row : row + 1], name, **options)[0], expected[row])
    with use_tier("scalar"):
        np.testing.assert_array_equal(quantize(x[::3], name, **options), expected[::3])
