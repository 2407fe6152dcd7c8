"""Weights laid out for few rows of x: the same bits back, and the products of plain ones, bit by bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.kernels.fast_bound import Floats

from quantkit.errors import NonFiniteError, UsageError
from quantkit.kernels import FORMATS, QuantizedTensor, RepackedTensor, _machine
from quantkit.testing import activations, supported_tiers, use_tier, weight_matrices

BLOCKS = [name for name, found in FORMATS.items() if found.block_size > 1]
TIERS: list[str] = _machine.matmul_tiers()


def tensor(format: str, *shape: int) -> QuantizedTensor:
    weights = np.random.default_rng(2).standard_t(4, shape) * 0.02
    return QuantizedTensor.quantize(weights.astype(np.float32), format)


def alone(x: Floats, qt: QuantizedTensor) -> Floats:
    """Each row of x with three others, which do not show: of less than four plain weights make other sums."""
    return qt.matmul(np.repeat(x, 4, axis=0), mode="fast")[::4]


@pytest.mark.parametrize("name", BLOCKS)
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_products_are_those_of_plain_weights(name: str, data: st.DataObject) -> None:
    block = FORMATS[name].block_size
    w = data.draw(weight_matrices("f32", min_block=block, max_blocks=1280 // block, max_rows=40))
    x = data.draw(activations(w.shape[1], max_rows=6))
    qt = QuantizedTensor.quantize(w, name)
    expected = alone(x, qt)
    for tier in supported_tiers():
        with use_tier(tier):
            repacked = qt.repack(threads=2)
            for threads in (1, 2):
                got = repacked.matmul(x, threads=threads)
                np.testing.assert_array_equal(got.view(np.uint32), expected.view(np.uint32), err_msg=tier)


@pytest.mark.parametrize("name", BLOCKS)
def test_every_tier_gives_and_takes_the_same_bytes(name: str) -> None:
    qt = tensor(name, 3, 37, 512)
    x = np.random.default_rng(0).standard_normal((7, 512)).astype(np.float32)
    packed = qt.packed.reshape(-1)
    expected = alone(x, qt[1])
    for tier in TIERS:
        repacked = np.full((3, 48, qt.packed.shape[-1]), 0xAA, np.uint8)
        back = np.full_like(packed, 0xAA)
        _machine.repack(tier, name, packed, 3, 37, 512, repacked.reshape(-1), False, 2)
        _machine.repack(tier, name, repacked.reshape(-1), 3, 37, 512, back, True, 1)
        np.testing.assert_array_equal(back, packed)
        np.testing.assert_array_equal(repacked, qt.repack().packed, err_msg=tier)
        for n in (1, 2, 3, 7):
            out = np.full((n, 37), np.nan, np.float32)
            _machine.matmul_fast(
                tier, name, x[:n].reshape(-1), repacked[1].reshape(-1), 37, 512, out.reshape(-1), 1, True
            )
            np.testing.assert_array_equal(out, expected[:n], err_msg=tier)


@pytest.mark.parametrize("name", BLOCKS)
def test_words_of_sixteen_rows_are_side_by_side(name: str) -> None:
    """The same bytes, only moved; and each byte of a row in its lane of sixteen."""
    qt = tensor(name, 16, 512)
    rows = np.arange(16, dtype=np.uint8)[:, None] * np.ones(qt.packed.shape[1], np.uint8)
    moved = QuantizedTensor(rows, name).repack().packed.reshape(-1)
    np.testing.assert_array_equal(np.bincount(moved), np.bincount(rows.reshape(-1)))
    odd = FORMATS[name].block_bytes % 4
    at = np.arange(len(moved)) % (16 * FORMATS[name].block_bytes)
    lane = np.where(at < 16 * odd, at // max(odd, 1), (at - 16 * odd) % 64 // 4)
    np.testing.assert_array_equal(moved, lane)
    assert qt.repack().packed.ctypes.data % 64 == 0


@pytest.mark.parametrize("name", ["q4_0", "q5_k", "mxfp4"])
@pytest.mark.parametrize("scaled", [False, True])
def test_experts(name: str, scaled: bool) -> None:
    qt = tensor(name, 4, 21, 512)
    repacked = qt.repack()
    ids = np.array([0, 3, 3, 3, 0, 3, 1, 3, 3, 3, 3, 3])
    x = np.random.default_rng(1).standard_normal((len(ids), 512)).astype(np.float32)
    scale = np.linspace(0.2, 1, len(ids), dtype=np.float32) if scaled else None
    rows = x if scale is None else x * scale[:, None]
    expected = np.concatenate([alone(rows[i : i + 1], qt[expert]) for i, expert in enumerate(ids)])
    out = np.empty_like(expected)
    assert repacked.matmul_experts(x, ids, scale=scale, out=out) is out
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(repacked.matmul_experts(x, ids, scale=scale, threads=1), expected)


def test_is_the_tensor_in_another_order() -> None:
    for qt in (tensor("q6_k", 19, 256), tensor("q8_0", 2, 16, 64), tensor("q4_k", 0, 256)):
        repacked = qt.repack()
        assert (repacked.shape, repacked.ndim, repacked.format) == (qt.shape, qt.ndim, qt.format)
        assert not repacked.packed.flags.writeable
        back = repacked.unpack()
        assert back.format == qt.format
        np.testing.assert_array_equal(back.packed, qt.packed)
    assert repr(tensor("q8_0", 2, 16, 64).repack()) == "RepackedTensor(q8_0, shape=(2, 16, 64), 2,176 bytes)"
    assert tensor("q8_0", 1, 64).repack().nbytes == 16 * 68  # up to sixteen rows


def test_rows_that_lie_apart_and_vectors() -> None:
    qt = tensor("q4_0", 40, 128)
    x = np.random.default_rng(0).standard_normal(128).astype(np.float32)
    np.testing.assert_array_equal(qt[::2].repack().matmul(x), alone(x[None], qt)[0, ::2])
    out = np.empty(40, np.float32)
    assert qt.repack().matmul(x, out=out) is out
    np.testing.assert_array_equal(out, alone(x[None], qt)[0])
    assert qt.repack().matmul(x[None][:0]).shape == (0, 40)


def test_what_does_not_fit_is_refused() -> None:
    for format in ("f16", "bf16", "int4_g64"):
        with pytest.raises(UsageError, match=f"{format} cannot be repacked"):
            tensor(format, 4, 256).repack()
    matrix, experts = tensor("q4_0", 8, 64).repack(), tensor("q4_0", 2, 8, 64).repack()
    x = np.zeros((2, 64), np.float32)
    with pytest.raises(UsageError, match="is neither a matrix"):
        QuantizedTensor(tensor("q4_0", 8, 64).packed.reshape(2, 2, 2, -1), "q4_0").repack()
    with pytest.raises(UsageError, match="is no matrix"):
        experts.matmul(x)
    with pytest.raises(UsageError, match="is not of experts"):
        matrix.matmul_experts(x, [0, 0])
    with pytest.raises(UsageError, match=r"\(n, 64\)"):
        matrix.matmul(x[:, :32])
    with pytest.raises(UsageError, match=r"shape \(2, 8\)"):
        matrix.matmul(x, out=np.empty((2, 16), np.float32))
    with pytest.raises(UsageError, match="threads"):
        matrix.matmul(x, threads=-1)
    with pytest.raises(UsageError, match="expert_ids"):
        experts.matmul_experts(x, [0, 2])


@pytest.mark.parametrize(
    ("rows", "packed"),
    [
        (17, np.zeros((16, 36), np.uint8)),
        (16, np.zeros((32, 36), np.uint8)),
        (16, np.zeros(36, np.uint8)),
        (16, np.zeros((16, 35), np.uint8)),
        (16, np.zeros((16, 36), np.float32)),
    ],
)
def test_bytes_that_are_no_repacked_rows(rows: int, packed: np.ndarray) -> None:
    with pytest.raises(UsageError):
        RepackedTensor(packed, "q4_0", rows)


def test_what_is_not_finite_is_named() -> None:
    qt = tensor("q4_0", 21, 128)
    x = np.ones((2, 128), np.float32)
    x[1, 5] = np.inf
    with pytest.raises(NonFiniteError, match="row 1, column 5"):
        qt.repack().matmul(x)
    damaged = qt.packed.copy()
    damaged[18, 18:20] = [0, 0x7C]  # an infinite scale
    for n in (1, 5):
        with pytest.raises(NonFiniteError, match="row 18, column 32"):
            QuantizedTensor(damaged, "q4_0").repack().matmul(np.ones((n, 128), np.float32))
    stacked = QuantizedTensor(np.stack([qt.packed, damaged]), "q4_0").repack()
    with pytest.raises(NonFiniteError, match=r"expert 1: .*row 18, column 32"):
        stacked.matmul_experts(np.ones((2, 128), np.float32), [0, 1])


def test_sizes_that_do_not_fit_are_refused_by_the_machine_room() -> None:
    packed = tensor("q4_0", 8, 64).packed.reshape(-1)
    room = np.empty(2 * len(packed), np.uint8)
    for arguments, why in [
        (("scalar", "q4_0", packed, 1, 8, 64, room[1:], False, 1), "packed does not"),
        (("scalar", "q4_0", packed[1:], 1, 8, 64, room, False, 1), "packed does not"),
        (("scalar", "f16", packed, 1, 8, 64, room, False, 1), "no block format"),
        (("nope", "q4_0", packed, 1, 8, 64, room, False, 1), "tier nope"),
    ]:
        with pytest.raises(ValueError, match=why):
            _machine.repack(*arguments)  # type: ignore[arg-type]
