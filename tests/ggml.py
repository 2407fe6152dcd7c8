"""ggml's own quantizers, from the library inside llama-cpp-python: the peer that encoders are held against."""

from __future__ import annotations

import ctypes
from importlib.metadata import version
from pathlib import Path

import llama_cpp
import numpy as np
import numpy.typing as npt

from quantkit.kernels import FORMATS, row_bytes

VERSION = f"llama-cpp-python {version('llama-cpp-python')}"


def _load() -> ctypes.CDLL:
    folder = Path(llama_cpp.__file__).parent / "lib"
    found = sorted(path for path in folder.glob("*ggml-base*") if path.suffix in {".so", ".dylib", ".dll"})
    if not found:
        raise FileNotFoundError(f"no ggml-base library in {folder}")
    library = ctypes.CDLL(str(found[0]))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_void_p,
    ]
    return library


_library = _load()


def quantize(
    weights: npt.NDArray[np.float32], format: str, importance: npt.NDArray[np.float32] | None = None
) -> npt.NDArray[np.uint8]:
    """float32 (rows, cols) -> uint8 (rows, row_bytes), on the calling thread; importance is (cols,)."""
    weights = np.ascontiguousarray(weights, np.float32)
    if importance is not None:
        importance = np.ascontiguousarray(importance, np.float32)
        assert importance.shape == weights.shape[1:]
    out = np.zeros((weights.shape[0], row_bytes(format, weights.shape[1])), np.uint8)
    written = _library.ggml_quantize_chunk(
        FORMATS[format].ggml_type,
        weights.ctypes.data,
        out.ctypes.data,
        0,
        *weights.shape,
        None if importance is None else importance.ctypes.data,
    )
    assert written == out.nbytes
    return out
