"""Scales of fp8 sources: one per tensor, or one per row of [out, in] weights."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from quantkit.checkpoint import Checkpoint
from quantkit.errors import CheckpointError, NonFiniteError
from quantkit.llama4.model import Slab, Target

Scales = npt.NDArray[np.float32]


def read_scales(checkpoint: Checkpoint, slab: Slab) -> Scales | None:
    """The `weight_scale` that belongs to a slab, float32 (1,) or (rows of the target,); None without.

    Raises:
        NonFiniteError: a scale that is NaN or infinite.
        CheckpointError: a scale of an unknown dtype.
    """
    entry = slab.scale
    if entry is None:
        return None
    raw = np.empty(entry.n_bytes, np.uint8)
    checkpoint.read_into(entry, raw.data, 0, entry.n_bytes)
    if entry.dtype == "F32":
        scales = raw.view(np.float32)
    elif entry.dtype == "F16":
        scales = raw.view(np.float16).astype(np.float32)
    elif entry.dtype == "BF16":
        scales = (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    else:
        raise CheckpointError(f"{entry.file}: {entry.name} has dtype {entry.dtype}; a scale is F32, F16 or BF16")
    wrong = np.flatnonzero(~np.isfinite(scales))
    if wrong.size:
        index = int(wrong[0])
        raise NonFiniteError(
            f"{entry.file}: {entry.name}[{index}] is {scales[index]}, and a scale must be finite",
            hint="The file is damaged or was badly quantized; download it again or ask its publisher.",
        )
    return scales


def row_scales(scales: Scales | None, target: Target, first: int, n_rows: int) -> Scales | None:
    """Scales of rows `first` ... of a target, float32 (n_rows,)."""
    if scales is None:
        return None
    if scales.size == 1:
        return np.broadcast_to(scales, (n_rows,))
    start = target.row_start + first
    return scales[start : start + n_rows]
