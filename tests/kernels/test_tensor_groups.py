"""QuantizedTensor in group formats, with MLX as the oracle of their layout."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from tests.kernels.fast_bound import fast_bound, operand

from quantkit.errors import CheckpointError, NonFiniteError, UsageError
from quantkit.gguf import save_tensors
from quantkit.kernels import QuantizedTensor, dequantize_groups, quantize, quantize_groups

RNG = np.random.default_rng(17)
WEIGHTS = RNG.standard_normal((3, 16, 512)).astype(np.float32)
X = RNG.standard_normal((5, 512)).astype(np.float32)
NAMES = ["int2_g32", "int3_g64", "int4_g32", "int4_g64", "int4_g128", "int4_row", "int5_g64", "int6_g32", "int8_g128"]


def options(name: str) -> dict[str, int]:
    bits, size = re.fullmatch(r"int(\d)_(?:g(\d+)|row)", name).groups()  # type: ignore[union-attr]
    return {"bits": int(bits), "group_size": int(size or -1)}


def gamma(k: float) -> float:
    return k * 2.0**-24 / (1 - k * 2.0**-24)


@pytest.mark.parametrize("scale_dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("name", NAMES)
def test_is_what_the_kernels_make_of_the_weights(name: str, scale_dtype: Any) -> None:
    importance = RNG.random((3, 512))
    given: dict[str, Any] = {"importance": importance, "scale_dtype": scale_dtype, "symmetric": True}
    qt = QuantizedTensor.quantize(torch.from_numpy(WEIGHTS), name, **given)
    parts = quantize_groups(WEIGHTS, **options(name), **given)
    assert list(qt.parts()) == ["packed", "scales", "biases"]
    for held, part in zip(qt.parts().values(), parts, strict=True):
        assert np.array_equal(held, part)
        assert not held.flags.writeable
    assert qt.shape == WEIGHTS.shape
    assert qt.nbytes == sum(part.nbytes for part in parts)
    assert qt.bits_per_weight == 8 * qt.nbytes / WEIGHTS.size
    decoded = dequantize_groups(*parts, **options(name))
    assert np.array_equal(qt.dequantize(), decoded)
    assert qt.dequantize(np.float16).dtype == np.float16
    assert qt.error(decoded).max_abs == 0


def test_says_what_it_is() -> None:
    words = repr(QuantizedTensor.quantize(WEIGHTS, "int4_g64", scale_dtype="bf16"))
    assert words == "QuantizedTensor(int4_g64, shape=(3, 16, 512), 4.5 bits per weight, 13,824 bytes)"


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
@pytest.mark.parametrize("name", ["int4_g64", "int8_g32", "int2_g128", "int6_g64"])
def test_takes_what_mlx_has_quantized(name: str, dtype: mx.Dtype) -> None:
    parts = mx.quantize(mx.array(WEIGHTS).astype(dtype), **options(name))
    qt = QuantizedTensor(parts[0], name, parts[1], parts[2])
    wide = [parts[0], parts[1].astype(mx.float32), parts[2].astype(mx.float32)]
    assert np.array_equal(qt.dequantize(), np.array(mx.dequantize(*wide, **options(name))))


@pytest.mark.parametrize("scale_dtype", ["f32", "f16", "bf16"])
def test_a_saved_file_is_one_that_mlx_multiplies_with(scale_dtype: Any, tmp_path: Path) -> None:
    qt = QuantizedTensor.quantize(WEIGHTS[0], "int4_g64", scale_dtype=scale_dtype)
    qt.save(tmp_path / "qt.safetensors")
    again = QuantizedTensor.load(tmp_path / "qt.safetensors")
    assert again.format == "int4_g64"
    for name, part in qt.parts().items():
        assert np.array_equal(again.parts()[name], part)
        assert again.parts()[name].dtype == part.dtype
    there = mx.load(str(tmp_path / "qt.safetensors"))
    assert isinstance(there, dict)
    scales, biases = (there[name].astype(mx.float32) for name in ("scales", "biases"))  # so that MLX computes in it
    found = mx.quantized_matmul(mx.array(X), there["weight"], scales, biases, **options("int4_g64"))
    w = qt.dequantize().astype(np.float64)
    # scale * code and bias are each within a range, at most twice the largest weight, of 0
    bound = gamma(2048) * np.abs(X).sum(axis=1)[:, None] * 4 * np.abs(w).max()
    assert (np.abs(np.array(found) - X @ w.T) <= bound).all()


def test_parts_are_saved_as_they_are(tmp_path: Path) -> None:
    part = QuantizedTensor.quantize(WEIGHTS, "int3_g64", scale_dtype="f16")[:, 3:9:2]
    part.save(tmp_path / "part")
    assert np.array_equal(QuantizedTensor.load(tmp_path / "part").dequantize(), part.dequantize())


@pytest.mark.parametrize("index", [1, -1, (0, 3), (0, slice(3, 9)), slice(None, None, 2), (slice(None), slice(0, 4))])
def test_cutting_shares_the_words(index: Any) -> None:
    qt = QuantizedTensor.quantize(WEIGHTS, "int4_g64")
    part = qt[index]
    assert np.array_equal(part.dequantize(), qt.dequantize()[index])
    assert all(np.shares_memory(part.parts()[name], held) for name, held in qt.parts().items())
    assert part.error(WEIGHTS[index]).relative < 0.1


@pytest.mark.parametrize("cut", [(0,), (slice(None, None, 2),), (slice(2, 9),)])
@pytest.mark.parametrize("name", NAMES)
def test_exact_products_are_within_the_bound(name: str, cut: Any) -> None:
    qt = QuantizedTensor.quantize(WEIGHTS, name, scale_dtype="bf16")[1][cut[0] if cut != (0,) else slice(None)]
    x, w = X.astype(np.float64), qt.dequantize().astype(np.float64)
    bound = gamma(512) * (np.abs(x) @ np.abs(w).T) + 512 * 2.0**-149
    assert (np.abs(X @ qt.T - x @ w.T) <= bound).all()
    assert (np.abs(X[0] @ qt.T - x[0] @ w.T) <= bound[0]).all()
    assert (torch.from_numpy(X) @ qt.T).shape == (5, len(qt))


@pytest.mark.parametrize("name", ["int4_g32", "int4_g64", "int4_g128", "int4_row", "int8_g64", "int8_row"])
def test_fast_products_are_within_the_bound(name: str) -> None:
    qt = QuantizedTensor.quantize(WEIGHTS, name, scale_dtype="f16")
    for expert in range(3):
        w = operand(qt[expert])
        found = qt[expert].matmul(X, mode="fast")
        assert (np.abs(found - X.astype(np.float64) @ w.weights.T) <= fast_bound(X, w)).all()
        by_expert = qt.matmul_experts(X, np.full(5, expert), mode="fast")
        assert np.array_equal(by_expert, found)


@pytest.mark.parametrize("name", ["int4_g64", "int8_row", "int3_g32"])
def test_products_by_expert_are_those_of_each(name: str) -> None:
    qt = QuantizedTensor.quantize(WEIGHTS, name)
    ids, scale = np.array([2, 0, 2, 2, 0]), RNG.random(5).astype(np.float32)
    found = qt.matmul_experts(torch.from_numpy(X), torch.from_numpy(ids), scale=scale)
    assert found.shape == (5, 16)
    for expert in (0, 2):
        mine = ids == expert
        assert np.array_equal(found[mine], qt[expert].matmul((X * scale[:, None])[mine]))


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_what_is_not_finite_is_named_with_its_expert(mode: Any) -> None:
    parts = QuantizedTensor.quantize(WEIGHTS, "int4_g64").parts()
    scales, biases = parts["scales"].copy(), parts["biases"].copy()
    scales[1, 5, 3] = 3e38  # a number, but not times 15
    biases[2, 0, 1] = np.inf
    qt = QuantizedTensor(parts["packed"], "int4_g64", scales, biases)
    assert qt.matmul_experts(X, [0] * 5, mode=mode).shape == (5, 16)
    with pytest.raises(NonFiniteError, match=r"expert 1: weight .* at row 5, column \d+ is not finite"):
        qt.matmul_experts(X, [0, 1, 0, 1, 1], mode=mode)
    with pytest.raises(NonFiniteError, match="expert 2: biases: inf at row 0, column 1"):
        qt.matmul_experts(X, [0, 2, 0, 0, 0], mode=mode)
    bad = X.copy()
    bad[3, 7] = np.inf
    with pytest.raises(NonFiniteError, match=r"^activations: inf at row 3, column 7"):
        qt.matmul_experts(bad, [0, 1, 0, 1, 1], mode=mode)


def test_products_that_do_not_fit() -> None:
    qt = QuantizedTensor.quantize(WEIGHTS, "int3_g64")
    with pytest.raises(UsageError, match=r'mode="fast" is for groups of 4 or 8 bits, not 3'):
        qt[0].matmul(X, mode="fast")
    with pytest.raises(UsageError, match="unknown mode 'quick'"):
        qt[0].matmul(X, mode="quick")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=re.escape("expert_ids: 3 at row 0 is not in 0 .. 2")):
        qt.matmul_experts(X, [3] * 5)
    with pytest.raises(
        UsageError, match=re.escape("activations must be (n, 512) for these weights, not of shape (512,)")
    ):
        qt.matmul_experts(X[0], [0])
    bad = X.copy()
    bad[3, 7] = np.nan
    with pytest.raises(NonFiniteError, match="row 3, column 7"):
        bad @ qt[0].T


PARTS = quantize_groups(WEIGHTS, bits=4, group_size=64)


@pytest.mark.parametrize(
    ("packed", "scales", "biases", "name", "words"),
    [
        (PARTS[0], None, None, "int4_g64", "int4_g64 needs scales and biases"),
        (PARTS[0].view(np.int32), *PARTS[1:], "int4_g64", "packed must be uint32 (..., words), not int32"),
        (PARTS[0], PARTS[1][..., :7], PARTS[2], "int4_g64", "scales are f32 of shape (3, 16, 7)"),
        (PARTS[0], PARTS[1].astype(np.float16), PARTS[2], "int4_g64", "scales are f16 of shape (3, 16, 8), biases f32"),
        (*PARTS, "int4_g32", "both must be of shape (3, 16, 16)"),
        (*PARTS, "int3_g64", "packed has rows of 64 words: in int3_g64"),
        (*PARTS, "int4_g65", "unknown format 'int4_g65'\nGroup formats are called like int4_g64"),
        (*PARTS, "int7_row", "unknown format 'int7_row'"),
        (PARTS[0].view(np.uint8), *PARTS[1:], "q4_0", "q4_0 has its scales in its blocks"),
    ],
)
def test_parts_that_do_not_fit(packed: Any, scales: Any, biases: Any, name: str, words: str) -> None:
    with pytest.raises(UsageError, match=re.escape(words)):
        QuantizedTensor(packed, name, scales, biases)


def test_options_of_the_other_kind_of_format() -> None:
    with pytest.raises(UsageError, match="int4_g64 is quantized with weighting 'plain', not 'magnitude'"):
        QuantizedTensor.quantize(WEIGHTS, "int4_g64", weighting="magnitude")
    for given in ({"symmetric": True}, {"scale_dtype": "bf16"}):
        with pytest.raises(UsageError, match="q4_0 has no symmetric and no scale_dtype"):
            QuantizedTensor.quantize(WEIGHTS, "q4_0", **given)  # type: ignore[arg-type]


def test_functions_for_blocks_name_those_for_groups() -> None:
    with pytest.raises(UsageError, match=r"unknown format 'int4_g64'\nGroups are quantized by Quant"):
        quantize(WEIGHTS[0], "int4_g64")


def test_gguf_has_no_groups(tmp_path: Path) -> None:
    qt = QuantizedTensor.quantize(WEIGHTS, "int4_g64")
    with pytest.raises(UsageError, match=r"blk\.0 is in int4_g64, which GGUF does not have"):
        save_tensors(tmp_path / "x.gguf", {"blk.0": qt})
    assert not list(tmp_path.iterdir())


def test_a_file_whose_scales_are_gone(tmp_path: Path) -> None:
    path = tmp_path / "qt.safetensors"
    QuantizedTensor.quantize(WEIGHTS, "int4_g64").save(path)
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"scales"', b'"scalez"'))
    with pytest.raises(CheckpointError, match="not of a quantized tensor"):
        QuantizedTensor.load(path)
    path.write_bytes(data[:-1])
    with pytest.raises(CheckpointError, match="truncated: tensor 'biases' ends at byte"):
        QuantizedTensor.load(path)
