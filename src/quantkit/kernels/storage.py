"""A quantized tensor in a safetensors file of its own.

Layout: u64 little-endian N | N bytes of JSON, padded with spaces | payload. The metadata says which format the bytes
are in; the tensors are named as MLX names those of a quantized layer.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from quantkit.errors import CheckpointError, QuantkitError
from quantkit.kernels.atomic_file import atomic_file, write_array
from quantkit.kernels.tensor import QuantizedTensor

_FORMAT = "quantkit.format"
_FILE_NAMES = {"packed": "weight", "scales": "scales", "biases": "biases"}
_ALIGNMENT = 64
_MAX_HEADER_BYTES = 1 << 20  # a handful of tensors: anything longer is another file
_DTYPES: dict[str, np.dtype[Any]] = {
    "U8": np.dtype("<u1"),
    "U32": np.dtype("<u4"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def save(tensor: QuantizedTensor, path: Path) -> None:
    arrays = {_FILE_NAMES[name]: part for name, part in tensor.parts().items()}
    header: dict[str, Any] = {"__metadata__": {_FORMAT: tensor.format}}
    at = 0
    for name, array in arrays.items():
        header[name] = {
            "dtype": _NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [at, at + array.nbytes],
        }
        at += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    with atomic_file(path) as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for array in arrays.values():
            write_array(file, array)


def load(path: Path) -> QuantizedTensor:
    header, start, n_bytes = _header(path)
    metadata = header.pop("__metadata__", None)
    names = set(_FILE_NAMES.values())
    if not isinstance(metadata, dict) or _FORMAT not in metadata or not {"weight"} <= set(header) <= names:
        raise CheckpointError(
            f"{path}: a safetensors file, but not of a quantized tensor",
            hint="QuantizedTensor.load reads what QuantizedTensor.save wrote; quantize these tensors first.",
        )
    try:
        parts = {
            name: _array(path, stored, header[stored], start, n_bytes)
            for name, stored in _FILE_NAMES.items()
            if stored in header
        }
        return QuantizedTensor(format=metadata[_FORMAT], **parts)
    except QuantkitError as error:
        raise CheckpointError(f"{path}: {error.what}", hint=error.hint) from error


def _header(path: Path) -> tuple[dict[str, Any], int, int]:
    """The JSON, where the payload begins, and the size of the file."""
    try:
        with path.open("rb") as file:
            n_bytes = path.stat().st_size
            length = int.from_bytes(file.read(8), "little")
            text = file.read(length) if length <= _MAX_HEADER_BYTES else b""
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    try:
        header = json.loads(text) if len(text) == length else None
    except ValueError:
        header = None
    if not isinstance(header, dict):
        raise CheckpointError(
            f"{path}: not a file that QuantizedTensor.save wrote: it has no header of safetensors",
            hint="quantkit.gguf.load_tensor reads tensors of a GGUF.",
        )
    return header, 8 + length, n_bytes


def _array(path: Path, name: str, entry: Any, start: int, n_bytes: int) -> npt.NDArray[Any]:
    try:
        dtype, shape, (begin, end) = _DTYPES[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"]
        sound = all(type(size) is int and size >= 0 for size in (*shape, begin))
        sound = sound and end - begin == math.prod(shape) * dtype.itemsize
    except (KeyError, TypeError, ValueError):
        sound = False
    if not sound:
        raise CheckpointError(f"{path}: tensor {name!r}: {str(entry)[:200]} is no sound entry")
    if start + end > n_bytes:
        raise CheckpointError(
            f"{path}: truncated: tensor {name!r} ends at byte {start + end:,}, the file at {n_bytes:,}",
            hint="Save the tensor again.",
        )
    if not math.prod(shape):
        return np.empty(shape, dtype)
    array: npt.NDArray[Any] = np.memmap(path, dtype, "r", offset=start + begin, shape=shape)
    return array
