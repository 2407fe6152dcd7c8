"""Products with packed weights against float64, within the bound that is derived for float accumulation."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.kernels.blas import numpy_blas_threads
from tests.kernels.fast_bound import fast_bound, operand
from tests.kernels.matrices import Matrix, rows_of

from quantkit.errors import NonFiniteError, UsageError
from quantkit.kernels import FORMATS, _machine, build_info, dequantize, matmul, matmul_experts, quantize
from quantkit.kernels.matmul import Mode
from quantkit.kernels.panel import BlockWeights, InputMajorWeights, multiply

TIERS = build_info()["tiers_supported"]
NAMES = list(FORMATS)
KINDS = ["gauss", "heavy", "outlier", "blocks", "range", "zero", "subnormal", "vanishing", "huge", "real"]


def gauss(shape: tuple[int, ...], seed: int = 1) -> Matrix:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def weights_of(name: str, rows: int, cols: int, seed: int = 2) -> tuple[npt.NDArray[np.uint8], Matrix]:
    """Packed, and what they decode to."""
    packed = quantize(gauss((rows, cols), seed), name)
    return packed, dequantize(packed, name)


def assert_within_bound(y: Matrix, x: Matrix, w: Matrix, roundings: int) -> None:
    """|y - x Wᵀ| <= gamma(roundings) |x| |W|ᵀ + cols 2**-149, element by element; the product itself in float64, whose
    own error is 2**-29 of the bound."""
    exact = x.astype(np.float64) @ w.T.astype(np.float64)
    unit = roundings * 2.0**-24
    bound = unit / (1 - unit) * (np.abs(x).astype(np.float64) @ np.abs(w).T.astype(np.float64))
    bound = bound * (1 + 2.0**-20) + x.shape[-1] * 2.0**-149
    assert y.dtype == np.float32
    assert y.shape == exact.shape
    over = np.abs(y.astype(np.float64) - exact) - bound
    assert (over <= 0).all(), (
        f"worst at {np.unravel_index(np.argmax(over), over.shape)}, {over.max():g} beyond the bound"
    )


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_exact_stays_within_its_bound(name: str, tier: str, data: st.DataObject) -> None:
    size = FORMATS[name].block_size
    cols = data.draw(st.integers(1, 3)) * size if size > 1 else data.draw(st.integers(1, 300))
    seed = data.draw(st.integers(0, 2**32 - 1))
    kinds = st.lists(st.sampled_from(KINDS), min_size=1, max_size=9)
    w = rows_of(data.draw(kinds), cols, seed)
    x = rows_of(data.draw(kinds), cols, seed + 1)
    packed = quantize(w, name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QUANTKIT_TIER", tier)
        y = matmul(x, packed, name, threads=data.draw(st.integers(0, 3)))
    assert_within_bound(y, x, dequantize(packed, name), cols)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 5, 7, 8, 9, 17, 130])
def test_any_number_of_rows(name: str, n: int) -> None:
    packed, w = weights_of(name, 37, 512)
    x = gauss((n, 512))
    assert_within_bound(matmul(x, packed, name), x, w, 512)


@pytest.mark.parametrize("n", [1, 9, 130])
def test_weights_larger_than_the_scratch(n: int) -> None:
    """Several blocks of rows, the last one short; and rows each of which is larger than what fits."""
    for rows, cols in [(643, 8192), (19, 1 << 17)]:
        packed, w = weights_of("q8_0", rows, cols)
        x = gauss((n, cols))
        assert_within_bound(matmul(x, packed, "q8_0"), x, w, cols)


@pytest.mark.parametrize("name", ["f32", "bf16", "q4_k"])
def test_panels_in_floats_do_not_depend_on_what_lies_beside(name: str) -> None:
    """Rows of weights and of x cut anywhere, any number of threads, places that lie apart, any tier. Where one leaves
    the work to BLAS nothing is done."""
    packed, w = weights_of(name, 523, 768)
    x = gauss((1100, 768))
    first = None
    for tier in TIERS:
        whole = np.full((1100, 523), np.nan, np.float32)
        is_finite = _machine.matmul_panels(tier, name, x, packed, whole, 1)
        if is_finite is None:
            assert np.isnan(whole).all()
            continue
        assert is_finite
        # A product is rounded in each fused sum from its own on, of 128 columns; then come the sums over six of those,
        # of which the first is exact (added to 0). So it is 128 + 6 - 1, and never more than gamma(cols).
        assert_within_bound(whole, x, w, 128 + 768 // 128 - 1)
        first = whole if first is None else first
        np.testing.assert_array_equal(whole, first)
        threaded = np.empty((1100, 600), np.float32)[:, 5:528]
        assert _machine.matmul_panels(tier, name, x, packed, threaded, 3)
        np.testing.assert_array_equal(threaded, whole)
        for rows, outputs in ((slice(509, 518), slice(40, 101)), (slice(0, 1), slice(522, 523))):
            part = np.empty((rows.stop - rows.start, outputs.stop - outputs.start), np.float32)
            apart = np.pad(packed[outputs], ((0, 0), (0, 8)))[:, :-8]
            assert _machine.matmul_panels(tier, name, x[rows], apart, part, 2)
            np.testing.assert_array_equal(part, whole[rows, outputs])


def test_panels_in_floats_refuse_what_does_not_fit() -> None:
    packed, _ = weights_of("q4_k", 48, 512)
    x, out = gauss((10, 512)), np.empty((10, 48), np.float32)
    for tier in TIERS:
        if _machine.matmul_panels(tier, "q4_k", x, packed, out, 1) is None:
            continue
        for wrong in (
            (x[:9], packed, out), (x, packed[:47], out), (x[:, :256], packed, out), (x, packed[:, :-1], out),
            (x, packed, out.T), (np.ones((10, 500), np.float32), packed, out),
        ):  # fmt: skip
            with pytest.raises(ValueError, match=r"row|cols|block"):
                _machine.matmul_panels(tier, "q4_k", *wrong, 1)


@pytest.mark.parametrize("name", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("n", [3, 9, 700])
def test_input_major_weights_give_the_same_bits(name: str, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One half of wider lines, as gate and up are stored; rows and columns that fill neither panels nor vectors."""
    packed, _ = weights_of(name, 523, 396)
    x, format = gauss((n, 396)), FORMATS[name]
    item = format.block_bytes
    lines = np.zeros((396, 600 * item), np.uint8)
    other = lines[:, 70 * item : 593 * item]
    other[:] = packed.reshape(523, 396, item).swapaxes(0, 1).reshape(396, -1)
    for tier in TIERS:
        monkeypatch.setenv("QUANTKIT_TIER", tier)
        wanted, found = np.empty((n, 523), np.float32), np.empty((n, 600), np.float32)[:, 5:528]
        multiply(x, BlockWeights(packed, format), wanted, int8=False, threads=1)
        threads = 1 if tier == "scalar" else 2  # BLAS, which has the plain tier's products, may add up otherwise on two
        multiply(x, InputMajorWeights(other, format), found, int8=False, threads=threads)
        np.testing.assert_array_equal(found, wanted)
    other[7, 300 * item : 301 * item] = 0xFF  # NaN
    with pytest.raises(NonFiniteError, match="weight nan at row 300, column 7 is not finite"):
        multiply(x, InputMajorWeights(other, format), found, int8=False, threads=1)


def test_one_dimension_gives_one() -> None:
    packed, _ = weights_of("q4_k", 5, 256)
    x = gauss((1, 256))
    y = matmul(x[0], packed, "q4_k")
    assert y.shape == (5,)
    np.testing.assert_array_equal(y, matmul(x, packed, "q4_k")[0])


@pytest.mark.parametrize("n", [1, 130])
def test_no_rows_and_no_columns(n: int) -> None:
    assert matmul(gauss((n, 256)), np.empty((0, 144), np.uint8), "q4_k").shape == (n, 0)
    np.testing.assert_array_equal(matmul(gauss((n, 0)), np.empty((3, 0), np.uint8), "q4_k"), np.zeros((n, 3)))


@pytest.mark.parametrize("n", [2, 130])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.uint16, np.float64])
def test_activations_of_every_dtype_are_read_as_they_are(dtype: Any, n: int) -> None:
    packed, w = weights_of("q6_k", 21, 512)
    x = gauss((n, 512)).astype(ml_dtypes.bfloat16 if dtype is np.uint16 else dtype)
    given = x.view(np.uint16) if dtype is np.uint16 else x
    wide = x.astype(np.float32)
    np.testing.assert_array_equal(matmul(given, packed, "q6_k"), matmul(wide, packed, "q6_k"))
    assert_within_bound(matmul(given, packed, "q6_k"), wide, w, 512)


@pytest.mark.parametrize("mode", ["exact", "fast"])
@pytest.mark.parametrize("n", [6, 30])
def test_strides_do_not_matter(n: int, mode: Mode) -> None:
    packed, _ = weights_of("q5_0", 16, 64)
    x = gauss((n, 64))
    expected = matmul(x, packed, "q5_0", mode=mode)
    for same in (np.asfortranarray(x), np.repeat(x, 2, axis=1)[:, ::2], x[::-1].copy()[::-1]):
        np.testing.assert_array_equal(matmul(same, packed, "q5_0", mode=mode), expected)
    for same in (
        np.repeat(packed, 2, axis=0)[::2],
        np.asfortranarray(packed),
        np.pad(packed, ((0, 0), (0, 9)))[:, :-9],
    ):
        np.testing.assert_array_equal(matmul(x, same, "q5_0", mode=mode), expected)


@pytest.mark.parametrize("name", NAMES)
def test_scaling_activations_by_a_power_of_two_scales_the_result(name: str) -> None:
    packed, _ = weights_of(name, 19, 256)
    x = gauss((5, 256))
    np.testing.assert_array_equal(
        matmul(x * np.float32(2**40), packed, name), matmul(x, packed, name) * np.float32(2**40)
    )


def test_memory_stays_small() -> None:
    """Peak of the process's allocations in numpy: scratch and result, a sixth of the weights as float32."""
    import tracemalloc

    packed = np.zeros((8192, 8192 // 32 * 18), np.uint8)
    x = gauss((130, 8192))
    tracemalloc.start()
    matmul(x, packed, "q4_0")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8192 * 8192 * 4 / 6


@pytest.mark.parametrize("n", [9, 130])
def test_threads_bound_those_of_blas(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    before, seen = numpy_blas_threads(), set[int]()
    multiply = np.matmul

    def spy(*args: Any, **options: Any) -> Any:
        seen.update(numpy_blas_threads())
        return multiply(*args, **options)

    monkeypatch.setattr(np, "matmul", spy)
    monkeypatch.setenv("QUANTKIT_TIER", "scalar")  # which leaves it to BLAS
    packed, _ = weights_of("q4_0", 40, 64)
    matmul(gauss((n, 64)), packed, "q4_0", threads=1)
    assert seen == {1}
    assert numpy_blas_threads() == before


def test_wrong_usage_is_named() -> None:
    packed, _ = weights_of("q4_k", 4, 256)
    x = gauss((2, 256))
    for wrong, words in [
        (lambda: matmul(gauss((2, 255)), packed, "q4_k"), r"\(n, 256\).*\(2, 255\)"),
        (lambda: matmul(gauss((1, 2, 256)), packed, "q4_k"), r"\(1, 2, 256\)"),
        (lambda: matmul(np.float32(1), packed, "q4_k"), "shape"),
        (lambda: matmul(np.ones((2, 256), np.int32), packed, "q4_k"), "int32"),
        (lambda: matmul(np.ones((2, 256), complex), packed, "q4_k"), "complex"),
        (lambda: matmul(x, packed[:, :-1], "q4_k"), "144-byte blocks"),
        (lambda: matmul(x, packed[0], "q4_k"), r"\(144,\)"),
        (lambda: matmul(x, packed[None], "q4_k"), r"\(1, 4, 144\)"),
        (lambda: matmul(x, packed.astype(np.int8), "q4_k"), "int8"),
        (lambda: matmul(x, packed, "q4k"), "Did you mean"),
        (lambda: matmul(x, packed, "q4_k", mode="quick"), "exact"),  # type: ignore[arg-type]
        (lambda: matmul(x, packed, "q4_k", threads=-1), "threads"),
    ]:
        with pytest.raises(UsageError, match=words):
            wrong()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39])
def test_an_activation_that_is_not_finite_is_named(value: float) -> None:
    packed, _ = weights_of("q4_k", 4, 256)
    x = gauss((3, 256)).astype(np.float64)
    x[1, 77] = value
    with pytest.raises(NonFiniteError, match="row 1, column 77"):
        matmul(x, packed, "q4_k")


@pytest.mark.parametrize("n", [1, 130])
def test_a_weight_that_is_not_finite_is_named(n: int) -> None:
    packed, _ = weights_of("q8_0", 300, 64)
    packed[123, 34:36] = np.array([0x7E00], "<u2").view(np.uint8)  # the second scale: columns 32 .. 63
    with pytest.raises(NonFiniteError, match="row 123, column 32"):
        matmul(gauss((n, 64)), packed, "q8_0")


@pytest.mark.parametrize("n", [1, 130])
def test_a_result_beyond_float32_is_named(n: int) -> None:
    w = np.ones((3, 64), np.float32)
    w[1] = 3e38
    packed = quantize(w, "f32")
    with pytest.raises(NonFiniteError, match="row 1 of the weights is beyond float32"):
        matmul(np.full((n, 64), 2, np.float32), packed, "f32")


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_experts_within_the_bound(name: str, scaled: bool) -> None:
    """Expert 1 and the last have no rows; the others' lie mixed."""
    rng = np.random.default_rng(5)
    w = gauss((5, 9, 256))
    packed = quantize(w, name)
    decoded = dequantize(packed, name)
    ids = rng.choice([0, 2, 3], 40)
    x = gauss((40, 256), 3)
    scale = rng.uniform(0, 1, 40).astype(np.float32) if scaled else None
    y = matmul_experts(x, packed, name, ids, scale=scale)
    assert y.shape == (40, 9)
    wide = x.astype(np.float64) * (1 if scale is None else scale[:, None].astype(np.float64))
    for i, expert in enumerate(ids):
        assert_within_bound(y[i : i + 1], wide[i : i + 1], decoded[expert], 257)


def test_experts_are_matmuls_of_their_own_rows() -> None:
    """A row's result is that of its expert's panel: all rows in one expert is one matmul, bit for bit."""
    packed = quantize(gauss((3, 8, 512)), "q4_k")
    x = gauss((140, 512), 4)
    np.testing.assert_array_equal(matmul_experts(x, packed, "q4_k", np.full(140, 2)), matmul(x, packed[2], "q4_k"))
    one = matmul_experts(x[:1].astype(np.float16), packed, "q4_k", np.array([1], np.uint8), scale=np.array([0.5]))
    np.testing.assert_array_equal(one, matmul(x[:1].astype(np.float16), packed[1], "q4_k") / 2)


def test_experts_without_rows() -> None:
    packed = quantize(gauss((3, 8, 256)), "q4_k")
    assert matmul_experts(gauss((0, 256)), packed, "q4_k", np.empty(0, int)).shape == (0, 8)
    assert matmul_experts(gauss((0, 256)), packed[:0], "q4_k", np.empty(0, int)).shape == (0, 8)


def test_wrong_usage_of_experts_is_named() -> None:
    packed = quantize(gauss((3, 8, 256)), "q4_k")
    x, ids = gauss((4, 256)), np.array([0, 1, 2, 0])
    for wrong, words in [
        (lambda: matmul_experts(x, packed, "q4_k", np.array([0, 1, 3, 0])), "expert_ids: 3 at row 2"),
        (lambda: matmul_experts(x, packed, "q4_k", np.array([0, -1, 2, 0])), "expert_ids: -1 at row 1"),
        (lambda: matmul_experts(x, packed, "q4_k", ids[:3]), r"\(4,\)"),
        (lambda: matmul_experts(x, packed, "q4_k", ids.astype(np.float32)), "float32"),
        (lambda: matmul_experts(x[0], packed, "q4_k", ids[:1]), r"\(256,\)"),
        (lambda: matmul_experts(x, packed[0], "q4_k", ids), r"\(8, 144\)"),
        (lambda: matmul_experts(x, packed, "q4_k", ids, scale=np.ones(3)), "scale"),
        (lambda: matmul_experts(x, packed, "q4_k", ids, scale=np.ones(4, complex)), "complex"),
        (lambda: matmul_experts(x, packed, "q4_k", ids, mode="quick"), "exact"),  # type: ignore[arg-type]
    ]:
        with pytest.raises(UsageError, match=words):
            wrong()
    with pytest.raises(NonFiniteError, match=r"scale: nan at .*2"):
        matmul_experts(x, packed, "q4_k", ids, scale=np.array([1, 1, np.nan, 1]))
    with pytest.raises(NonFiniteError, match="times scale: inf at row 2"):
        matmul_experts(x, packed, "q4_k", ids, scale=np.array([1, 1, 3e38, 1]) * 1.1)


def test_a_weight_that_is_not_finite_is_named_with_its_expert() -> None:
    packed = quantize(gauss((3, 8, 64)), "q8_0")
    packed[1, 6, 0:2] = np.array([0x7C00], "<u2").view(np.uint8)
    with pytest.raises(NonFiniteError, match=r"expert 1: weight .* row 6, column 0"):
        matmul_experts(gauss((4, 64)), packed, "q8_0", np.array([0, 1, 1, 0]))


BLOCKS = [name for name in NAMES if FORMATS[name].block_size > 1]


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("n", [0, 1, 3, 4, 33])
def test_fast_stays_within_its_bound(name: str, n: int, tier: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANTKIT_TIER", tier)
    packed, w = weights_of(name, 37, 512)
    x = gauss((n, 512))
    y = matmul(x, packed, name, mode="fast", threads=2)
    assert y.shape == (n, 37)
    assert y.dtype == np.float32
    error = np.abs(y - x.astype(np.float64) @ w.T.astype(np.float64))
    assert (error <= fast_bound(x, operand(packed, name))).all()
    assert n == 0 or error.max() > 1e-4, "as good as exact: not the int8 product"


@pytest.mark.parametrize("name", BLOCKS)
def test_fast_experts_are_fast_products_of_their_own_rows(name: str) -> None:
    packed = quantize(gauss((5, 9, 256)), name)
    x = gauss((40, 256), 3).astype(np.float16)
    ids = np.random.default_rng(5).choice([0, 2, 3], 40)
    scale = np.random.default_rng(6).uniform(0, 1, 40).astype(np.float32)
    y = matmul_experts(x, packed, name, ids, scale=scale, mode="fast")
    for expert in range(5):
        mine = ids == expert
        alone = matmul(x[mine] * scale[mine, None], packed[expert], name, mode="fast")
        np.testing.assert_array_equal(y[mine], alone)
    apart = np.repeat(packed, 2, axis=0)[::2]
    np.testing.assert_array_equal(matmul_experts(x, apart, name, ids, scale=scale, mode="fast"), y)


def test_fast_of_nothing() -> None:
    packed = quantize(gauss((3, 8, 256)), "q4_k")
    assert matmul_experts(gauss((0, 256)), packed, "q4_k", np.empty(0, int), mode="fast").shape == (0, 8)
    assert matmul(gauss((2, 256)), packed[0, :0], "q4_k", mode="fast").shape == (2, 0)
    np.testing.assert_array_equal(matmul(gauss((2, 0)), packed[0, :, :0], "q4_k", mode="fast"), np.zeros((2, 8)))


@pytest.mark.parametrize("name", ["f32", "f16", "bf16"])
def test_fast_has_no_floats(name: str) -> None:
    packed, _ = weights_of(name, 4, 64)
    with pytest.raises(UsageError, match="no integer codes"):
        matmul(gauss((2, 64)), packed, name, mode="fast")


def test_fast_names_what_is_not_finite() -> None:
    packed = quantize(gauss((3, 8, 64)), "q8_0")
    x = gauss((4, 64))
    bad = x.copy()
    bad[2, 33] = np.nan
    with pytest.raises(NonFiniteError, match="nan at row 2, column 33"):
        matmul(bad, packed[0], "q8_0", mode="fast")
    packed[1, 6, 34:36] = np.array([0x7C00], "<u2").view(np.uint8)
    with pytest.raises(NonFiniteError, match="row 6, column 32"):
        matmul(x, packed[1], "q8_0", mode="fast")
    with pytest.raises(NonFiniteError, match=r"expert 1: weight .* row 6, column 32"):
        matmul_experts(x, packed, "q8_0", np.array([0, 1, 1, 0]), mode="fast")


@pytest.mark.parametrize("name", NAMES)
def test_few_rows_are_the_same_on_every_tier_and_for_any_number_of_threads(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for cols in (256, 2304) if FORMATS[name].block_size > 1 else (1, 31, 1025):
        packed, _ = weights_of(name, 71, cols)
        x = gauss((5, cols))
        results = []
        for tier in TIERS:
            monkeypatch.setenv("QUANTKIT_TIER", tier)
            results += [matmul(x, packed, name, threads=threads) for threads in (1, 3)]
            results.append(np.concatenate([matmul(x[:2], packed, name), matmul(x[2:], packed, name)]))
        for y in results:
            np.testing.assert_array_equal(y.view(np.uint32), results[0].view(np.uint32))


@pytest.mark.parametrize("mode", ["exact", "fast"])
@pytest.mark.parametrize("shape", [(512,), (1, 512), (40, 512)])
def test_a_result_goes_where_it_is_wanted(shape: tuple[int, ...], mode: Mode) -> None:
    packed, _ = weights_of("q4_k", 37, 512)
    x = gauss(shape)
    expected = matmul(x, packed, "q4_k", mode=mode)
    out = np.full(expected.shape, np.nan, np.float32)
    given = matmul(x, packed, "q4_k", mode=mode, out=out)
    assert np.shares_memory(given, out)
    assert given.shape == out.shape
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_a_result_of_experts_goes_where_it_is_wanted(mode: Mode) -> None:
    packed = quantize(gauss((3, 37, 512)), "q4_k")
    x, ids = gauss((20, 512)), np.arange(20) % 3
    expected = matmul_experts(x, packed, "q4_k", ids, mode=mode)
    out = np.full(expected.shape, np.nan, np.float32)
    assert np.shares_memory(matmul_experts(x, packed, "q4_k", ids, mode=mode, out=out), out)
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize(
    "out",
    [
        np.empty((4, 36), np.float32),
        np.empty((4, 37), np.float64),
        np.empty((37, 4), np.float32).T,
        np.empty((4, 74), np.float32)[:, ::2],
        np.frombuffer(bytes(4 * 37 * 4), np.float32).reshape(4, 37),
        [[0.0] * 37] * 4,
    ],
    ids=["shape", "dtype", "order", "strides", "read-only", "list"],
)
def test_a_place_that_does_not_fit_is_refused(out: Any) -> None:
    packed, _ = weights_of("q4_k", 37, 512)
    with pytest.raises(UsageError, match=r"out must be .* float32 array of shape \(4, 37\)"):
        matmul(gauss((4, 512)), packed, "q4_k", out=out)
