"""QuantizedTensor: what it stands for, how it is cut, multiplied, measured, saved and loaded."""

from __future__ import annotations

import copy
import math
import pickle
import re
import struct
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import mlx.core as mx
import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.kernels.matrices import columns_of, rows_of

import quantkit
from quantkit.errors import CheckpointError, NonFiniteError, OutputError, UsageError
from quantkit.kernels import FORMATS, QuantizedTensor, dequantize, matmul, matmul_experts, quantize, row_bytes

WEIGHTS = np.random.default_rng(7).standard_normal((3, 16, 512)).astype(np.float32)


def tensor(format: str = "q4_k") -> QuantizedTensor:
    return QuantizedTensor.quantize(WEIGHTS, format)


@pytest.mark.parametrize("name", FORMATS)
def test_is_what_the_kernels_make_of_the_weights(name: str) -> None:
    importance = np.random.default_rng(8).random((3, 512)).astype(np.float32)
    qt = QuantizedTensor.quantize(torch.from_numpy(WEIGHTS), name, importance=importance)
    packed = quantize(WEIGHTS, name, importance=importance)
    assert np.array_equal(qt.packed, packed)
    assert (qt.shape, qt.ndim, len(qt)) == ((3, 16, 512), 3, 3)
    assert qt.nbytes == 3 * 16 * row_bytes(name, 512)
    assert qt.bits_per_weight == 8 * qt.nbytes / WEIGHTS.size
    assert np.array_equal(qt.dequantize(), dequantize(packed, name))
    assert np.array_equal(np.asarray(qt), dequantize(packed, name))
    half = qt.dequantize(ml_dtypes.bfloat16)
    assert half.dtype == ml_dtypes.bfloat16
    assert np.array_equal(half, dequantize(packed, name).astype(ml_dtypes.bfloat16))


def test_decoded_weights_go_on_to_torch_and_mlx_and_can_be_written_to() -> None:
    decoded = tensor().dequantize()
    there = torch.from_numpy(decoded)
    there[0, 0, 0] = 5
    assert decoded[0, 0, 0] == 5
    assert np.array_equal(np.array(mx.array(decoded)), decoded)


CUTS: dict[str, Any] = {
    "expert": 1,
    "last expert": -1,
    "row": (2, 5),
    "experts": slice(1, 3),
    "rows of an expert": (0, slice(3, 9)),
    "rows of all": (slice(None), slice(3, 9)),
    "every third": (..., slice(1, None, 3)),
    "backwards": slice(None, None, -1),
    "nothing": (),
    "no row": (0, slice(3, 3)),
    "numpy's number": np.int64(1),
}
GATHERED: dict[str, Any] = {
    "list": [2, 0],
    "array": (0, np.array([5, 5, 1])),
    "torch": (..., torch.tensor([0, 3])),
    "pairs": ([0, 1], [3, 4]),
}


def whole_rows(index: Any) -> Any:
    """The index of the same rows in an array that has its columns."""
    return (*index, slice(None)) if isinstance(index, tuple) and index[:1] == (...,) else index


@pytest.mark.parametrize("cut", CUTS)
def test_cutting_shares_the_bytes(cut: str) -> None:
    qt = tensor()
    part = qt[CUTS[cut]]
    expected = qt.dequantize()[whole_rows(CUTS[cut])]
    assert part.shape == expected.shape
    assert np.array_equal(part.dequantize(), expected)
    assert np.shares_memory(part.packed, qt.packed) or not part.nbytes


@pytest.mark.parametrize("cut", GATHERED)
def test_gathering(cut: str) -> None:
    qt = tensor()
    assert np.array_equal(qt[GATHERED[cut]].dequantize(), qt.dequantize()[whole_rows(GATHERED[cut])])


@pytest.mark.parametrize("index", [(0, 0, 0), (..., 0, 0, 0), (slice(None), slice(None), slice(0, 256))])
def test_columns_cannot_be_taken(index: Any) -> None:
    with pytest.raises(UsageError, match=r"columns are packed in blocks\nDequantize the rows first"):
        tensor()[index]


@pytest.mark.parametrize("index", [None, True, 1.5, "a", np.array([True, False, True]), np.float32(1)])
def test_what_is_no_index(index: Any) -> None:
    with pytest.raises(UsageError, match="has no index"):
        tensor()[index]


@pytest.mark.parametrize("index", [3, -4, (0, 16), ([5],)])
def test_rows_that_are_not_there(index: Any) -> None:
    with pytest.raises(IndexError):
        tensor()[index]


def test_can_be_walked() -> None:
    qt = tensor()
    assert [expert.shape for expert in qt] == [(16, 512)] * 3
    assert np.array_equal(np.stack([row.dequantize() for row in qt[1]]), qt[1].dequantize())


def test_does_not_change() -> None:
    packed = quantize(WEIGHTS, "q8_0")
    qt = QuantizedTensor(packed, "q8_0")
    assert np.shares_memory(qt.packed, packed)
    assert packed.flags.writeable  # the caller's array is as it was
    with pytest.raises(ValueError, match="read-only"):
        qt.packed[0] = 0
    with pytest.raises(FrozenInstanceError):
        qt.format = "q4_0"  # type: ignore[misc]


@pytest.mark.parametrize("make", [lambda a: a, torch.from_numpy, mx.array, jnp.asarray])
def test_bytes_of_other_libraries(make: Callable[[np.ndarray], Any]) -> None:
    packed = quantize(WEIGHTS[0], "q6_k")
    given = make(packed)
    qt = QuantizedTensor(given, "q6_k")
    assert np.array_equal(qt.packed, packed)
    if isinstance(given, torch.Tensor):
        assert qt.packed.ctypes.data == given.data_ptr()


@pytest.mark.parametrize(
    ("packed", "format", "words"),
    [
        (np.zeros((2, 143), np.uint8), "q4_k", "whole 144-byte blocks, not uint8 of shape (2, 143)"),
        (np.zeros((2, 144), np.int8), "q4_k", "not int8 of shape (2, 144)"),
        (np.zeros((), np.uint8), "q4_k", "not uint8 of shape ()"),
        (np.zeros((2, 144), np.uint8), "q4_kk", "unknown format 'q4_kk'"),
        (None, "q4_k", "not object of shape ()"),
    ],
)
def test_bytes_that_are_none_of_the_format(packed: Any, format: str, words: str) -> None:
    with pytest.raises(UsageError, match=re.escape(words)):
        QuantizedTensor(packed, format)


def test_weights_that_do_not_fit_are_refused_by_name() -> None:
    bad = WEIGHTS.copy()
    bad[1, 3, 5] = np.nan
    with pytest.raises(NonFiniteError, match="expert 1: weight nan at row 3, column 5"):
        QuantizedTensor.quantize(bad, "q4_k")
    with pytest.raises(UsageError, match="a row of 500 is not a whole number"):
        QuantizedTensor.quantize(WEIGHTS[..., :500], "q4_k")


def test_says_what_it_is() -> None:
    assert repr(tensor()) == "QuantizedTensor(q4_k, shape=(3, 16, 512), 4.5 bits per weight, 13,824 bytes)"
    zeros = QuantizedTensor(np.zeros((2, 1000, 1440), np.uint8), "q4_k")
    assert repr(zeros) == "QuantizedTensor(q4_k, shape=(2, 1000, 2560), 4.5 bits per weight, 2.9 MB)"


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda qt: pickle.loads(pickle.dumps(qt))])
def test_can_be_copied_and_sent(copied: Callable[[QuantizedTensor], QuantizedTensor]) -> None:
    qt = tensor()
    other = copied(qt)
    assert other.format == qt.format
    assert np.array_equal(other.packed, qt.packed)


def test_stands_at_quantkit_too() -> None:
    assert quantkit.QuantizedTensor is QuantizedTensor


# Products


@pytest.mark.parametrize("name", ["q4_k", "q8_0", "mxfp4", "f16"])
def test_products_are_those_of_the_kernels(name: str) -> None:
    qt = tensor(name)
    rng = np.random.default_rng(9)
    x = rng.standard_normal((5, 512)).astype(np.float32)
    expected = matmul(x, qt.packed[1], name)
    assert np.array_equal(x @ qt[1].T, expected)
    assert np.array_equal(qt[1].matmul(x, mode="exact", threads=1), expected)
    assert np.array_equal(x[0] @ qt[1].T, matmul(x[0], qt.packed[1], name))
    assert np.array_equal(x @ qt[:, 3:9][1].T, matmul(x, qt.packed[1, 3:9], name))
    ids, scale = np.array([0, 2, 2, 1, 0]), rng.random(5).astype(np.float32)
    expected = matmul_experts(x, qt.packed, name, ids, scale=scale)
    assert np.array_equal(qt.matmul_experts(x, ids, scale=scale), expected)


@pytest.mark.parametrize("name", ["q4_k", "int4_g64"])
def test_products_with_arrays_of_every_library_are_numpy_s(name: str) -> None:
    """MLX does not ask the right operand of its @; if it ever does, the docs change with this."""
    qt = tensor(name)[1]
    x = np.random.default_rng(9).standard_normal((5, 512)).astype(np.float32)
    half = np.asarray(x.astype(ml_dtypes.bfloat16))
    for wide, narrow in (
        (x, half),
        (torch.from_numpy(x), torch.from_numpy(x).bfloat16()),
        (torch.nn.Parameter(torch.from_numpy(x)), torch.from_numpy(x).bfloat16()),
        (jnp.asarray(x), jnp.asarray(half)),
    ):
        for array, expected in ((wide, qt.matmul(x)), (narrow, qt.matmul(half))):
            y = array @ qt.T
            assert type(y) is np.ndarray
            assert np.array_equal(y, expected)
            assert np.array_equal(array[0] @ qt.T, qt.matmul(array[0]))
    with pytest.raises(TypeError):
        mx.array(x) @ qt.T  # type: ignore[operator]
    assert np.array_equal(qt.matmul(mx.array(x)), qt.matmul(x))
    assert np.array_equal(qt.matmul(mx.array(x).astype(mx.bfloat16)), qt.matmul(half))


def test_transposed() -> None:
    qt = tensor()[0]
    assert qt.T.shape == (512, 16)
    assert qt.T.T is qt
    with pytest.raises(TypeError):
        np.ones((2, 16), np.float32) @ qt  # type: ignore[operator]


def test_products_with_tensors_of_another_rank() -> None:
    x = np.ones((2, 512), np.float32)
    with pytest.raises(UsageError, match=r"shape=\(3, 16, 512\).* is no matrix\n.*qt\.matmul_experts"):
        x @ tensor().T
    with pytest.raises(UsageError, match=r"is not of experts\n.*qt\.matmul"):
        tensor()[0].matmul_experts(x, [0, 0])


# Error


def expected_figures(reference: np.ndarray, decoded: np.ndarray, weights: np.ndarray) -> dict[str, float]:
    """The definitions, in numpy's longest float."""
    w = np.broadcast_to(weights, reference.shape).astype(np.longdouble)
    x, y = reference.astype(np.longdouble), decoded.astype(np.longdouble)
    noise, signal = (w * (y - x) ** 2).sum(), (w * x**2).sum()
    return {
        "rmse": float(np.sqrt(noise / w.sum())),
        "relative": float(np.sqrt(noise / signal)),
        "sqnr_db": float(10 * np.log10(signal / noise)),
        "cosine": float((w * x * y).sum() / np.sqrt(signal * (w * y**2).sum())),
        "max_abs": float(np.abs(y - x).max()),
    }


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(["q8_0", "q4_k", "q2_k", "iq4_nl", "mxfp4"]),
    st.sampled_from(["gauss", "heavy", "outlier", "real", "offset", "two values"]),
    st.sampled_from([None, "ones", "lognormal", "some zero"]),
    st.integers(0, 2**32 - 1),
)
def test_error_is_what_its_definition_says(name: str, kind: str, columns: str | None, seed: int) -> None:
    reference = rows_of([kind] * 6, 512, seed).reshape(2, 3, 512)
    qt = QuantizedTensor.quantize(reference, name)
    weights = None if columns is None else columns_of(columns, 512, seed)
    found = qt.error(reference, weights)
    decoded = qt.dequantize()
    expected = expected_figures(reference, decoded, np.ones(512) if weights is None else weights)
    for figure, value in expected.items():
        # 3072 products summed in float64: relative error below 3072 * 2**-53, half of it after a root
        assert getattr(found, figure) == pytest.approx(value, rel=1e-12, abs=1e-12), figure
    assert abs(decoded - reference)[found.max_abs_index] == found.max_abs


def test_error_of_many_blocks_of_rows() -> None:
    """More elements than are looked at together, with the worst in the last row of the last expert."""
    reference = np.random.default_rng(11).standard_normal((2, 1100, 512)).astype(np.float32)
    qt = QuantizedTensor.quantize(reference, "q8_0")
    reference[1, 1099, 511] += 1
    found = qt.error(reference)
    expected = expected_figures(reference, qt.dequantize(), np.ones(1))
    assert found.max_abs_index == (1, 1099, 511)
    assert {name: getattr(found, name) for name in expected} == pytest.approx(expected, rel=1e-11)
    assert qt[1].error(reference[1]).max_abs_index == (1099, 511)
    assert qt[1, 1099].error(reference[1, 1099]).max_abs_index == (511,)


def test_error_with_weights_of_each_expert() -> None:
    qt = tensor("q2_k")
    weights = np.ones((3, 512))
    weights[:2] = 0
    assert qt.error(WEIGHTS, weights).rmse == pytest.approx(qt[2].error(WEIGHTS[2]).rmse, rel=1e-12)
    assert qt.error(WEIGHTS, weights * 1e300).relative == pytest.approx(qt[2].error(WEIGHTS[2]).relative, rel=1e-12)


def test_error_takes_any_floats() -> None:
    qt = QuantizedTensor.quantize(WEIGHTS, "f32")
    assert qt.error(WEIGHTS.astype(np.float64) + 1e-9).max_abs == pytest.approx(1e-9, rel=1e-6)  # not rounded before
    bits = torch.from_numpy(WEIGHTS).bfloat16()
    expected = qt.error(bits.float().numpy())
    assert qt.error(bits) == expected
    assert qt.error(mx.array(WEIGHTS).astype(mx.bfloat16)) == expected
    assert qt.error(bits.float().numpy().astype(ml_dtypes.bfloat16)) == expected
    assert qt.error(torch.from_numpy(WEIGHTS).half()) == qt.error(WEIGHTS.astype(np.float16))


def test_error_where_there_is_none_and_where_all_is_lost() -> None:
    qt = tensor("q8_0")
    none = qt.error(qt.dequantize())
    assert (none.rmse, none.relative, none.sqnr_db, none.max_abs) == (0, 0, math.inf, 0)
    assert none.cosine == pytest.approx(1, rel=1e-12)
    zeros = np.zeros_like(WEIGHTS)
    lost = qt.error(zeros)
    assert (lost.relative, lost.sqnr_db, lost.cosine) == (math.inf, -math.inf, 0)
    empty = QuantizedTensor.quantize(zeros, "q8_0").error(zeros)
    assert (empty.relative, empty.sqnr_db, empty.cosine) == (0, math.inf, 1)


@pytest.mark.parametrize(
    ("reference", "weights", "words"),
    [
        (WEIGHTS[0], None, "reference has shape (16, 512), the tensor (3, 16, 512)"),
        (WEIGHTS.astype(int), None, "reference has dtype int64"),
        (WEIGHTS, np.ones(511), "weights have shape (511,), not (512,) or (3, 512)"),
        (WEIGHTS, -np.ones(512), "weights must be finite, not negative and not all zero"),
        (WEIGHTS, np.zeros(512), "weights must be finite, not negative and not all zero"),
        (WEIGHTS, np.full(512, np.nan), "weights must be finite"),
        (WEIGHTS, np.full(512, np.inf), "weights must be finite"),
    ],
)
def test_error_of_what_does_not_fit(reference: Any, weights: Any, words: str) -> None:
    with pytest.raises(UsageError, match=re.escape(words)):
        tensor().error(reference, weights)


def test_error_names_what_is_not_finite() -> None:
    bad = WEIGHTS.copy()
    bad[2, 15, 500] = np.inf
    with pytest.raises(NonFiniteError, match=re.escape("reference inf at [2, 15, 500] is not finite")):
        tensor().error(bad)
    packed = tensor("f16").packed.copy()
    packed.view(np.float16)[1, 2, 3] = np.nan
    with pytest.raises(NonFiniteError, match=re.escape("decoded weight nan at [1, 2, 3]")):
        QuantizedTensor(packed, "f16").error(WEIGHTS)


# Files


@pytest.mark.parametrize("name", FORMATS)
def test_saved_and_loaded(name: str, tmp_path: Path) -> None:
    qt = tensor(name)
    qt.save(tmp_path / "qt.safetensors")
    again = QuantizedTensor.load(str(tmp_path / "qt.safetensors"))
    assert again.format == name
    assert np.array_equal(again.packed, qt.packed)
    assert not again.packed.flags.writeable
    assert [file.name for file in tmp_path.iterdir()] == ["qt.safetensors"]


@pytest.mark.parametrize("cut", [*CUTS, *GATHERED])
def test_parts_are_saved_as_they_are(cut: str, tmp_path: Path) -> None:
    part = tensor()[{**CUTS, **GATHERED}[cut]]
    part.save(tmp_path / "part")
    again = QuantizedTensor.load(tmp_path / "part")
    assert again.shape == part.shape
    assert np.array_equal(again.packed, part.packed)


def test_the_file_is_one_of_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "qt.safetensors"
    qt = tensor()
    qt.save(path)
    assert np.array_equal(safetensors.numpy.load_file(path)["weight"], qt.packed)
    with safetensors.safe_open(path, "numpy") as file:
        metadata = file.metadata()
    safetensors.numpy.save_file({"weight": np.ascontiguousarray(qt.packed)}, path, metadata)
    assert np.array_equal(QuantizedTensor.load(path).packed, qt.packed)


def test_a_file_that_is_replaced_stays_until_the_other_is_whole(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "qt.safetensors"
    tensor("q8_0").save(path)
    before = path.read_bytes()
    loaded = QuantizedTensor.load(path)

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OutputError, match=r"qt\.safetensors: writing failed: No space left"):
            tensor("q4_k").save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["qt.safetensors"]
    tensor("q4_k").save(path)
    assert QuantizedTensor.load(path).format == "q4_k"
    assert np.array_equal(loaded.packed, tensor("q8_0").packed)  # still mapped to the file that was


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="writing failed: No such file"):
        tensor().save(tmp_path / "missing" / "qt")
    with pytest.raises(CheckpointError, match="qt: cannot be read: No such file"):
        QuantizedTensor.load(tmp_path / "qt")


def safetensors_file(header: bytes, payload: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + payload


MINE = b'"__metadata__":{"quantkit.format":"q8_0"}'
FOREIGN: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "no header of safetensors"),
    "a GGUF": (b"GGUF" + bytes(100), "no header of safetensors\nquantkit.gguf.load_tensor"),
    "short": (struct.pack("<Q", 100) + b"{", "no header of safetensors"),
    "text": (safetensors_file(b"nonsense"), "no header of safetensors"),
    "a list": (safetensors_file(b"[1, 2]"), "no header of safetensors"),
    "foreign": (
        safetensors.numpy.save({"weight": WEIGHTS}),
        "not of a quantized tensor\n.*quantize these tensors first",
    ),
    "foreign metadata": (safetensors.numpy.save({"weight": WEIGHTS}, {"format": "pt"}), "not of a quantized tensor"),
    "more": (safetensors.numpy.save({"other": WEIGHTS}, {"quantkit.format": "q8_0"}), "not of a quantized tensor"),
    "another dtype": (safetensors.numpy.save({"weight": WEIGHTS}, {"quantkit.format": "q8_0"}), "packed must be uint8"),
    "blocks": (
        safetensors.numpy.save({"weight": np.zeros((2, 33), np.uint8)}, {"quantkit.format": "q8_0"}),
        "whole 34-byte blocks",
    ),
    "unknown format": (
        safetensors.numpy.save({"weight": np.zeros((2, 34), np.uint8)}, {"quantkit.format": "q8_7"}),
        "unknown format 'q8_7'",
    ),
    "truncated": (
        safetensors_file(b"{" + MINE + b',"weight":{"dtype":"U8","shape":[2,34],"data_offsets":[0,68]}}', bytes(67)),
        "truncated: tensor 'weight' ends at",
    ),
    "offsets": (
        safetensors_file(b"{" + MINE + b',"weight":{"dtype":"U8","shape":[2,34],"data_offsets":[0,34]}}', bytes(68)),
        "no sound entry",
    ),
    "negative": (
        safetensors_file(b"{" + MINE + b',"weight":{"dtype":"U8","shape":[-2,-34],"data_offsets":[0,68]}}', bytes(68)),
        "no sound entry",
    ),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_another_file_is_refused(kind: str, tmp_path: Path) -> None:
    data, words = FOREIGN[kind]
    (tmp_path / "file.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match=rf"file\.safetensors: [\s\S]*{words}"):
        QuantizedTensor.load(tmp_path / "file.safetensors")
