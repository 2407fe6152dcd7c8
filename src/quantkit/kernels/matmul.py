"""Products of activations with packed weights, y = x Wᵀ.

Error of `mode="exact"`: with u = 2**-24 and gamma(k) = k u / (1 - k u), each element satisfies

    |y - sum_c x_c w_c| <= gamma(cols) * sum_c |x_c| |w_c| + cols * 2**-149

where w are the decoded weights (`dequantize`) and x the activations as float32, in whatever order they are added and
whether multiplications are fused with additions or not: N. J. Higham, Accuracy and Stability of Numerical Algorithms,
2nd ed., 2002, section 3.1, (3.5). The last term is for products that underflow. With `scale` it is gamma(cols + 1).
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from quantkit.errors import NonFiniteError, UsageError
from quantkit.kernels.arrays import byte_array, check_finite, float32_array, float_array, index_array, widened
from quantkit.kernels.codec import thread_count
from quantkit.kernels.formats import Format, find_format
from quantkit.kernels.panel import BlockWeights, Floats, multiply

Mode = Literal["exact"]


def matmul(
    x: npt.NDArray[Any], packed: npt.NDArray[np.uint8], format: str, *, mode: Mode = "exact", threads: int = 0
) -> Floats:
    """x Wᵀ with weights in a GGUF block format.

    Args:
        x: (n, cols) or (cols,), finite; float32, float16, ml_dtypes.bfloat16, or uint16 holding bfloat16 bits, of any
            library (see arrays.py). Other floats are converted to float32.
        packed: uint8 (rows, row_bytes(format, cols)). Decoded a few rows at a time: memory stays small.
        format: "q4_k", "q8_0", ...: see FORMATS.
        mode: "exact" decodes weights and multiplies in float32 (the bound is in this module's docstring).
        threads: of decoding and of BLAS. 0 takes all processors, and BLAS's own setting.

    Returns:
        float32 (n, rows), or (rows,) for x of one dimension.

    Raises:
        NonFiniteError: an activation, a decoded weight or a result is NaN or infinite; row and column are named.
        UsageError: shapes, dtypes, names or threads that do not fit.
    """
    weights = BlockWeights(*_packed(packed, format, "(rows, row_bytes)"))
    _known_mode(mode)
    count = thread_count(threads)
    rows, vector = _activations(x, weights.shape[1])
    out = np.empty((len(rows), weights.shape[0]), np.float32)
    multiply(rows, weights, out, count)
    return out[0] if vector else out


def matmul_experts(
    x: npt.NDArray[Any],
    packed: npt.NDArray[np.uint8],
    format: str,
    expert_ids: npt.NDArray[Any],
    *,
    scale: npt.NDArray[Any] | None = None,
    mode: Mode = "exact",
    threads: int = 0,
) -> Floats:
    """Each row of x times the weights of its own expert: y[i] = scale[i] x[i] W[expert_ids[i]]ᵀ.

    Rows are grouped by expert once; each expert that has rows is one product.

    Args:
        x: (n, cols), as in matmul.
        packed: uint8 (experts, rows, row_bytes).
        expert_ids: whole numbers (n,), 0 <= id < experts.
        scale: (n,), finite, multiplied into the rows of x: Llama 4's router weights. None: ones.
        mode, threads: as in matmul.

    Returns:
        float32 (n, rows).

    Raises:
        NonFiniteError, UsageError: as matmul; an id that is no expert's.
    """
    packed, found = _packed(packed, format, "(experts, rows, row_bytes)")
    n_experts, n_rows, n_bytes = packed.shape
    cols = n_bytes // found.block_bytes * found.block_size
    _known_mode(mode)
    count = thread_count(threads)
    rows, vector = _activations(x, cols)
    if vector:
        raise UsageError(f"activations must be (n, {cols}) for these weights, not of shape ({cols},)")
    ids = index_array(expert_ids, "expert_ids", length=len(rows), limit=n_experts)
    if scale is not None:
        with np.errstate(over="ignore"):
            rows = rows * float32_array(scale, "scale", shape=(len(rows),))[:, None]
        check_finite(rows, "f32", "activations times scale")
    order, starts = _by_expert(ids, n_experts)
    out = np.empty((len(rows), n_rows), np.float32)
    for expert in np.flatnonzero(np.diff(starts)):
        mine = order[starts[expert] : starts[expert + 1]]
        part = np.empty((len(mine), n_rows), np.float32)
        try:
            multiply(rows[mine], BlockWeights(packed[expert], found), part, count)
        except NonFiniteError as error:
            error.what = f"expert {expert}: {error.what}"
            raise
        out[mine] = part
    return out


def _known_mode(mode: str) -> None:
    if mode not in get_args(Mode):
        raise UsageError(f"unknown mode {mode!r}", hint=f"Known: {', '.join(get_args(Mode))}.")


def _packed(packed: Any, format: str, shape: str) -> tuple[npt.NDArray[np.uint8], Format]:
    """`shape` names the dimensions that packed should have."""
    found = find_format(format)
    packed = byte_array(packed, "packed", block_bytes=found.block_bytes)
    if packed.ndim != 1 + shape.count(","):
        raise UsageError(f"packed must be {shape}, not of shape {packed.shape}")
    return packed, found


def _activations(x: Any, cols: int) -> tuple[Floats, bool]:
    """float32 (n, cols), C-contiguous and finite, and whether x was one row without a dimension for it."""
    array, type = float_array(x, "activations")
    if array.ndim not in (1, 2) or array.shape[-1] != cols:
        raise UsageError(f"activations must be (n, {cols}) or ({cols},) for these weights, not of shape {array.shape}")
    rows = array if array.ndim == 2 else array[None]
    check_finite(rows, type, "activations")
    return np.ascontiguousarray(widened(rows, type)), array.ndim == 1


def _by_expert(ids: npt.NDArray[np.int64], n_experts: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Row numbers sorted by expert, (n,), and where each expert's begin in them, (n_experts + 1,)."""
    starts = np.zeros(n_experts + 1, np.int64)
    np.cumsum(np.bincount(ids, minlength=n_experts), out=starts[1:])
    return np.argsort(ids, kind="stable"), starts
