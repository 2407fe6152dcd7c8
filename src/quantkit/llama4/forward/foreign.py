"""Tensor types that the machine room has no codec for, decoded by the `gguf` package: slowly, and exactly."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from quantkit.llama4.forward.floats import Floats

_ELEMENTS = 1 << 20  # at a time: the package makes several copies
_BLOCK_BYTES = 32  # of copies for an element, about


@cache
def is_known(type: str) -> bool:
    """Whether the package decodes a type in our spelling ("iq3_s")."""
    try:
        dequantize(np.zeros((1, row_bytes(type, _block(type)[0])), np.uint8), GGMLQuantizationType[type.upper()])
    except (KeyError, NotImplementedError):
        return False
    return True


def row_bytes(type: str, cols: int) -> int:
    size, n_bytes = _block(type)
    return cols // size * n_bytes


def decoded(packed: npt.NDArray[np.uint8], type: str, cols: int) -> Floats:
    """uint8 (rows, row_bytes) -> float32 (rows, cols), some rows at a time."""
    out = np.empty((len(packed), cols), np.float32)
    step = max(1, _ELEMENTS // cols)
    for first in range(0, len(packed), step):
        part = slice(first, first + step)
        out[part] = dequantize(packed[part], GGMLQuantizationType[type.upper()])
    return out


def reading_bytes(type: str, rows: int, cols: int) -> int:
    """What decoding takes beside its result."""
    return rows * row_bytes(type, cols) + min(rows * cols, max(cols, _ELEMENTS)) * _BLOCK_BYTES


def _block(type: str) -> tuple[int, int]:
    """(elements, bytes) of a block."""
    size, n_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[type.upper()]]
    return size, n_bytes
