"""Products of activations with weights in group formats, y = x Wᵀ. The errors are those of matmul.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from quantkit.errors import NonFiniteError, UsageError
from quantkit.kernels import _machine
from quantkit.kernels.arrays import check_finite, float32_array, float_array, widened
from quantkit.kernels.codec import thread_count
from quantkit.kernels.group_format import GroupFormat
from quantkit.kernels.groups import dequantize_groups
from quantkit.kernels.matmul import matmul
from quantkit.kernels.tier import current_tier

Floats = npt.NDArray[np.float32]
Parts = tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]  # words, scales, biases of one matrix

INT8_BITS = (4, 8)  # of codes that the int8 kernels read
_SCRATCH_BYTES = 16 << 20  # of decoded weights at a time


def multiply_groups(x: Any, parts: Parts, group: GroupFormat, *, mode: str, threads: int) -> Floats:
    """x (n, cols) or (cols,) -> float32 (n, rows) or (rows,)."""
    if mode not in ("exact", "fast"):
        raise UsageError(f"unknown mode {mode!r}", hint="Known: exact, fast.")
    if mode == "fast" and group.bits not in INT8_BITS:
        raise UsageError(f'mode="fast" reads codes of 4 and 8 bits, not those of {group.name}', hint='Use "exact".')
    rows, cols = len(parts[0]), group.cols(parts[0].shape[1])
    given = float32_array(x, "activations")
    if given.ndim not in (1, 2) or given.shape[-1] != cols:
        raise UsageError(f"activations must be (n, {cols}) or ({cols},) for these weights, not of shape {given.shape}")
    out = np.empty((*given.shape[:-1], rows), np.float32)
    if mode == "fast" and given.size and rows:
        _multiply_int8(given, parts, group, out, thread_count(threads))
        check_finite(out, "f32", "product with these weights")
        return out
    step = max(1, _SCRATCH_BYTES // (4 * cols))
    for first in range(0, rows, step):
        words, scales, biases = (part[first : first + step] for part in parts)
        decoded = dequantize_groups(words, scales, biases, group.bits, group.group_size, threads=threads)
        try:
            out[..., first : first + step] = matmul(given, decoded.view(np.uint8), "f32", threads=threads)
        except NonFiniteError as error:
            error.what = f"rows from {first} on: {error.what}"
            raise
    return out


def scaled(x: Any, scale: Any | None) -> Floats:
    """Activations (n, cols) as float32, times a number a row if there are some."""
    rows = float32_array(x, "activations")
    if rows.ndim != 2:
        raise UsageError(f"activations must be (n, cols), not of shape {rows.shape}")
    if scale is None:
        return rows
    with np.errstate(over="ignore"):
        rows = rows * float32_array(scale, "scale", shape=(len(rows),))[:, None]
    check_finite(rows, "f32", "activations times scale")
    return rows


def _multiply_int8(x: Floats, parts: Parts, group: GroupFormat, out: Floats, threads: int) -> None:
    rows, cols = len(parts[0]), x.shape[-1]
    words, *floats = (np.ascontiguousarray(part) for part in parts)
    scales, biases = (widened(*float_array(part)).reshape(-1) for part in floats)
    weights = (np.ascontiguousarray(words).reshape(-1), scales, biases, rows, cols)
    size = group.group_cols(cols)
    _machine.matmul_fast_groups(current_tier(), group.bits, size, x.reshape(-1), *weights, out.reshape(-1), threads)
