"""ggml's C functions through ctypes: llama.cpp's library, and that of ik_llama.cpp, which forked from it.

Both are driven through the backend interface, as llama.cpp drives them: weights in a buffer, one graph, one call of
ggml_backend_graph_compute with n threads and (llama.cpp's) a thread pool that lasts.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Sequence
from ctypes import POINTER, Structure, c_bool, c_char_p, c_int, c_int64, c_size_t, c_uint32, c_void_p
from pathlib import Path
from typing import Any

import numpy as np

F32, I32 = 0, 26
FLAGS = ("avx2", "avx_vnni", "avx512", "avx512_vnni", "avx512_bf16", "neon", "dotprod", "matmul_int8", "sve")
# What the library calls its decoders of our formats.
DECODERS = {name: f"dequantize_row_{name.replace('_k', '_K')}" for name in (
    "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs", "mxfp4",
)}  # fmt: skip


class InitParams(Structure):
    _fields_ = [("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool)]


class ThreadpoolParams(Structure):
    _fields_ = [
        ("cpumask", c_bool * 512),
        ("n_threads", c_int),
        ("prio", c_int),
        ("poll", c_uint32),
        ("strict_cpu", c_bool),
        ("paused", c_bool),
    ]


_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "ggml_init": (c_void_p, [InitParams]),
    "ggml_log_set": (None, [c_void_p, c_void_p]),
    "ggml_free": (None, [c_void_p]),
    "ggml_tensor_overhead": (c_size_t, []),
    "ggml_graph_overhead_custom": (c_size_t, [c_size_t, c_bool]),
    "ggml_new_tensor_2d": (c_void_p, [c_void_p, c_int, c_int64, c_int64]),
    "ggml_new_tensor_3d": (c_void_p, [c_void_p, c_int, c_int64, c_int64, c_int64]),
    "ggml_get_data": (c_void_p, [c_void_p]),
    "ggml_mul_mat": (c_void_p, [c_void_p, c_void_p, c_void_p]),
    "ggml_mul_mat_id": (c_void_p, [c_void_p, c_void_p, c_void_p, c_void_p]),
    "ggml_new_graph_custom": (c_void_p, [c_void_p, c_size_t, c_bool]),
    "ggml_build_forward_expand": (None, [c_void_p, c_void_p]),
    "ggml_quantize_chunk": (c_size_t, [c_int, c_void_p, c_void_p, c_int64, c_int64, c_int64, c_void_p]),
    "ggml_backend_alloc_ctx_tensors_from_buft": (c_void_p, [c_void_p, c_void_p]),
    "ggml_backend_cpu_buffer_type": (c_void_p, []),
    "ggml_backend_cpu_buffer_from_ptr": (c_void_p, [c_void_p, c_size_t]),
    "ggml_backend_tensor_alloc": (c_int, [c_void_p, c_void_p, c_void_p]),
    "ggml_backend_tensor_set": (None, [c_void_p, c_void_p, c_size_t, c_size_t]),
    "ggml_backend_tensor_get": (None, [c_void_p, c_void_p, c_size_t, c_size_t]),
    "ggml_backend_buffer_free": (None, [c_void_p]),
    "ggml_backend_buffer_get_base": (c_void_p, [c_void_p]),
    "ggml_backend_buffer_get_size": (c_size_t, [c_void_p]),
    "ggml_backend_cpu_init": (c_void_p, []),
    "ggml_backend_cpu_set_n_threads": (None, [c_void_p, c_int]),
    "ggml_backend_supports_op": (c_bool, [c_void_p, c_void_p]),
    "ggml_backend_graph_compute": (c_int, [c_void_p, c_void_p]),
    # llama.cpp only
    "ggml_backend_cpu_reg": (c_void_p, []),
    "ggml_backend_reg_dev_get": (c_void_p, [c_void_p, c_size_t]),
    "ggml_backend_reg_get_proc_address": (c_void_p, [c_void_p, c_char_p]),
    "ggml_backend_buft_name": (c_char_p, [c_void_p]),
    "ggml_backend_cpu_set_threadpool": (None, [c_void_p, c_void_p]),
    "ggml_threadpool_params_default": (ThreadpoolParams, [c_int]),
    "ggml_threadpool_new": (c_void_p, [POINTER(ThreadpoolParams)]),
    # ik_llama.cpp only
    "iqk_repack_tensor": (None, [c_void_p]),
}


class GgmlLibrary:
    """The functions of one build, wherever among its shared objects they lie."""

    def __init__(self, objects: Sequence[Path]) -> None:
        self._objects = [ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL) for path in objects]
        self._silence = ctypes.CFUNCTYPE(None, c_int, c_char_p, c_void_p)(lambda level, text, data: None)
        if self.has("ggml_log_set"):
            self.ggml_log_set(self._silence, None)

    def has(self, name: str) -> bool:
        return any(hasattr(found, name) for found in self._objects)

    def raw(self, name: str) -> Any:
        for found in self._objects:
            if hasattr(found, name):
                return getattr(found, name)
        raise AttributeError(f"no {name} in {self._objects}")

    def __getattr__(self, name: str) -> Any:
        function = self.raw(name)
        function.restype, function.argtypes = _SIGNATURES[name]
        setattr(self, name, function)
        return function

    @property
    def is_fork(self) -> bool:
        return self.has("iqk_repack_tensor")

    def flags(self) -> list[str]:
        """What the library was built to use of the processor, by its own account."""
        if self.has("ggml_cpu_init"):
            self.raw("ggml_cpu_init")()
        return [flag for flag in FLAGS if self.has(f"ggml_cpu_has_{flag}") and self.raw(f"ggml_cpu_has_{flag}")()]

    def backend(self, threads: int) -> int:
        """A CPU backend that computes on `threads` threads."""
        backend = self.ggml_backend_cpu_init()
        self.ggml_backend_cpu_set_n_threads(backend, threads)
        if not self.is_fork:
            pool = self.ggml_threadpool_new(ctypes.byref(self.ggml_threadpool_params_default(threads)))
            self.ggml_backend_cpu_set_threadpool(backend, pool)
        return backend

    def repack_type(self) -> int | None:
        """llama.cpp's extra buffer type of the CPU that repacks what is written to it."""
        if self.is_fork:
            return None
        registry = self.ggml_backend_cpu_reg()
        address = self.ggml_backend_reg_get_proc_address(registry, b"ggml_backend_dev_get_extra_bufts")
        if not address:
            return None
        prototype = ctypes.CFUNCTYPE(POINTER(c_void_p), c_void_p)
        types = prototype(address)(self.ggml_backend_reg_dev_get(registry, 0))
        at = 0
        while types and types[at]:
            if b"REPACK" in self.ggml_backend_buft_name(types[at]):
                return types[at]
            at += 1
        return None


def _ask_for_huge_pages(address: int, n_bytes: int) -> None:
    """As numpy does for its arrays: whole pages between, before anything is written to them."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return
    first = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = [c_void_p, c_size_t, c_int]
    advise(first, (address + n_bytes - first) // mmap.PAGESIZE * mmap.PAGESIZE, mmap.MADV_HUGEPAGE)


class Weights:
    """Matrices where the library wants them: as they are, not copied, or repacked.

    Args:
        packed: uint8, C-contiguous, (k, rows, row_bytes), or (k, experts, rows, row_bytes) for mul_mat_id.
        repacked: llama.cpp's repacking buffer (its default), or ik_llama.cpp's interleaved rows (its option -rtr).

    Raises:
        NotImplementedError: the library does not repack this type on this processor.
    """

    def __init__(
        self,
        library: GgmlLibrary,
        backend: int,
        ggml_type: int,
        packed: np.ndarray,
        cols: int,
        *,
        repacked: bool = False,
    ) -> None:
        self.library, self.cols, self.packed = library, cols, packed
        shape = packed.shape[1:-1]
        self.rows, self.is_stack = shape[-1], len(shape) == 2
        self._context = library.ggml_init(InitParams(library.ggml_tensor_overhead() * (len(packed) + 3), None, True))
        new = library.ggml_new_tensor_3d if self.is_stack else library.ggml_new_tensor_2d
        self.tensors: list[int] = [new(self._context, ggml_type, cols, *reversed(shape)) for _ in packed]
        if not repacked:
            self._buffer = library.ggml_backend_cpu_buffer_from_ptr(packed.ctypes.data, packed.nbytes)
            for tensor, one in zip(self.tensors, packed, strict=True):
                library.ggml_backend_tensor_alloc(self._buffer, tensor, one.ctypes.data)
            return
        buffer_type = library.repack_type() or library.ggml_backend_cpu_buffer_type()
        self._buffer = library.ggml_backend_alloc_ctx_tensors_from_buft(self._context, buffer_type)
        _ask_for_huge_pages(
            library.ggml_backend_buffer_get_base(self._buffer), library.ggml_backend_buffer_get_size(self._buffer)
        )
        if not library.is_fork and not self._supported(backend):
            self.close()
            raise NotImplementedError(f"type {ggml_type} is not repacked here")
        for tensor, one in zip(self.tensors, packed, strict=True):
            library.ggml_backend_tensor_set(tensor, one.ctypes.data, 0, one.nbytes)
            if library.is_fork:
                library.iqk_repack_tensor(tensor)
        if library.is_fork and c_int.from_address(self.tensors[0]).value == ggml_type:  # its first field is the type
            self.close()
            raise NotImplementedError(f"type {ggml_type} is not repacked here")

    def _supported(self, backend: int) -> bool:
        """As llama.cpp asks before it chooses a buffer."""
        context = self.library.ggml_init(InitParams(self.library.ggml_tensor_overhead() * 8, None, True))
        output, _, _ = product(self.library, context, self.tensors[0], self.cols, 1, self.is_stack)
        supported = bool(self.library.ggml_backend_supports_op(backend, output))
        self.library.ggml_free(context)
        return supported

    def close(self) -> None:
        self.library.ggml_backend_buffer_free(self._buffer)
        self.library.ggml_free(self._context)


def product(
    library: GgmlLibrary,
    context: int,
    weights: int,
    cols: int,
    n: int,
    is_stack: bool,
    inputs: tuple[int, int] = (0, 0),
) -> tuple[int, int, int]:
    """(output, x, ids) of one product in a context; x and ids are made unless given."""
    if not is_stack:
        x = inputs[0] or library.ggml_new_tensor_2d(context, F32, cols, n)
        return library.ggml_mul_mat(context, weights, x), x, 0
    x = inputs[0] or library.ggml_new_tensor_3d(context, F32, cols, 1, n)
    ids = inputs[1] or library.ggml_new_tensor_2d(context, I32, 1, n)
    return library.ggml_mul_mat_id(context, weights, x, ids), x, ids


class Products:
    """One graph of y = x Wᵀ for every matrix of `weights`, `repeats` times; mul_mat_id for stacks of experts.

    Args:
        x: float32 (n, cols). ids: int32 (n,), with experts.
    """

    def __init__(
        self, backend: int, weights: Weights, x: np.ndarray, ids: np.ndarray | None = None, *, repeats: int = 1
    ) -> None:
        library = self._library = weights.library
        self._backend, k, n = backend, len(weights.tensors) * repeats, len(x)
        room = library.ggml_tensor_overhead() * (k + 8) + library.ggml_graph_overhead_custom(k + 8, False)
        self._context = library.ggml_init(InitParams(room, None, True))
        self._outputs = []
        inputs = (0, 0)
        for tensor in weights.tensors * repeats:
            output, *given = product(library, self._context, tensor, weights.cols, n, weights.is_stack, inputs)
            inputs = (given[0], given[1])
            self._outputs.append(output)
        self._buffer = library.ggml_backend_alloc_ctx_tensors_from_buft(
            self._context, library.ggml_backend_cpu_buffer_type()
        )
        library.ggml_backend_tensor_set(inputs[0], x.ctypes.data, 0, x.nbytes)
        if ids is not None:
            library.ggml_backend_tensor_set(inputs[1], ids.ctypes.data, 0, ids.nbytes)
        self._graph = library.ggml_new_graph_custom(self._context, k + 8, False)
        for output in self._outputs:
            library.ggml_build_forward_expand(self._graph, output)
        self._shape = (n, weights.rows)

    def compute(self) -> None:
        status = self._library.ggml_backend_graph_compute(self._backend, self._graph)
        if status != 0:
            raise RuntimeError(f"ggml_backend_graph_compute returned {status}")

    def output(self) -> np.ndarray:
        """float32 (n, rows): the first product."""
        out = np.empty(self._shape, np.float32)
        self._library.ggml_backend_tensor_get(self._outputs[0], out.ctypes.data, 0, out.nbytes)
        return out

    def close(self) -> None:
        self._library.ggml_backend_buffer_free(self._buffer)
        self._library.ggml_free(self._context)
