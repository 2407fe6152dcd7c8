"""Products of activations with packed weights, y = x Wᵀ, where w are the decoded weights (`dequantize`).

Error of `mode="exact"`: with u = 2**-24 and gamma(k) = k u / (1 - k u), each element satisfies

    |y - sum_c x_c w_c| <= gamma(cols) * sum_c |x_c| |w_c| + cols * 2**-149

with x the activations as float32, in whatever order products are added and whether multiplications are fused with
additions or not: N. J. Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., 2002, section 3.1, (3.5). The
last term is for products that underflow. With `scale` it is gamma(cols + 1).

Error of `mode="fast"`: x is rounded to int8 in blocks of 32 columns, each element to a 127th of the largest magnitude
m(b) of its block, so that beside float rounding

    |y - sum_c x_c w_c| <= sum_b m(b) / 254 * sum_(c in b) |w_c|

With k-quants blocks are of 256 columns. So they are with iq4_xs, but for 1 to 3 rows of x with weights that are not
repacked (RepackedTensor); and with these formats, but for those rows, sums of products with the codes of a scale s are
cut to 16 bits, which adds sum_s h |s| m(b) / 127 with h = 1 (q4_k, q6_k), 2 (q5_k), 8 (iq4_xs) or 0 (q2_k, q3_k). There
m(b) of iq4_xs is at least 127 / 256 of the largest sum of magnitudes of columns 0, 1, 4 and 5, or 2, 3, 6 and 7, of any
eight, which lets products be added up in 16 bits. As errors of either sign cancel, it is half a per cent of y to two
and a half (docs/kernels.md has it measured for every format).
Blocks whose m(b) is below 2**-100 count as zero.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from quantkit.errors import NonFiniteError, UsageError
from quantkit.kernels import _machine
from quantkit.kernels.arrays import (
    byte_rows,
    check_finite,
    float32_array,
    float_array,
    index_array,
    widened,
    word_rows,
)
from quantkit.kernels.codec import thread_count
from quantkit.kernels.formats import Format, find_format
from quantkit.kernels.groups import dequantize_groups
from quantkit.kernels.panel import BlockWeights, Floats, GroupWeights, finite_activations, multiply, refuse
from quantkit.kernels.tier import current_tier

Mode = Literal["exact", "fast"]


def matmul(
    x: npt.NDArray[Any],
    packed: npt.NDArray[np.uint8],
    format: str,
    *,
    mode: Mode = "exact",
    threads: int = 0,
    out: Floats | None = None,
) -> Floats:
    """x Wᵀ with weights in a GGUF format.

    Args:
        x: (n, cols) or (cols,), finite; float32, float16, ml_dtypes.bfloat16, or uint16 holding bfloat16 bits, of any
            library (see arrays.py). Other floats are converted to float32.
        packed: uint8 (rows, row_bytes(format, cols)). Decoded a few rows at a time: memory stays small.
        format: "q4_k", "q8_0", ...: see FORMATS.
        mode: "exact" decodes weights and multiplies in float32; "fast" quantizes x to int8 and multiplies integers,
            for the block formats. This module's docstring has the error of both.
        threads: of decoding, products and BLAS. 0 takes all processors, and BLAS's own setting.
        out: float32 (n, rows), or (rows,) for x of one dimension, C-contiguous, where the result goes: a loop that
            gives it needs no fresh memory each time. After an error it holds anything.

    Returns:
        float32 (n, rows), or (rows,) for x of one dimension; `out`, if it was given.

    Raises:
        NonFiniteError: an activation, a decoded weight or a result is NaN or infinite; row and column are named.
        UsageError: shapes, dtypes, names or threads that do not fit; "fast" with f32, f16 or bf16 weights.
    """
    if out is not None and mode == "fast" and direct(x, packed, format, out, threads):
        return out
    packed, found = _packed(packed, format, "(rows, row_bytes)")
    return product(x, BlockWeights(packed, found), int8=_is_int8(mode, found), threads=threads, out=out)


def product(x: Any, weights: BlockWeights, *, int8: bool, threads: int, out: Floats | None) -> Floats:
    """`matmul` of checked weights."""
    count = thread_count(threads)
    rows, vector = activations(x, weights.shape[1], check=not int8)
    result = _room(out, (len(rows), weights.shape[0]), vector)
    multiply(rows, weights, result, int8=int8, threads=count)
    return out if out is not None else result[0] if vector else result


def matmul_experts(
    x: npt.NDArray[Any],
    packed: npt.NDArray[np.uint8],
    format: str,
    expert_ids: npt.NDArray[Any],
    *,
    scale: npt.NDArray[Any] | None = None,
    mode: Mode = "exact",
    threads: int = 0,
    out: Floats | None = None,
) -> Floats:
    """Each row of x times the weights of its own expert: y[i] = scale[i] x[i] W[expert_ids[i]]ᵀ.

    Rows are grouped by expert once; each expert that has rows is one product.

    Args:
        x: (n, cols), as in matmul.
        packed: uint8 (experts, rows, row_bytes).
        expert_ids: whole numbers (n,), 0 <= id < experts.
        scale: (n,), finite, multiplied into the rows of x: Llama 4's router weights. None: ones.
        mode, threads, out: as in matmul.

    Returns:
        float32 (n, rows); `out`, if it was given.

    Raises:
        NonFiniteError, UsageError: as matmul; an id that is no expert's.
    """
    packed, found = _packed(packed, format, "(experts, rows, row_bytes)")
    return product_experts(
        x, packed, found, expert_ids, scale=scale, int8=_is_int8(mode, found), threads=threads, out=out
    )


def product_experts(
    x: Any,
    packed: npt.NDArray[np.uint8],
    found: Format,
    expert_ids: Any,
    *,
    scale: Any | None,
    int8: bool,
    threads: int,
    out: Floats | None,
    rows_of_each: int | None = None,
) -> Floats:
    """`matmul_experts` of checked weights; (rows_of_each) of repacked ones."""
    n_experts, n_rows, n_bytes = packed.shape
    if rows_of_each is not None:
        n_rows = rows_of_each
    cols = n_bytes // found.block_bytes * found.block_size
    count = thread_count(threads)
    rows = routed(x, cols, scale, check=not int8)
    ids = index_array(expert_ids, "expert_ids", length=len(rows), limit=n_experts)
    order, starts = by_expert(ids, n_experts)
    if out is None:
        out = np.empty((len(rows), n_rows), np.float32)
    else:
        _room(out, (len(rows), n_rows))
    together = int8 and rows.size and out.size and packed.flags.c_contiguous
    if together:
        where = (n_experts, n_rows, cols, order, starts, out.reshape(-1))
        with finite_activations(rows, "activations" if scale is None else "activations times scale"):
            tier, flat = current_tier(), rows.reshape(-1)
            apart = rows_of_each is not None
            if _machine.matmul_fast_experts(tier, found.name, flat, packed.reshape(-1), *where, count, apart):
                return out
    for expert in np.flatnonzero(np.diff(starts)):
        mine = order[starts[expert] : starts[expert + 1]]
        weights = BlockWeights(packed[expert], found, rows_of_each)
        try:
            if together:
                if not np.isfinite(out[mine]).all():
                    refuse(out[mine], weights)
            else:
                part = np.empty((len(mine), n_rows), np.float32)
                multiply(rows[mine], weights, part, int8=int8, threads=count)
                out[mine] = part
        except NonFiniteError as error:
            error.what = f"expert {expert}: {error.what}"
            raise
    return out


def matmul_groups(
    x: npt.NDArray[Any],
    packed: npt.NDArray[np.uint32],
    scales: npt.NDArray[Any],
    biases: npt.NDArray[Any],
    *,
    bits: int = 4,
    group_size: int = 64,
    mode: Mode = "exact",
    threads: int = 0,
) -> Floats:
    """x Wᵀ with weights in MLX's affine layout, as `quantize_groups` gives them.

    Args:
        x: (n, cols) or (cols,), as in matmul.
        packed: uint32 (rows, cols * bits / 32).
        scales, biases: (rows, groups) float32, float16, bfloat16, or uint16 holding bfloat16 bits.
        bits, group_size: as they were quantized with; a `group_size` of -1 is a whole row.
        mode: as in matmul; "fast" is for 4 and 8 bits.
        threads: as in matmul.

    Returns:
        float32 (n, rows), or (rows,) for x of one dimension.

    Raises:
        NonFiniteError, UsageError: as matmul and dequantize_groups.
    """
    weights = _groups(packed, scales, biases, bits, group_size)
    int8 = _is_int8(mode)
    if int8 and bits not in (4, 8):
        raise UsageError(f'mode="fast" is for groups of 4 or 8 bits, not {bits}', hint='Use mode="exact".')
    count = thread_count(threads)
    rows, vector = activations(x, weights.shape[1], check=not int8)
    out = np.empty((len(rows), weights.shape[0]), np.float32)
    multiply(rows, weights, out, int8=int8, threads=count)
    return out[0] if vector else out


def direct(x: Any, packed: Any, format: str, out: Any, threads: int, repacked_rows: int | None = None) -> bool:
    """matmul with next to no Python before the kernel, for loops over plain arrays: after a product that has swept the
    caches, each line of it costs a microsecond. False: something is not plain, does not fit or is not finite, and the
    long way finds out what."""
    try:
        return _machine.matmul_direct(current_tier(), format, x, packed, out, threads, repacked_rows)
    except (TypeError, ValueError):
        return False


def _room(out: Any, shape: tuple[int, int], vector: bool = False) -> Floats:
    """Where a result of `shape` goes; (vector) its one row is given without a dimension for it."""
    if out is None:
        return np.empty(shape, np.float32)
    wanted = shape[1:] if vector else shape
    fits = isinstance(out, np.ndarray) and out.dtype == np.float32 and out.shape == wanted
    if not (fits and out.flags.c_contiguous and out.flags.aligned and out.flags.writeable):
        what = f"{out.dtype} of shape {out.shape}" if isinstance(out, np.ndarray) else type(out).__name__
        raise UsageError(f"out must be a writable, C-contiguous numpy float32 array of shape {wanted}, not {what}")
    room: Floats = out.reshape(shape)
    return room


def activations(x: Any, cols: int, *, check: bool = True) -> tuple[Floats, bool]:
    """float32 (n, cols), C-contiguous and (check) finite, and whether x was one row without a dimension for it."""
    array, type = float_array(x, "activations")
    if array.ndim not in (1, 2) or array.shape[-1] != cols:
        raise UsageError(f"activations must be (n, {cols}) or ({cols},) for these weights, not of shape {array.shape}")
    rows = array if array.ndim == 2 else array[None]
    if check:
        check_finite(rows, type, "activations")
    return np.ascontiguousarray(widened(rows, type)), array.ndim == 1


def routed(x: Any, cols: int, scale: Any | None, *, check: bool = True) -> Floats:
    """Activations (n, cols) for experts, times the router's weight of each row if there is one."""
    rows, vector = activations(x, cols, check=check)
    if vector:
        raise UsageError(f"activations must be (n, {cols}) for these weights, not of shape ({cols},)")
    if scale is not None:
        with np.errstate(over="ignore", invalid="ignore"):
            rows = rows * float32_array(scale, "scale", shape=(len(rows),))[:, None]
        if check:
            check_finite(rows, "f32", "activations times scale")
    return rows


def _is_int8(mode: str, format: Format | None = None) -> bool:
    if mode not in get_args(Mode):
        raise UsageError(f"unknown mode {mode!r}", hint=f"Known: {', '.join(get_args(Mode))}.")
    if mode == "fast" and format is not None and format.block_size == 1:
        raise UsageError(f'{format.name} weights have no integer codes for mode="fast"', hint='Use mode="exact".')
    return mode == "fast"


def _packed(packed: Any, format: str, shape: str) -> tuple[npt.NDArray[np.uint8], Format]:
    """`shape` names the dimensions that packed should have."""
    found = find_format(format)
    packed = byte_rows(packed, "packed", block_bytes=found.block_bytes)
    if packed.ndim != 1 + shape.count(","):
        raise UsageError(f"packed must be {shape}, not of shape {packed.shape}")
    return packed, found


def _groups(packed: Any, scales: Any, biases: Any, bits: int, group_size: int) -> GroupWeights:
    words = word_rows(packed)
    if words.ndim != 2:
        raise UsageError(f"packed must be uint32 (rows, cols * bits / 32), not {words.dtype} of shape {words.shape}")
    (scale, scale_type), (bias, bias_type) = float_array(scales, "scales"), float_array(biases, "biases")
    dequantize_groups(words[:1], scale[:1], bias[:1], bits, group_size, threads=1)  # refuses what does not fit
    if len(scale) != len(words) or len(bias) != len(words):
        raise UsageError(f"packed has {len(words)} rows, scales {len(scale)} and biases {len(bias)}")
    check_finite(scale, scale_type, "scales")
    check_finite(bias, bias_type, "biases")
    return GroupWeights(words, scale, bias, int(bits), group_size)


def by_expert(ids: npt.NDArray[np.int64], n_experts: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Row numbers sorted by expert, (n,), and where each expert's begin in them, (n_experts + 1,)."""
    starts = np.zeros(n_experts + 1, np.int64)
    np.cumsum(np.bincount(ids, minlength=n_experts), out=starts[1:])
    return np.argsort(ids, kind="stable"), starts
