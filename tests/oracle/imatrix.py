"""An importance matrix as llama.cpp's own tool takes it: sums of squared inputs, per tensor, expert and column.

Collected from llama.cpp's graph through its scheduler callback, so what a tensor's input is (Llama 4 scales an expert's
input by its router weight) is the runtime's word and not ours.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from llama_cpp import _ggml
from numpy.typing import NDArray
from tests.oracle.llama import Model

MIN_ROWS = 16  # the tool skips smaller products


class _Tensor(ctypes.Structure):
    """ggml_tensor of the pinned llama-cpp-python; `test_llama` reads known tensors through it."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
        ("extra", ctypes.c_void_p),
    )


_op_name = _ggml.libggml.ggml_op_name
_op_name.argtypes, _op_name.restype = [ctypes.c_int], ctypes.c_char_p


def _at(address: int) -> _Tensor:
    return ctypes.cast(address, ctypes.POINTER(_Tensor)).contents


def _rows(tensor: _Tensor, kind: type) -> NDArray[np.generic]:
    """The tensor as (rows, ne0), whatever its strides over rows; a copy."""
    ne, nb = list(tensor.ne), list(tensor.nb)
    size = np.dtype(kind).itemsize
    assert nb[0] == size
    n_bytes = sum((n - 1) * b for n, b in zip(ne, nb, strict=True)) + size
    raw = np.ctypeslib.as_array(ctypes.cast(tensor.data, ctypes.POINTER(ctypes.c_uint8)), (n_bytes,))
    view = np.lib.stride_tricks.as_strided(raw.view(kind), shape=ne[::-1], strides=nb[::-1])
    return view.reshape(-1, ne[0]).copy()


@dataclass
class Entry:
    """Σx² (experts, cols) and rows seen (experts,) of one tensor; a dense tensor has one expert."""

    sums: NDArray[np.float64]
    counts: NDArray[np.int64]


class Collector:
    """A scheduler callback that fills `entries` by tensor name."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}

    def __call__(self, address: int, ask: bool, _: int) -> bool:
        node = _at(address)
        operation = _op_name(node.op)
        if operation not in (b"MUL_MAT", b"MUL_MAT_ID"):
            return not ask
        weight, inputs = _at(node.src[0]), _at(node.src[1])
        name = weight.name.decode()
        wanted = name.startswith("blk.") and name.endswith(".weight")
        wanted &= operation == b"MUL_MAT_ID" or inputs.ne[1] >= MIN_ROWS
        if ask or not wanted:
            return wanted or not ask
        x = _rows(inputs, np.float32).astype(np.float64)
        n_experts = weight.ne[2] if operation == b"MUL_MAT_ID" else 1
        entry = self.entries.setdefault(
            name, Entry(np.zeros((n_experts, x.shape[1])), np.zeros(n_experts, dtype=np.int64))
        )
        if operation == b"MUL_MAT":
            entry.sums[0] += np.square(x).sum(0)
            entry.counts[0] += len(x)
            return True
        chosen = _rows(_at(node.src[2]), np.int32)  # (tokens, used)
        n_inputs = inputs.ne[1]  # 1: all used experts of a token share its input
        x = x.reshape(len(chosen), n_inputs, -1)
        for used in range(chosen.shape[1]):
            one_hot = np.eye(n_experts)[chosen[:, used]]  # (tokens, experts)
            entry.sums += one_hot.T @ np.square(x[:, used % n_inputs])
            entry.counts += one_hot.sum(0).astype(np.int64)
        return True


def collect(path: Path, chunks: NDArray[np.int32]) -> dict[str, Entry]:
    """Run the GGUF at `path` over token `chunks` (n, n_ctx) and return the sums by tensor name."""
    collector = Collector()
    with Model(path, n_ctx=chunks.shape[1], observe=collector) as model:
        for chunk in chunks:
            model.logits(chunk)
    return collector.entries


def write(path: Path, entries: Mapping[str, Entry], *, dataset: str, n_chunks: int, chunk_size: int) -> Path:
    """llama.cpp's GGUF form of an importance matrix."""
    writer = gguf.GGUFWriter(path, arch="")
    writer.kv_data[0].pop("general.architecture", None)
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", [dataset])
    writer.add_uint32("imatrix.chunk_count", n_chunks)
    writer.add_uint32("imatrix.chunk_size", chunk_size)
    for name, entry in sorted(entries.items()):
        writer.add_tensor(f"{name}.in_sum2", entry.sums.astype(np.float32))
        writer.add_tensor(f"{name}.counts", entry.counts.astype(np.float32)[:, None])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def importance(entries: Mapping[str, Entry]) -> dict[str, NDArray[np.float32]]:
    """What llama.cpp's quantizer is handed by its tool: Σx²/count, and ones for an expert that was never chosen."""
    result = {}
    for name, entry in entries.items():
        seen = entry.counts > 0
        means = entry.sums.astype(np.float32) / np.maximum(entry.counts, 1)[:, None].astype(np.float32)
        result[name] = np.where(seen[:, None], means, np.float32(1)).astype(np.float32)
    return result


class _InitParams(ctypes.Structure):
    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.POINTER(ctypes.c_void_p)))


def _function(name: str, result: type | None, *arguments: type) -> Callable[..., Any]:
    found = getattr(_ggml.libggml, name)
    found.restype, found.argtypes = result, list(arguments)
    return found  # type: ignore[no-any-return]


_pointer, _text, _index = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int64
_open = _function("gguf_init_from_file", _pointer, _text, _InitParams)
_close = _function("gguf_free", None, _pointer)
_free = _function("ggml_free", None, _pointer)
_n_tensors = _function("gguf_get_n_tensors", _index, _pointer)
_tensor_name = _function("gguf_get_tensor_name", _text, _pointer, _index)
_tensor = _function("ggml_get_tensor", _pointer, _pointer, _text)
_find_key = _function("gguf_find_key", _index, _pointer, _text)
_u32 = _function("gguf_get_val_u32", ctypes.c_uint32, _pointer, _index)
_array_length = _function("gguf_get_arr_n", ctypes.c_size_t, _pointer, _index)
_array_text = _function("gguf_get_arr_str", _text, _pointer, _index, ctypes.c_size_t)


@dataclass
class Loaded:
    """What llama-quantize takes from a file."""

    entries: dict[str, Entry]
    datasets: list[str]
    n_chunks: int
    chunk_size: int


def load(path: Path) -> Loaded:
    """Read an imatrix as llama-quantize does, by ggml's own reader of GGUF: tensors by suffix, others not at all."""
    context = _pointer()
    file = _open(str(path).encode(), _InitParams(False, ctypes.pointer(context)))
    assert file, f"ggml cannot read {path}"
    try:
        at = [_find_key(file, key) for key in (b"imatrix.datasets", b"imatrix.chunk_count", b"imatrix.chunk_size")]
        assert min(at) >= 0, "missing imatrix metadata"
        found: dict[str, dict[str, NDArray[np.float32]]] = {}
        for i in range(_n_tensors(file)):
            full = _tensor_name(file, i)
            for suffix in (".in_sum2", ".counts"):
                if full.decode().endswith(suffix):
                    tensor = _at(_tensor(context, full))
                    assert tensor.type == 0, "sums and counts must be F32"
                    rows = _rows(tensor, np.float32).astype(np.float32)
                    found.setdefault(full.decode().removesuffix(suffix), {})[suffix] = rows
        assert found, "no data"
        assert all(len(pair) == 2 for pair in found.values()), "mismatched sums and counts"
        return Loaded(
            {
                name: Entry(pair[".in_sum2"].astype(np.float64), np.rint(pair[".counts"]).ravel().astype(np.int64))
                for name, pair in found.items()
            },
            [_array_text(file, at[0], i).decode() for i in range(_array_length(file, at[0]))],
            _u32(file, at[1]),
            _u32(file, at[2]),
        )
    finally:
        _close(file)
        _free(context)
