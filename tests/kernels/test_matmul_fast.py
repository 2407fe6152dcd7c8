"""The fast products: x in int8 blocks, integer dot products; against float64, tier against tier, at the ends."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from tests.kernels.fast_bound import Floats, Operand, computing, fast_bound, operand, quantized_activations

from quantkit.kernels import FORMATS, QuantizedTensor, _machine, dequantize, quantize

TIERS: list[str] = _machine.matmul_tiers()
BLOCKS = [name for name, found in FORMATS.items() if found.block_size > 1]
# Bytes of a block that are not codes: (offset, f16 or plain byte, value). All others are set at will.
SCALES: dict[str, list[tuple[int, str, float]]] = {
    "q4_0": [(0, "<f2", 0.5)],
    "q4_1": [(0, "<f2", 0.5), (2, "<f2", -1.0)],
    "q5_0": [(0, "<f2", 0.5)],
    "q5_1": [(0, "<f2", 0.5), (2, "<f2", -1.0)],
    "q8_0": [(0, "<f2", 0.5)],
    "q2_k": [(80, "<f2", 0.5), (82, "<f2", 0.25)],
    "q3_k": [(108, "<f2", 0.5)],
    "q4_k": [(0, "<f2", 0.5), (2, "<f2", 0.25)],
    "q5_k": [(0, "<f2", 0.5), (2, "<f2", 0.25)],
    "q6_k": [(208, "<f2", 0.5)],
    "iq4_nl": [(0, "<f2", 0.5)],
    "iq4_xs": [(0, "<f2", 0.5)],
    "mxfp4": [(0, "u1", 120)],
}


def fast(x: Floats, packed: npt.NDArray[np.uint8], name: str, *, tier: str, threads: int = 1) -> Floats:
    out = np.full((len(x), len(packed)), np.nan, np.float32)
    _machine.matmul_fast(tier, name, x.ravel(), packed.ravel(), len(packed), x.shape[1], out.reshape(-1), threads)
    return out


def check(got: Floats, x: Floats, weights: Operand) -> None:
    """Against float64 of the activations as rounded: all but the rounding of x."""
    error = np.abs(got - quantized_activations(x, weights) @ weights.weights.T)
    bound = computing(x, weights)
    assert (error <= bound).all(), np.max(error / bound)


def matrices(name: str, n: int, rows: int, cols: int, seed: int = 0) -> tuple[Floats, npt.NDArray[np.uint8]]:
    rng = np.random.default_rng(seed)
    weights = (rng.standard_t(4, (rows, cols)) * 0.02).astype(np.float32)
    return rng.standard_normal((n, cols)).astype(np.float32), quantize(weights, name)


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("name", BLOCKS)
def test_against_float64_of_the_quantized_activations(name: str, tier: str) -> None:
    for n, rows, cols in [
        (1, 37, 1280),
        (2, 5, 256),
        (3, 9, 512),
        (4, 33, 768),
        (7, 65, 256),
        (13, 32, 1536),
        (19, 1, 512),
    ]:
        x, packed = matrices(name, n, rows, cols)
        check(fast(x, packed, name, tier=tier), x, operand(packed, name))


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("name", [name for name in BLOCKS if FORMATS[name].block_size == 32])
def test_columns_that_are_no_multiple_of_256(name: str, tier: str) -> None:
    for n, rows, cols in [(1, 9, 32), (1, 9, 544), (5, 17, 96), (8, 40, 800)]:
        x, packed = matrices(name, n, rows, cols)
        check(fast(x, packed, name, tier=tier), x, operand(packed, name))


@pytest.mark.parametrize("name", BLOCKS)
def test_tiers_and_threads_do_not_show(name: str) -> None:
    for n in (1, 3, 4, 23):
        x, packed = matrices(name, n, 101, 1280)
        expected = fast(x, packed, name, tier="scalar")
        for tier in TIERS:
            for threads in (1, 2, 3):
                np.testing.assert_array_equal(fast(x, packed, name, tier=tier, threads=threads), expected)


@pytest.mark.parametrize("name", BLOCKS)
def test_other_rows_do_not_show(name: str) -> None:
    """A row's result depends on itself, and on whether there are fewer than four rows."""
    x, packed = matrices(name, 23, 40, 768)
    together = fast(x, packed, name, tier=TIERS[-1])
    np.testing.assert_array_equal(fast(x[5:16], packed, name, tier=TIERS[-1]), together[5:16])
    few = fast(x[:3], packed, name, tier=TIERS[-1])
    np.testing.assert_array_equal(fast(x[1:2], packed, name, tier=TIERS[-1]), few[1:2])


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("name", BLOCKS)
def test_no_sum_of_products_saturates(name: str, tier: str) -> None:
    """Every code at an end of its range against activations at theirs: 16-bit partial sums are largest here."""
    found = FORMATS[name]
    for fill in (0x00, 0x77, 0x7F, 0x80, 0xFF):  # mxfp4 has its largest code at 7
        packed = np.full((16, 512 // found.block_size * found.block_bytes), fill, np.uint8)
        blocks = packed.reshape(-1, found.block_bytes)
        for offset, dtype, value in SCALES[name]:
            scale = np.array([value], dtype).view(np.uint8)
            blocks[:, offset : offset + len(scale)] = scale
        weights = dequantize(packed, name)
        signs = np.resize(np.array([1, -1], np.float32), 512)
        largest = np.sign(weights[0]) + (weights[0] == 0)
        # where panels limit four codes to 258 (iq4_xs), ties that all go up come to that
        ties = np.resize(np.array([63.5] * 5 + [65.5, 63.5, 65.5], np.float32), 512) * largest
        x = np.stack([signs * 0 + 1, signs * 0 - 1, signs, largest, -signs, ties])
        for n in (1, 6):
            check(fast(x[:n], packed, name, tier=tier), x[:n], operand(packed, name))
            check(fast(-x[:n], packed, name, tier=tier), -x[:n], operand(packed, name))


@pytest.mark.parametrize("name", BLOCKS)
def test_error_of_quantizing_activations(name: str) -> None:
    """Each activation is off by at most half a step: what `fast` costs, and no more."""
    x, packed = matrices(name, 16, 64, 2048)
    weights = operand(packed, name)
    exact = x.astype(np.float64) @ weights.weights.T
    error = np.abs(fast(x, packed, name, tier=TIERS[-1]) - exact)
    assert (error <= fast_bound(x, weights)).all()
    assert 0.003 < np.sqrt((error**2).mean() / (exact**2).mean()) < 0.008  # documented: 0.5 or 0.7 per cent


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", ["q4_0", "q4_k", "q6_k"])
def test_experts_equal_products_of_their_own(name: str, threads: int) -> None:
    rng = np.random.default_rng(5)
    counts = [0, 1, 3, 4, 17, 0, 6]
    ids = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    x, packed = matrices(name, len(ids), len(counts) * 45, 512)
    stacked = packed.reshape(len(counts), 45, -1)
    order = np.argsort(ids, kind="stable")
    starts = np.concatenate(([0], np.cumsum(counts)))
    for tier in TIERS:
        out = np.full((len(ids), 45), np.nan, np.float32)
        _machine.matmul_fast_experts(
            tier, name, x.ravel(), packed.ravel(), len(counts), 45, 512, order, starts, out.reshape(-1), threads
        )
        for expert in range(len(counts)):
            mine = np.flatnonzero(ids == expert)
            np.testing.assert_array_equal(out[mine], fast(x[mine], stacked[expert], name, tier=tier))


def test_more_rows_than_a_pass_takes() -> None:
    x, packed = matrices("q4_k", 1100, 40, 256)
    got = fast(x, packed, "q4_k", tier=TIERS[-1], threads=2)
    check(got, x, operand(packed, "q4_k"))
    np.testing.assert_array_equal(got[700:], fast(x[700:], packed, "q4_k", tier=TIERS[-1]))


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("group_size", [32, 64, 128, 0])
@pytest.mark.parametrize("bits", [4, 8])
def test_groups(bits: int, group_size: int, tier: str) -> None:
    rng = np.random.default_rng(bits)
    for n, rows, cols in [(1, 9, 384), (3, 7, 640), (9, 35, 896)]:
        size = group_size or cols
        codes = rng.integers(0, 1 << bits, (rows, cols), dtype=np.uint32)
        codes[0], codes[1], codes[2] = (1 << bits) - 1, 0, 1 << (bits - 1)
        words = (codes.reshape(rows, -1, 32 // bits) << np.arange(0, 32, bits, dtype=np.uint32)).sum(
            axis=2, dtype=np.uint32
        )
        scales, biases = rng.standard_normal((2, rows, cols // size)).astype(np.float32)
        x = rng.standard_normal((n, cols)).astype(np.float32)
        x[0, :64] = 1
        name = f"int{bits}_g{group_size}" if group_size else f"int{bits}_row"
        out = np.full((n, rows), np.nan, np.float32)
        arguments = (x.ravel(), words.ravel(), scales.ravel(), biases.ravel(), rows, cols, out.reshape(-1), 2)
        _machine.matmul_fast_groups(tier, bits, size, *arguments)
        check(out, x, operand(QuantizedTensor(words, name, scales, biases)))
        first = out.copy()
        _machine.matmul_fast_groups("scalar", bits, size, *arguments)
        np.testing.assert_array_equal(out, first)


def test_zeros_and_tiny_activations_are_zero() -> None:
    x, packed = matrices("q4_k", 6, 8, 512)
    x[0], x[1] = 0, np.float32(1e-38)
    x[2, 100], x[3] = 2.0**-20, 2.0**-90
    got = fast(x, packed, "q4_k", tier=TIERS[-1])
    assert (got[:2] == 0).all()
    check(got[2:], x[2:], operand(packed, "q4_k"))


@pytest.mark.parametrize("n", [1, 6])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_activations_that_are_not_finite_are_refused(value: float, n: int) -> None:
    x, packed = matrices("q4_0", n, 8, 512)
    x[n - 1, 77] = value
    for tier in TIERS:
        with pytest.raises(ValueError, match=f"row {n - 1}, column 77 is not finite"):
            fast(x, packed, "q4_0", tier=tier)


def test_sizes_that_do_not_fit_are_refused() -> None:
    x, packed = matrices("q4_k", 2, 8, 512)
    out = np.zeros(16, np.float32)
    for bad, why in [
        (("nope", "q4_k", x.ravel(), packed.ravel(), 8, 512, out, 1), "tier nope"),
        (("scalar", "f16", x.ravel(), packed.ravel(), 8, 512, out, 1), "no block format"),
        (("scalar", "q4_k", x.ravel()[1:], packed.ravel(), 8, 512, out, 1), "x does not"),
        (("scalar", "q4_k", x.ravel(), packed.ravel()[1:], 8, 512, out, 1), "packed does not"),
        (("scalar", "q4_k", x.ravel(), packed.ravel(), 8, 511, out, 1), "multiple"),
        (("scalar", "q4_k", x.ravel(), packed.ravel(), 8, 512, out[1:], 1), "out does not"),
    ]:
        with pytest.raises(ValueError, match=why):
            _machine.matmul_fast(*bad)  # type: ignore[arg-type]
