"""Group quantization: MLX reads the layout, no group is worse than MLX's own, and the bytes depend on nothing else."""

from __future__ import annotations

import os
import re
from typing import Any
from unittest import mock

import ml_dtypes
import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.kernels.matrices import COLUMNS, ROWS, Matrix, column_weights, columns_of, rows_of, trained

from quantkit.errors import NonFiniteError, UsageError
from quantkit.kernels import build_info, dequantize_groups, quantize_groups

BITS = [2, 3, 4, 5, 6, 8]
GROUP_SIZES = [32, 64, 128]
SCALE_DTYPES = ["f32", "f16", "bf16"]
TIERS = build_info()["tiers_supported"]
NUMPY = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16}
MLX = {"f32": mx.float32, "f16": mx.float16, "bf16": mx.bfloat16}
EPSILON = {"f32": 2.0**-24, "f16": 2.0**-11, "bf16": 2.0**-8}
LEAST = {"f32": 2.0**-149, "f16": 2.0**-24, "bf16": 2.0**-133}
Values = npt.NDArray[np.float64]
Groups = tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]


def to_mlx(groups: Groups, scale_dtype: str) -> tuple[mx.array, mx.array, mx.array]:
    packed, *rest = (mx.array(array) for array in groups)
    scales, biases = (array.view(mx.bfloat16) for array in rest) if scale_dtype == "bf16" else rest
    return packed, scales, biases


def decoded_by_mlx(groups: Groups, scale_dtype: str, bits: int, group_size: int) -> Matrix:
    """MLX's dequantization, with the scales widened to float32 first."""
    packed, scales, biases = to_mlx(groups, scale_dtype)
    scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
    return np.array(mx.dequantize(packed, scales, biases, group_size=group_size, bits=bits))


def as_scales(array: npt.NDArray[Any], scale_dtype: str) -> Matrix:
    return (array.view(ml_dtypes.bfloat16) if scale_dtype == "bf16" else array).astype(np.float32)


def codes_of(packed: npt.NDArray[np.uint32], bits: int) -> npt.NDArray[np.int64]:
    """The layout spelled out: one stream of bits a row, the first code lowest."""
    stream = np.unpackbits(packed.view(np.uint8), axis=-1, bitorder="little")
    return (stream.reshape(*packed.shape[:-1], -1, bits).astype(np.int64) << np.arange(bits)).sum(-1)


def group_errors(decoded: Matrix, x: Matrix, importance: Matrix | None, group: int) -> Values:
    """Weighted squared error of each group; the weights are scaled so that the largest is 1."""
    w = np.ones(x.shape[1]) if importance is None else importance.astype(np.float64)
    w = np.broadcast_to(w, x.shape).reshape(-1, group)
    largest = w.max(-1, keepdims=True)
    w = np.where(largest > 0, w / np.where(largest > 0, largest, 1), 1.0)
    return (w * np.square(decoded.astype(np.float64) - x).reshape(-1, group)).sum(-1)


def tier(name: str) -> object:
    return mock.patch.dict(os.environ, QUANTKIT_TIER=name)


@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("bits", BITS)
def test_mlx_reads_what_we_write(bits: int, group_size: int) -> None:
    x = rows_of(list(ROWS), 256, 1)
    for symmetric in (False, True):
        groups = quantize_groups(x, bits, group_size, symmetric)
        packed, scales, biases = to_mlx(groups, "f32")
        ours = dequantize_groups(*groups, bits, group_size)
        np.testing.assert_array_equal(ours, np.array(mx.dequantize(packed, scales, biases, group_size, bits)))
        scale, bias = (np.repeat(array, group_size, axis=-1) for array in groups[1:])
        np.testing.assert_array_equal(ours, scale * codes_of(groups[0], bits).astype(np.float32) + bias)


@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("bits", BITS)
def test_we_read_what_mlx_writes(bits: int, group_size: int) -> None:
    written = mx.quantize(mx.array(rows_of(list(ROWS), 256, 2)), group_size, bits)
    ours = dequantize_groups(*(np.array(array) for array in written), bits=bits, group_size=group_size)
    np.testing.assert_array_equal(ours, np.array(mx.dequantize(*written, group_size, bits)))


@pytest.mark.parametrize("scale_dtype", ["f16", "bf16"])
@pytest.mark.parametrize("bits", BITS)
def test_sixteen_bit_scales(bits: int, scale_dtype: str) -> None:
    """Ours is MLX's on widened scales; MLX in 16 bits rounds the product too, which is the only difference."""
    x = rows_of(["gauss", "heavy", "real", "offset", "outlier", "laplace"], 256, 3).astype(NUMPY[scale_dtype])
    groups = quantize_groups(x, bits, scale_dtype=scale_dtype)
    ours = dequantize_groups(*groups, bits)
    np.testing.assert_array_equal(ours, decoded_by_mlx(groups, scale_dtype, bits, 64))
    scale, bias = (np.repeat(as_scales(array, scale_dtype), 64, axis=-1) for array in groups[1:])
    product = (scale * codes_of(groups[0], bits).astype(np.float32)).astype(NUMPY[scale_dtype]).astype(np.float32)
    packed, scales, biases = to_mlx(groups, scale_dtype)
    theirs = mx.dequantize(packed, scales, biases, 64, bits)
    np.testing.assert_array_equal(
        np.array(theirs.astype(mx.float32)), (product + bias).astype(NUMPY[scale_dtype]).astype(np.float32)
    )


def worst_over_mlx(
    x: Matrix, importance: Matrix | None, scale_dtype: str, bits: int, group_size: int
) -> npt.NDArray[np.float64]:
    """Our error over MLX's, group by group, both as stored and decoded in float32."""
    theirs = [np.array(array) for array in mx.quantize(mx.array(x), group_size, bits)]
    if scale_dtype != "f32":  # x is exact in the type; MLX stores scales of the weights' own
        q, s, b = mx.quantize(mx.array(x).astype(MLX[scale_dtype]), group_size, bits)
        theirs = [np.array(q), np.array(s.astype(mx.float32)), np.array(b.astype(mx.float32))]
    ours = quantize_groups(x, bits, group_size, False, importance, scale_dtype)
    mine, other = (
        group_errors(dequantize_groups(*groups, bits, group_size), x, importance, group_size)
        for groups in (ours, theirs)
    )
    assert np.isfinite(mine).all()
    other = np.where(np.isfinite(other), other, np.inf)  # zero over zero where a scale vanishes in f16
    return mine / np.maximum(other, 1e-300)


@pytest.mark.parametrize("scale_dtype", SCALE_DTYPES)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_no_group_is_worse_than_mlx(scale_dtype: str, data: st.DataObject) -> None:
    kinds = data.draw(st.lists(st.sampled_from(list(ROWS)), min_size=1, max_size=20))
    x = rows_of(kinds, data.draw(st.sampled_from([128, 256])), data.draw(st.integers(0, 2**32 - 1)))
    x = x.astype(NUMPY[scale_dtype]).astype(np.float32)
    x = np.where(np.isfinite(x), x, 0).astype(np.float32)
    importance = data.draw(column_weights(x.shape[1]))
    bits, group_size = data.draw(st.sampled_from(BITS)), data.draw(st.sampled_from(GROUP_SIZES))
    assert worst_over_mlx(x, importance, scale_dtype, bits, group_size).max() <= 1 + 1e-5


@pytest.mark.parametrize("weights", [None, "lognormal"])
@pytest.mark.parametrize("bits", BITS)
def test_less_error_than_mlx_on_trained_weights(bits: int, weights: str | None) -> None:
    x = np.ascontiguousarray(trained()[:256])
    x = x[:, : x.shape[1] // 128 * 128]
    importance = None if weights is None else columns_of(weights, x.shape[1], 4)
    theirs = [np.array(array) for array in mx.quantize(mx.array(x), 64, bits)]
    errors = [
        group_errors(dequantize_groups(*groups, bits), x, importance, 64)
        for groups in (quantize_groups(x, bits, importance=importance), theirs)
    ]
    assert (errors[0] <= errors[1] * (1 + 1e-5)).all()
    assert errors[0].sum() <= (0.9 if weights is None else 0.8) * errors[1].sum()


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("tails", [3, 8, 1000])
def test_the_ends_of_a_whole_row_are_cut_off(tails: int, symmetric: bool) -> None:
    """Thousands of weights in 16 codes: nearly as good as the best of a fine grid, far better than the plain range."""
    x = np.random.default_rng(18).standard_t(tails, (4, 4096)).astype(np.float32)
    least = np.full(4, np.inf)
    for left in np.geomspace(1, 0.05, 100):
        half = np.abs(x).max(-1, keepdims=True) * left
        step = half / 7.5
        for bias in (-half, -8 * step):
            codes = np.clip(np.rint((x - bias) / step), 0, 15)
            least = np.minimum(least, np.square(codes * step + bias - x).sum(-1))
    found = np.square(dequantize_groups(*quantize_groups(x, 4, -1, symmetric), 4, -1) - x).sum(-1)
    assert (found <= 1.05 * least).all()


@pytest.mark.parametrize("group_size", [64, -1])
@pytest.mark.parametrize("scale_dtype", SCALE_DTYPES)
@pytest.mark.parametrize("bits", BITS)
def test_no_symmetric_group_is_worse_than_the_plain_one(bits: int, scale_dtype: str, group_size: int) -> None:
    """An outlier, or an offset: trials that cut it off must not pass for good ones."""
    x = rows_of(["outlier", "offset", "gauss", "heavy"] * 8, 1024, 19)
    group = 1024 if group_size == -1 else group_size
    groups = x.reshape(-1, group).astype(np.float64)
    end = np.take_along_axis(groups, np.abs(groups).argmax(-1, keepdims=True), -1)
    step = (-end / 2 ** (bits - 1)).astype(NUMPY[scale_dtype]).astype(np.float64)
    codes = np.clip(np.rint(groups / step), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    plain = np.square(codes * step - groups).sum(-1)
    found = quantize_groups(x, bits, group_size, True, scale_dtype=scale_dtype)
    assert (group_errors(dequantize_groups(*found, bits, group_size), x, None, group) <= plain * (1 + 1e-3)).all()


def bounds(x: Values, bits: int, symmetric: bool, scale_dtype: str) -> Values:
    """What the plain choice may miss: half a step (a symmetric group: one), and the rounding of what is stored."""

    def miss(value: Values) -> Values:
        return np.maximum(np.abs(value) * EPSILON[scale_dtype] * 2, LEAST[scale_dtype])

    if symmetric:
        step = np.abs(x).max(-1, keepdims=True) / 2 ** (bits - 1)
        return step + 2 ** (bits - 1) * miss(step)
    low, top = x.min(-1, keepdims=True), 2**bits - 1
    step = (x.max(-1, keepdims=True) - low) / top
    return step / 2 + top * miss(step) + 2 * miss(low) + np.abs(x).max(-1, keepdims=True) * 2.0**-22


@pytest.mark.parametrize("group_size", [32, 128, -1])
@pytest.mark.parametrize("scale_dtype", SCALE_DTYPES)
@pytest.mark.parametrize("symmetric", [False, True])
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_bound(symmetric: bool, scale_dtype: str, group_size: int, data: st.DataObject) -> None:
    """w_i e_i^2 <= sum_j w_j b_j^2, where b_j is what the layout lets the plain choice miss."""
    kinds = data.draw(st.lists(st.sampled_from(list(ROWS)), min_size=1, max_size=20))
    x = rows_of(kinds, 256, data.draw(st.integers(0, 2**32 - 1)))
    importance = data.draw(column_weights(256))
    bits = data.draw(st.sampled_from(BITS))
    group = 256 if group_size == -1 else group_size
    groups = quantize_groups(x, bits, group_size, symmetric, importance, scale_dtype)
    e = dequantize_groups(*groups, bits, group_size).astype(np.float64) - x
    assert np.isfinite(e).all()
    w = np.ones(256) if importance is None else importance.astype(np.float64)
    w = np.broadcast_to(w, x.shape).reshape(-1, group)
    largest = w.max(-1, keepdims=True)
    w = np.where(largest > 0, w / np.where(largest > 0, largest, 1), 1.0)
    b = bounds(x.astype(np.float64).reshape(-1, group), bits, symmetric, scale_dtype)
    allowed = (w * b**2).sum(-1, keepdims=True)
    assert (w * e.reshape(-1, group) ** 2 <= allowed * (1 + 1e-3)).all()


def same(a: Groups, b: Groups) -> None:
    for ours, theirs in zip(a, b, strict=True):
        np.testing.assert_array_equal(*(np.ascontiguousarray(v).view(np.uint8) for v in (ours, theirs)))


@given(data=st.data())
@settings(max_examples=50, deadline=None)
def test_tier_threads_place_and_type_do_not_show(data: st.DataObject) -> None:
    kinds = data.draw(st.lists(st.sampled_from(list(ROWS)), min_size=1, max_size=37))
    cols = data.draw(st.sampled_from([128, 384]))
    dtype = data.draw(st.sampled_from(SCALE_DTYPES))
    x = rows_of(kinds, cols, data.draw(st.integers(0, 2**32 - 1)))
    source = x.astype(NUMPY[dtype])
    source = np.where(np.isfinite(source.astype(np.float32)), source, np.zeros(1, source.dtype)).astype(source.dtype)
    options = {
        "bits": data.draw(st.sampled_from(BITS)),
        "group_size": data.draw(st.sampled_from([*GROUP_SIZES, -1])),
        "symmetric": data.draw(st.booleans()),
        "scale_dtype": data.draw(st.sampled_from(SCALE_DTYPES)),
        "importance": data.draw(column_weights(cols)),
    }
    if options["scale_dtype"] == "f16":
        source = np.clip(source.astype(np.float32), -65000, 65000).astype(source.dtype)
    with tier("scalar"):
        expected = quantize_groups(source.astype(np.float32), threads=1, **options)
    cut, threads = data.draw(st.integers(0, len(kinds))), data.draw(st.sampled_from([1, 2, 3]))
    for this in TIERS:
        with tier(this):
            same(quantize_groups(source, threads=threads, **options), expected)
            same(quantize_groups(np.asfortranarray(source), threads=threads, **options), expected)
            same(quantize_groups(np.concatenate([source, source], 1)[:, :cols], **options), expected)
            halves = [quantize_groups(part, threads=1, **options) for part in (source[:cut], source[cut:])]
            same(tuple(np.concatenate(parts) for parts in zip(*halves, strict=True)), expected)


@pytest.mark.parametrize("group_size", [64, -1])
def test_many_tasks(group_size: int) -> None:
    x = rows_of([kind for _ in range(13) for kind in ROWS][:267], 1024, 5)
    importance = columns_of("lognormal", 1024, 6)
    expected = quantize_groups(x, 4, group_size, importance=importance, threads=1)
    for this in TIERS:
        with tier(this):
            same(quantize_groups(x, 4, group_size, importance=importance, threads=3), expected)
            same(quantize_groups(np.asfortranarray(x), 4, group_size, importance=importance, threads=2), expected)
            decoded = dequantize_groups(*expected, 4, group_size, threads=2)
            np.testing.assert_array_equal(decoded, dequantize_groups(*expected, 4, group_size, threads=1))


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", BITS)
def test_importance_is_honoured(bits: int, symmetric: bool) -> None:
    x = rows_of(["gauss", "laplace", "real"] * 20, 512, 7)
    importance = columns_of("lognormal", 512, 8)
    errors = [
        group_errors(dequantize_groups(*quantize_groups(x, bits, 64, symmetric, given), bits), x, importance, 64)
        for given in (importance, None)
    ]
    assert errors[0].sum() < 0.95 * errors[1].sum()


def test_importance_has_no_unit() -> None:
    x, importance = rows_of(["gauss"] * 9, 256, 9), columns_of("lognormal", 256, 10)
    same(quantize_groups(x, importance=importance), quantize_groups(x, importance=importance * np.float32(2.0**-90)))
    same(quantize_groups(x, importance=np.zeros(256)), quantize_groups(x, importance=np.ones(256)))


def test_experts_are_matrices_with_their_own_importance() -> None:
    x = rows_of(["gauss", "laplace", "heavy", "real"] * 3, 256, 11).reshape(3, 4, 256)
    importance = np.stack([columns_of("lognormal", 256, seed) for seed in range(3)])
    for given_importance in (None, importance):
        whole = quantize_groups(x, 8, 32, importance=given_importance, scale_dtype="bf16")
        assert [array.shape for array in whole] == [(3, 4, 64), (3, 4, 8), (3, 4, 8)]
        for expert in range(3):
            columns = None if given_importance is None else importance[expert]
            same(
                tuple(array[expert] for array in whole),
                quantize_groups(x[expert], 8, 32, importance=columns, scale_dtype="bf16"),
            )
        decoded = dequantize_groups(*whole, 8, 32)
        np.testing.assert_array_equal(decoded[1], dequantize_groups(*(array[1] for array in whole), 8, 32))


@pytest.mark.parametrize("scale_dtype", SCALE_DTYPES)
@pytest.mark.parametrize("bits", BITS)
def test_a_symmetric_group_is_an_affine_one(bits: int, scale_dtype: str) -> None:
    x = rows_of(list(ROWS), 128, 12)
    _, scales, biases = quantize_groups(x, bits, 64, True, scale_dtype=scale_dtype)
    scale = as_scales(scales, scale_dtype)
    np.testing.assert_array_equal(as_scales(biases, scale_dtype), -(2.0 ** (bits - 1)) * scale)


@pytest.mark.parametrize("scale_dtype", SCALE_DTYPES)
def test_codes_are_chosen_for_the_scales_as_rounded(scale_dtype: str) -> None:
    """Each code is the nearest under the scale and bias that are stored, but for ties."""
    x = rows_of(["gauss", "heavy", "laplace", "real", "outlier"] * 4, 256, 13)
    for bits in BITS:
        packed, scales, biases = quantize_groups(x, bits, scale_dtype=scale_dtype)
        scale, bias = (np.repeat(as_scales(v, scale_dtype).astype(np.float64), 64, -1) for v in (scales, biases))
        exact = np.clip((x - bias) / scale, 0, 2**bits - 1)
        assert np.abs(codes_of(packed, bits) - exact).max() <= 0.5 + 1e-3


@pytest.mark.parametrize("symmetric", [False, True])
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_a_power_of_two_scales_everything(symmetric: bool, data: st.DataObject) -> None:
    kinds = data.draw(
        st.lists(st.sampled_from(["gauss", "heavy", "laplace", "offset", "ties", "two values"]), min_size=1)
    )
    x = rows_of(kinds, 128, data.draw(st.integers(0, 2**32 - 1)))
    factor = np.float32(2.0 ** data.draw(st.integers(0, 60)))  # MLX's floor under scales, 1e-7, has no such symmetry
    bits, scale_dtype = data.draw(st.sampled_from(BITS)), data.draw(st.sampled_from(["f32", "bf16"]))
    small, large = (quantize_groups(v, bits, 64, symmetric, scale_dtype=scale_dtype) for v in (x, x * factor))
    np.testing.assert_array_equal(small[0], large[0])
    for a, b in zip(small[1:], large[1:], strict=True):
        np.testing.assert_array_equal(as_scales(a, scale_dtype) * factor, as_scales(b, scale_dtype))


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_groups_stand_alone(data: st.DataObject) -> None:
    """Groups in another order give the same groups in that order."""
    x = rows_of([kind for kind in ROWS if kind != "largest"], 256, data.draw(st.integers(0, 2**32 - 1)))
    order = np.array(data.draw(st.permutations(range(4))))
    columns = (order[:, None] * 64 + np.arange(64)).reshape(-1)
    importance = data.draw(column_weights(256))
    bits = data.draw(st.sampled_from([4, 8]))
    packed, scales, biases = quantize_groups(x, bits, importance=importance)
    moved = quantize_groups(x[:, columns], bits, importance=None if importance is None else importance[columns])
    by_group = packed.reshape(len(x), 4, -1)[:, order].reshape(packed.shape)
    same(moved, (by_group, scales[:, order], biases[:, order]))


@pytest.mark.parametrize("group_size", [32, 64, 128, -1])
@pytest.mark.parametrize("bits", BITS)
def test_what_lies_on_a_lattice_stays_there(bits: int, group_size: int) -> None:
    rng = np.random.default_rng(14)
    codes = rng.integers(0, 2**bits, (16, 256))
    codes[:, ::32], codes[:, 1::32] = 0, 2**bits - 1
    x = (codes * 0.25 - 2.0).astype(np.float32)
    groups = quantize_groups(x, bits, group_size)
    np.testing.assert_allclose(dequantize_groups(*groups, bits, group_size), x, rtol=0, atol=2e-6 * 2**bits)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
def test_decoding_to_another_float(dtype: Any) -> None:
    groups = quantize_groups(rows_of(["gauss", "real"], 128, 15))
    decoded = dequantize_groups(*groups, dtype=dtype)
    assert decoded.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(decoded, dequantize_groups(*groups).astype(dtype))


WEIGHTS = np.ones((3, 256), np.float32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 1}, "bits is 1"),
        ({"bits": 7}, "bits is 7"),
        ({"bits": True}, "bits is True"),
        ({"bits": "4"}, "bits is '4'"),
        ({"bits": 4.0}, "bits is 4.0"),
        ({"group_size": 64.0}, "group_size is 64.0"),
        ({"group_size": 16}, "group_size is 16"),
        ({"group_size": 0}, "group_size is 0"),
        ({"group_size": None}, "group_size is None"),
        ({"scale_dtype": "f64"}, "unknown scale_dtype 'f64'"),
        ({"threads": -1}, "threads is -1"),
        ({"importance": np.ones(255)}, "importance has shape"),
        ({"importance": -np.ones(256)}, "importance -1.0 at column 0"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        quantize_groups(WEIGHTS, **options)


@pytest.mark.parametrize(
    ("weights", "group_size", "message"),
    [
        (np.ones((2, 96), np.float32), 64, "a row of 96 weights is not a whole number of groups of 64"),
        (np.ones((2, 40), np.float32), -1, "a row of 40 weights is not a whole number of 32 weights"),
        (np.ones((2, 0), np.float32), -1, "a row of 0 weights"),
        (np.ones(64, np.float32), 64, "not of shape (64,)"),
        (np.ones((2, 2, 2, 64), np.float32), 64, "not of shape (2, 2, 2, 64)"),
        (np.ones((2, 64), np.int32), 64, "dtype int32"),
        (np.ones((2, 64), complex), 64, "dtype complex128"),
    ],
)
def test_weights_that_do_not_fit(weights: npt.NDArray[Any], group_size: int, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        quantize_groups(weights, group_size=group_size)


def test_importance_of_experts_that_does_not_fit() -> None:
    with pytest.raises(UsageError, match=re.escape("(experts, cols) of these weights is (2, 64)")):
        quantize_groups(np.ones((2, 3, 64), np.float32), importance=np.ones(64))


def test_what_is_read_back_has_to_fit() -> None:
    packed, scales, biases = quantize_groups(WEIGHTS)
    for bad in (
        (packed.view(np.int32), scales, biases),
        (packed, scales[:, :3], biases[:, :3]),
        (packed, scales, biases[:2]),
        (packed, scales, biases.astype(np.float16)),
        (packed, scales.astype(np.int32), biases),
        (packed[:, :7], scales, biases),
    ):
        with pytest.raises(UsageError):
            dequantize_groups(*bad)
    with pytest.raises(UsageError, match="no whole number of 3-bit codes"):
        dequantize_groups(packed, scales, biases, 3)
    with pytest.raises(UsageError, match="cannot be decoded to dtype"):
        dequantize_groups(packed, scales, biases, dtype=np.int8)


@pytest.mark.parametrize("this", TIERS)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e38])
def test_what_cannot_be_stored_is_named(value: float, transposed: bool, this: str) -> None:
    x = np.ones((2, 19, 128), np.float32)
    x[1, 17, 100] = value
    for group_size in (32, -1):
        with (
            tier(this),
            pytest.raises(NonFiniteError, match=r"expert 1: weight .* at row 17, column 100 is ") as caught,
        ):
            quantize_groups(x if not transposed else x.swapaxes(1, 2).copy().swapaxes(1, 2), group_size=group_size)
        assert (caught.value.row, caught.value.col) == (17, 100)


def test_the_range_of_f16_scales() -> None:
    x = np.zeros((1, 64), np.float32)
    x[0, :2] = 65504, -65504
    for bits in BITS:
        for symmetric in (False, True):
            groups = quantize_groups(x, bits, 64, symmetric, scale_dtype="f16")
            assert all(np.isfinite(array.astype(np.float32)).all() for array in groups[1:])
            assert np.isfinite(dequantize_groups(*groups, bits)).all()
    x[0, 9] = 65536
    with pytest.raises(NonFiniteError, match="largest magnitude with f16 scales, 65504"):
        quantize_groups(x, scale_dtype="f16")


@pytest.mark.parametrize("kind", list(COLUMNS))
def test_every_kind_of_importance(kind: str) -> None:
    x = rows_of(list(ROWS), 256, 16)
    for bits in (2, 4, 8):
        assert worst_over_mlx(x, columns_of(kind, 256, 17), "f32", bits, 64).max() <= 1 + 1e-5
