"""quantkit and its peers behind one interface: load weights, prepare a job, take a turn.

Every class lives in a process of its own (turns.py). A job that a contender cannot do raises NotImplementedError.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from turns import Handle, attach, detach, own

SAMPLE = 64  # rows of the output that are compared with the product of the dequantized weights


class Contender:
    """One side. `_job` is what a turn does."""

    def __init__(self) -> None:
        self._job: Callable[[], object] = lambda: None
        self._x: np.ndarray = np.empty(0)
        self._ids: np.ndarray | None = None

    def describe(self) -> dict[str, Any]:
        """name, version, tier, flags and threading, for the document."""
        raise NotImplementedError

    def load(self, format: str, packed: Handle, cols: int, copied: bool = False) -> None:
        """uint8 (k, rows, row_bytes) or (k, experts, rows, row_bytes): k matrices that a turn goes through.

        copied: where reading is what is measured, since huge pages are read faster, and shared ones are small.
        """
        raise NotImplementedError(f"no {format}")

    def multiply(
        self, x: Handle, threads: int, *, mode: str = "fast", ids: Handle | None = None, repeats: int = 1
    ) -> np.ndarray:
        """Prepares y = x Wᵀ for all matrices, `repeats` times over; returns a sample of the first y."""
        raise NotImplementedError("no matmul")

    def encode(self, format: str, weights: Handle, threads: int, importance: Handle | None) -> None:
        raise NotImplementedError("no encoder")

    def decode(self, format: str, packed: Handle, cols: int, threads: int) -> np.ndarray:
        """Prepares decoding (rows, row_bytes) into a new float32 array; returns that array's first rows."""
        raise NotImplementedError("no decoder")

    def encode_groups(self, weights: Handle, bits: int, group_size: int, threads: int, dtype: str) -> float:
        """Prepares affine group quantization of weights of that type, with scales of the same, as MLX has it.

        weights: float32 that are exact in `dtype` ("f32" or "bf16"). Returns the squared error over that of zeros.
        """
        raise NotImplementedError("no group quantization")

    def load_groups(self, weights: Handle, bits: int, group_size: int) -> None:
        """Quantizes float32 (rows, cols) for `multiply`."""
        raise NotImplementedError("no groups")

    def multiply_groups(self, x: Handle, threads: int) -> np.ndarray:
        """Prepares y = x Wᵀ with the groups that were loaded; returns a sample of y."""
        raise NotImplementedError("no groups")

    def turn(self) -> float:
        start = time.perf_counter()
        self._job()
        return time.perf_counter() - start

    def unload(self) -> None:
        self._job = lambda: None
        detach()


class OfTier(Contender):
    """quantkit."""

    def __init__(self, tier: str) -> None:
        super().__init__()
        os.environ["QUANTKIT_TIER"] = tier
        from quantkit import kernels

        self._kernels = kernels

    def describe(self) -> dict[str, Any]:
        info = self._kernels.build_info()
        return {
            "name": "quantkit", "version": "this commit", "tier": info["tier"],
            "flags": [], "threading": "own pool", "compiler": info["compiler"],
        }  # fmt: skip


class Quantkit(OfTier):
    """Everything, with weights as they are in a file."""

    def load(self, format: str, packed: Handle, cols: int, copied: bool = False) -> None:
        self._format, self._packed = format, own(packed) if copied else attach(packed)

    def multiply(
        self, x: Handle, threads: int, *, mode: str = "fast", ids: Handle | None = None, repeats: int = 1
    ) -> np.ndarray:
        inputs, format, matrices = attach(x), self._format, list(self._packed) * repeats
        # like the peers, whose result has a place from the start
        if ids is None:
            out = np.empty((len(inputs), matrices[0].shape[0]), np.float32)

            def product(matrix: np.ndarray) -> np.ndarray:
                return self._kernels.matmul(inputs, matrix, format, mode=mode, threads=threads, out=out)
        else:
            experts, out = attach(ids), np.empty((len(inputs), matrices[0].shape[1]), np.float32)

            def product(matrix: np.ndarray) -> np.ndarray:
                return self._kernels.matmul_experts(
                    inputs, matrix, format, experts, mode=mode, threads=threads, out=out
                )

        self._job = lambda: [product(one) for one in matrices]
        return product(matrices[0])[:, :SAMPLE].copy()

    def encode(self, format: str, weights: Handle, threads: int, importance: Handle | None) -> None:
        from quantkit.convert.weighting import weighting

        source, columns = attach(weights), None if importance is None else attach(importance)
        kind = weighting(format)
        quantize = self._kernels.quantize
        self._job = lambda: quantize(source, format, importance=columns, weighting=kind, threads=threads)

    def decode(self, format: str, packed: Handle, cols: int, threads: int) -> np.ndarray:
        source, dequantize = attach(packed), self._kernels.dequantize
        self._job = lambda: dequantize(source, format, threads=threads)
        return dequantize(source[:4], format, threads=1)

    def encode_groups(self, weights: Handle, bits: int, group_size: int, threads: int, dtype: str) -> float:
        source, kernels = own(weights), self._kernels  # MLX copies them too
        given = source if dtype == "f32" else (source.view(np.uint32) >> 16).astype(np.uint16)
        self._job = lambda: kernels.quantize_groups(given, bits, group_size, scale_dtype=dtype, threads=threads)
        packed = kernels.quantize_groups(given, bits, group_size, scale_dtype=dtype)
        return _error(kernels.dequantize_groups(*packed, bits, group_size), source)

    def load_groups(self, weights: Handle, bits: int, group_size: int) -> None:
        self._groups = self._kernels.QuantizedTensor.quantize(attach(weights), f"int{bits}_g{group_size}")

    def multiply_groups(self, x: Handle, threads: int) -> np.ndarray:
        inputs, groups = attach(x), self._groups
        self._job = lambda: groups.matmul(inputs, mode="fast", threads=threads)
        return np.asarray(groups.matmul(inputs, mode="fast", threads=threads))[:, :SAMPLE].copy()

    def unload(self) -> None:
        self._packed = np.empty(0)
        super().unload()


class QuantkitRepacked(OfTier):
    """Products with repacked weights."""

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"repacked": True}

    def load(self, format: str, packed: Handle, cols: int, copied: bool = False) -> None:
        given, kernels = attach(packed), self._kernels
        # in one piece of memory, as the other sides have theirs
        rows, row_bytes = given.shape[-2:]
        whole = kernels.QuantizedTensor(given.reshape(-1, rows, row_bytes), format).repack()
        parts = whole.packed.reshape(*given.shape[:-2], *whole.packed.shape[-2:])
        self._tensors = [kernels.RepackedTensor(part, format, rows) for part in parts]

    def multiply(
        self, x: Handle, threads: int, *, mode: str = "fast", ids: Handle | None = None, repeats: int = 1
    ) -> np.ndarray:
        if mode != "fast":
            raise NotImplementedError(mode)
        inputs, tensors = attach(x), self._tensors * repeats
        out = np.empty((len(inputs), tensors[0].shape[-2]), np.float32)
        if ids is None:
            products = [partial(one.matmul, inputs, threads=threads, out=out) for one in tensors]
        else:
            products = [partial(one.matmul_experts, inputs, attach(ids), threads=threads, out=out) for one in tensors]
        self._job = lambda: [product() for product in products]
        return np.asarray(products[0]())[:, :SAMPLE].copy()

    def unload(self) -> None:
        self._tensors = []
        super().unload()


def _error(decoded: np.ndarray, weights: np.ndarray) -> float:
    """Squared error over that of zeros."""
    exact = weights.astype(np.float64)
    return float(np.sum((decoded - exact) ** 2) / np.sum(exact**2))


def llama_cpp_objects() -> list[Path]:
    return _objects("llama_cpp", "lib", ["ggml-base", "ggml-cpu", "ggml"])


def libggml_objects() -> list[Path]:
    return _objects("libggml", "lib64", ["ggml-base", "ggml-cpu", "ggml"])


def ik_objects() -> list[Path]:
    return _objects("ik_llama_cpp", "lib", ["ggml"])


def _objects(package: str, folder: str, names: list[str]) -> list[Path]:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{package} is not installed")
    suffix = ".dylib" if sys.platform == "darwin" else ".so"
    found = [Path(spec.origin).parent / folder / f"lib{name}{suffix}" for name in names]
    if missing := [path for path in found if not path.exists()]:
        raise FileNotFoundError(f"no {missing[0]}")
    return found


class Ggml(Contender):
    """A build of ggml: llama.cpp's or ik_llama.cpp's, with weights as they are in the file or repacked."""

    def __init__(self, distribution: str, objects: list[str] | None = None, repacked: bool = False) -> None:
        super().__init__()
        from ggml_library import GgmlLibrary

        found = {
            "llama-cpp-python": llama_cpp_objects,
            "libggml-python": libggml_objects,
            "ik-llama-cpp-python": ik_objects,
        }
        paths = [Path(path) for path in objects] if objects else found[distribution]()
        self._distribution, self._given, self._repacked = distribution, bool(objects), repacked
        self._library = GgmlLibrary(paths)
        self._backends: dict[int, int] = {}
        self._weights: Any = None
        self._products: Any = None

    def describe(self) -> dict[str, Any]:
        flags = self._library.flags()
        return {
            "name": "ik_llama.cpp" if self._library.is_fork else "ggml",
            "version": f"{self._distribution} {version(self._distribution)}"
            + (", its source built for this machine" if self._given else ""),
            "tier": next((tier for tier in ("avx512", "avx2", "neon") if tier in flags), "scalar"),
            "flags": flags,
            "threading": "OpenMP" if self._uses_openmp() else "its thread pool",
            "repacked": self._repacked,
        }

    def _uses_openmp(self) -> bool:
        maps = Path("/proc/self/maps")
        return maps.exists() and "libgomp" in maps.read_text()

    def _backend(self, threads: int) -> int:
        if threads not in self._backends:
            self._backends[threads] = self._library.backend(threads)
        return self._backends[threads]

    def load(self, format: str, packed: Handle, cols: int, copied: bool = False) -> None:
        from ggml_library import Weights

        from quantkit.kernels import FORMATS

        source = own(packed) if copied and not self._repacked else attach(packed)
        self._weights = Weights(
            self._library, self._backend(1), FORMATS[format].ggml_type, source, cols, repacked=self._repacked
        )

    def multiply(
        self, x: Handle, threads: int, *, mode: str = "fast", ids: Handle | None = None, repeats: int = 1
    ) -> np.ndarray:
        from ggml_library import Products

        if mode != "fast":
            raise NotImplementedError("ggml quantizes activations")
        if self._products is not None:
            self._products.close()
        experts = None if ids is None else attach(ids)
        self._products = Products(self._backend(threads), self._weights, attach(x), experts, repeats=repeats)
        self._job = self._products.compute
        self._job()
        return self._products.output()[:, :SAMPLE].copy()

    def encode(self, format: str, weights: Handle, threads: int, importance: Handle | None) -> None:
        from quantkit.kernels import FORMATS, row_bytes

        if self._repacked:
            raise NotImplementedError("the same encoder as without")
        source = attach(weights)
        columns = None if importance is None else attach(importance).ctypes.data
        function, number = self._library.ggml_quantize_chunk, FORMATS[format].ggml_type
        rows, cols = source.shape
        n_bytes = row_bytes(format, cols)

        def piece(out: np.ndarray, start: int, stop: int) -> None:
            function(number, source[start:].ctypes.data, out[start:].ctypes.data, 0, stop - start, cols, columns)

        self._split(rows, threads, lambda: np.empty((rows, n_bytes), np.uint8), piece)

    def decode(self, format: str, packed: Handle, cols: int, threads: int) -> np.ndarray:
        from ctypes import c_int64, c_void_p

        from ggml_library import DECODERS

        if self._repacked or not self._library.has(DECODERS[format]):
            raise NotImplementedError(f"no decoder of {format}")
        source, function = attach(packed), self._library.raw(DECODERS[format])
        function.restype, function.argtypes = None, [c_void_p, c_void_p, c_int64]
        rows = len(source)

        def piece(out: np.ndarray, start: int, stop: int) -> None:
            function(source[start:].ctypes.data, out[start:].ctypes.data, (stop - start) * cols)

        return self._split(rows, threads, lambda: np.empty((rows, cols), np.float32), piece)[:4].copy()

    def _split(
        self, rows: int, threads: int, new: Callable[[], np.ndarray], piece: Callable[[np.ndarray, int, int], None]
    ) -> np.ndarray:
        """Rows cut into as many runs as threads, as llama-quantize does it; ctypes lets the lock of Python go."""
        pool = ThreadPoolExecutor(max(1, threads - 1))
        cuts = [rows * i // threads for i in range(threads + 1)]

        def job() -> np.ndarray:
            out = new()
            others = [pool.submit(piece, out, cuts[i], cuts[i + 1]) for i in range(1, threads)]
            piece(out, cuts[0], cuts[1])
            for other in others:
                other.result()
            return out

        self._job = job
        return job()

    def unload(self) -> None:
        if self._products is not None:
            self._products.close()
        if self._weights is not None:
            self._weights.close()
        self._products = self._weights = None
        super().unload()


class Blas(Contender):
    """numpy's float32 product with weights that were decoded beforehand: what `exact` is held against."""

    def describe(self) -> dict[str, Any]:
        from threadpoolctl import threadpool_info

        names = (f"{one['internal_api']} {one['version']} {one.get('architecture', '')}" for one in threadpool_info())
        found = next(names, "its BLAS").strip()
        return {
            "name": "numpy f32", "version": f"numpy {version('numpy')}, {found}", "tier": "",
            "flags": [], "threading": "threadpoolctl",
        }  # fmt: skip

    def load(self, format: str, packed: Handle, cols: int, copied: bool = False) -> None:
        from quantkit.kernels import dequantize

        if len(packed.shape) > 3 or packed.shape[0] > 1:
            raise NotImplementedError("one matrix at a time")
        self._weights = dequantize(attach(packed)[0], format)

    def multiply(
        self, x: Handle, threads: int, *, mode: str = "fast", ids: Handle | None = None, repeats: int = 1
    ) -> np.ndarray:
        from threadpoolctl import threadpool_limits

        if mode != "exact":
            raise NotImplementedError("it is exact")
        inputs, weights = attach(x), self._weights
        threadpool_limits(threads, "blas")
        self._job = lambda: inputs @ weights.T
        return (inputs @ weights[:SAMPLE].T).copy()


class Mlx(Contender):
    """MLX on its CPU device; it offers no choice of threads."""

    def __init__(self) -> None:
        super().__init__()
        import mlx.core as mx

        mx.set_default_device(mx.cpu)
        self._mx = mx

    def describe(self) -> dict[str, Any]:
        return {"name": "mlx", "version": f"mlx {version('mlx')}", "tier": "", "flags": [], "threading": "its own"}

    def encode_groups(self, weights: Handle, bits: int, group_size: int, threads: int, dtype: str) -> float:
        mx = self._mx
        source = mx.array(attach(weights)).astype({"f32": mx.float32, "bf16": mx.bfloat16}[dtype])
        mx.eval(source)
        how = {"group_size": group_size, "bits": bits}
        self._job = lambda: mx.eval(mx.quantize(source, **how))
        packed, scales, biases = mx.quantize(source, **how)
        decoded = mx.dequantize(packed, scales.astype(mx.float32), biases.astype(mx.float32), **how)
        return _error(np.array(decoded), attach(weights))

    def load_groups(self, weights: Handle, bits: int, group_size: int) -> None:
        mx = self._mx
        self._groups = (group_size, bits)
        self._packed = mx.quantize(mx.array(attach(weights)), group_size=group_size, bits=bits)
        mx.eval(self._packed)

    def multiply_groups(self, x: Handle, threads: int) -> np.ndarray:
        if x.shape[0] > 64:
            raise NotImplementedError("a turn would take minutes")
        mx, (group_size, bits) = self._mx, self._groups
        inputs = mx.array(attach(x))

        def product() -> Any:
            out = mx.quantized_matmul(inputs, *self._packed, transpose=True, group_size=group_size, bits=bits)
            mx.eval(out)
            return out

        self._job = product
        return np.array(product())[:, :SAMPLE].copy()


class Torch(Contender):
    """torch's int4 product on CPUs, bfloat16 activations: what torchao lowers int4 weights to there."""

    def __init__(self) -> None:
        super().__init__()
        import torch

        self._torch = torch

    def describe(self) -> dict[str, Any]:
        tier = self._torch.backends.cpu.get_cpu_capability().lower()
        return {
            "name": "torch int4", "version": f"torch {version('torch')}", "tier": tier,
            "flags": [], "threading": "torch.set_num_threads",
        }  # fmt: skip

    def load_groups(self, weights: Handle, bits: int, group_size: int) -> None:
        if bits != 4:
            raise NotImplementedError("int4 only")
        torch = self._torch
        groups = torch.from_numpy(attach(weights)).unflatten(1, (-1, group_size))
        low, high = groups.amin(-1), groups.amax(-1)
        scale = ((high - low) / 15).clamp(min=1e-9)
        codes = ((groups - low[..., None]) / scale[..., None]).round().clamp(0, 15).to(torch.int32).flatten(1)
        self._packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
        # A weight is (code - 8) scale + zero.
        both = torch.stack([scale, low + 8 * scale], dim=-1).transpose(0, 1)
        self._scales, self._group_size = both.to(torch.bfloat16).contiguous(), group_size

    def multiply_groups(self, x: Handle, threads: int) -> np.ndarray:
        torch = self._torch
        torch.set_num_threads(threads)
        inputs = torch.from_numpy(attach(x)).to(torch.bfloat16)
        function = torch.ops.aten._weight_int4pack_mm_for_cpu

        def product() -> Any:
            return function(inputs, self._packed, self._group_size, self._scales)

        self._job = product
        return product()[:, :SAMPLE].float().numpy().copy()
