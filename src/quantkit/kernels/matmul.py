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
from quantkit.kernels.codec import thread_count
from quantkit.kernels.formats import Format, find_format
from quantkit.kernels.panel import BlockWeights, Floats, multiply

Mode = Literal["exact"]


def matmul(
    x: npt.NDArray[Any], packed: npt.NDArray[np.uint8], format: str, *, mode: Mode = "exact", threads: int = 0
) -> Floats:
    """x Wᵀ with weights in a GGUF block format.

    Args:
        x: (n, cols) or (cols,), finite; float32, float16, ml_dtypes.bfloat16, or uint16 holding bfloat16 bits. Other
            floats are converted to float32.
        packed: uint8 (rows, row_bytes(format, cols)); a memory map will do, a few rows are read at a time.
        format: "q4_k", "q8_0", ...: see FORMATS.
        mode: "exact" decodes weights and multiplies in float32 (the bound is in this module's docstring).
        threads: of decoding and of BLAS. 0 takes all processors, and BLAS's own setting.

    Returns:
        float32 (n, rows), or (rows,) for x of one dimension.

    Raises:
        NonFiniteError: an activation, a decoded weight or a result is NaN or infinite; row and column are named.
        UsageError: shapes, dtypes, names or threads that do not fit.
    """
    packed = np.asarray(packed)
    found, cols = _checked(packed, format, 2)
    _known_mode(mode)
    count = thread_count(threads)
    rows = _activations(x, cols)
    out = np.empty((len(rows), len(packed)), np.float32)
    multiply(rows, BlockWeights(packed, found), out, count)
    return out if np.ndim(x) == 2 else out[0]


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
    packed = np.asarray(packed)
    found, cols = _checked(packed, format, 3)
    _known_mode(mode)
    count = thread_count(threads)
    if np.ndim(x) != 2:
        raise UsageError(f"activations must be (n, {cols}) for these weights, not of shape {np.shape(x)}")
    rows = _activations(x, cols)
    order, starts = _by_expert(expert_ids, len(rows), len(packed))
    if scale is not None:
        with np.errstate(over="ignore"):
            rows = rows * _row_scale(scale, len(rows))[:, None]
        _check_finite(rows, "scaled activation")
    out = np.empty((len(rows), packed.shape[1]), np.float32)
    for expert in np.flatnonzero(np.diff(starts)):
        mine = order[starts[expert] : starts[expert + 1]]
        part = np.empty((len(mine), packed.shape[1]), np.float32)
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


def _checked(packed: npt.NDArray[Any], format: str, ndim: int) -> tuple[Format, int]:
    """The format, and the number of columns."""
    found = find_format(format)
    if packed.dtype != np.uint8 or packed.ndim != ndim or packed.shape[-1] % found.block_bytes:
        shape = "(experts, rows, row_bytes)" if ndim == 3 else "(rows, row_bytes)"
        raise UsageError(
            f"packed must be uint8 {shape} with rows of whole {found.block_bytes}-byte blocks of {format}, "
            f"not {packed.dtype} of shape {packed.shape}"
        )
    return found, packed.shape[-1] // found.block_bytes * found.block_size


def _activations(x: npt.NDArray[Any], cols: int) -> Floats:
    """float32 (n, cols), finite."""
    x = np.asarray(x)
    if x.ndim not in (1, 2) or x.shape[-1] != cols:
        raise UsageError(f"activations must be (n, {cols}) or ({cols},) for these weights, not of shape {x.shape}")
    if x.dtype == np.uint16:
        rows = (x.astype(np.uint32) << 16).view(np.float32)
    elif x.dtype.kind == "f" or x.dtype.name == "bfloat16":
        with np.errstate(over="ignore"):  # a float64 beyond float32 is refused below, as infinite
            rows = x.astype(np.float32, copy=False)
    else:
        raise UsageError(
            f"activations have dtype {x.dtype}",
            hint="Give float32, float16, ml_dtypes.bfloat16, or uint16 holding bfloat16 bits.",
        )
    rows = np.ascontiguousarray(rows if x.ndim == 2 else rows[None])
    _check_finite(rows, "activation")
    return rows


def _check_finite(rows: Floats, what: str) -> None:
    finite = np.isfinite(rows)
    if not finite.all():
        row, col = (int(i) for i in np.unravel_index(np.argmin(finite), rows.shape))
        raise NonFiniteError(f"{what} {rows[row, col]} at row {row}, column {col} is not finite or beyond float32")


def _by_expert(expert_ids: npt.NDArray[Any], n: int, n_experts: int) -> tuple[npt.NDArray[np.int64], ...]:
    """Row numbers sorted by expert, and where each expert's begin in them: int64 (n,) and (n_experts + 1,)."""
    ids = np.asarray(expert_ids)
    if ids.shape != (n,) or ids.dtype.kind not in "iu":
        raise UsageError(f"expert_ids must be whole numbers ({n},), not {ids.dtype} of shape {ids.shape}")
    known = (ids >= 0) & (ids < n_experts)
    if not known.all():
        row = int(np.argmin(known))
        raise UsageError(f"expert id {ids[row]} of row {row} is none of the {n_experts} experts")
    order = np.argsort(ids, kind="stable")
    starts = np.concatenate(([0], np.cumsum(np.bincount(ids, minlength=n_experts))))
    return order.astype(np.int64), starts.astype(np.int64)


def _row_scale(scale: npt.NDArray[Any], n: int) -> Floats:
    scale = np.asarray(scale)
    if scale.shape != (n,) or (scale.dtype.kind not in "fiu" and scale.dtype.name != "bfloat16"):
        raise UsageError(f"scale must be real numbers ({n},), not {scale.dtype} of shape {scale.shape}")
    with np.errstate(over="ignore"):
        scale = scale.astype(np.float32)
    if not np.isfinite(scale).all():
        row = int(np.argmin(np.isfinite(scale)))
        raise NonFiniteError(f"scale {scale[row]} of row {row} is not finite or beyond float32")
    return scale
