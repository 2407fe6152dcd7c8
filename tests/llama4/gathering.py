"""The walk in its plainest form: every slab read, every target viewed by its strides and copied to its place."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from quantkit.checkpoint import Checkpoint, TensorEntry
from quantkit.llama4 import Model, Slab

DTYPES = {"BF16": ml_dtypes.bfloat16, "F16": np.float16, "F32": np.float32, "F8_E4M3": ml_dtypes.float8_e4m3fn}


def gather(cp: Checkpoint, model: Model) -> dict[str, np.ndarray]:
    """All output tensors in float32 by name, shaped as in `model.outputs`; fails for rows written twice or never."""
    arrays = {output.name: np.zeros(output.shape, np.float32) for output in model.outputs}
    written = {output.name: np.zeros(_rows(output.shape)[:2], np.uint8) for output in model.outputs}
    for output in model.outputs:
        if output.values is not None:
            arrays[output.name][...] = output.values
            written[output.name] += 1
    for slab in model.slabs:
        elements = read(cp, slab.entry, slab.offset_bytes, slab.n_bytes)
        for target in slab.targets:
            array = arrays[target.tensor].reshape(_rows(arrays[target.tensor].shape))
            strides = (target.row_stride * elements.itemsize, target.col_stride * elements.itemsize)
            shape = (target.n_rows, array.shape[2])
            last = target.offset_elements + (shape[0] - 1) * target.row_stride + (shape[1] - 1) * target.col_stride
            assert last < elements.size, f"{target} reaches beyond its slab"
            view = np.lib.stride_tricks.as_strided(elements[target.offset_elements :], shape, strides)
            rows = slice(target.row_start, target.row_start + target.n_rows)
            array[target.expert, rows] = view.astype(np.float32) * _scale(cp, slab, rows)
            written[target.tensor][target.expert, rows] += 1
    for name, count in written.items():
        assert (count == 1).all(), f"rows of {name} are written {count.min()} to {count.max()} times"
    return arrays


def read(cp: Checkpoint, entry: TensorEntry, offset_bytes: int, n_bytes: int) -> np.ndarray:
    """Elements of a byte range of one tensor, in its own dtype."""
    buffer = bytearray(n_bytes)
    cp.read_into(entry, memoryview(buffer), offset_bytes, n_bytes)
    return np.frombuffer(buffer, DTYPES[entry.dtype])


def _rows(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(experts, rows, cols) of any tensor."""
    return (*(1,) * (3 - len(shape)), *shape)  # type: ignore[return-value]


def _scale(cp: Checkpoint, slab: Slab, rows: slice) -> np.ndarray:
    if slab.scale is None:
        return np.ones((1, 1), np.float32)
    scale = read(cp, slab.scale, 0, slab.scale.n_bytes).astype(np.float32)
    return (scale if scale.size == 1 else scale[rows]).reshape(-1, 1)
