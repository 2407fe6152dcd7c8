"""Group quantization in MLX's affine layout: codes in uint32 words, a scale and a bias for each group of a row."""

from __future__ import annotations

import operator
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from quantkit.errors import NonFiniteError, UsageError
from quantkit.kernels import _machine
from quantkit.kernels.arrays import float_array, number_array, word_rows
from quantkit.kernels.codec import Bytes, column_weights, float_dtype, rows_in_place, thread_count
from quantkit.kernels.tier import current_tier

Float = Literal["f32", "f16", "bf16"]
Words = npt.NDArray[np.uint32]
Scales = npt.NDArray[Any]

BITS = (2, 3, 4, 5, 6, 8)
GROUP_SIZES = (32, 64, 128)
WHOLE_ROW = -1
_NUMPY = {"f32": np.float32, "f16": np.float16, "bf16": np.uint16}


class GroupRangeError(NonFiniteError):
    """A weight that cannot be quantized, with its place in the rows that were given."""

    def __init__(self, scale_dtype: str, row: int, col: int, value: float) -> None:
        limit = _machine.group_limit(scale_dtype)
        why = "is not finite"
        if np.isfinite(value):
            why = f"is beyond the largest magnitude with {scale_dtype} scales, {limit:g}"
        super().__init__(f"weight {value} at row {row}, column {col} {why}")
        self.row, self.col, self.value = row, col, value


def quantize_groups(
    weights: Any,
    bits: int = 4,
    group_size: int = 64,
    symmetric: bool = False,
    importance: Any = None,
    scale_dtype: Float = "f32",
    threads: int = 0,
) -> tuple[Words, Scales, Scales]:
    """Quantize groups of each row: weight = scale * code + bias, in the layout of `mlx.core.quantize`.

    Scale and bias are searched for: the squared error of every group, as stored, is at most that of MLX's own scale and
    bias (stored in the same type; to about one part in 10,000, the rounding of float32 sums).

    Args:
        weights: (rows, cols) or (experts, rows, cols): floats as `quantize` takes them.
        bits: 2, 3, 4, 5, 6 or 8 a code.
        group_size: 32, 64 or 128 weights; -1 takes a whole row as one group (MLX knows no such groups).
        symmetric: bias is -2**(bits - 1) * scale, so that a weight is scale times a whole number. The scale may be
            negative: there is one code more below zero than above.
        importance: (cols,), or (experts, cols) for three-dimensional weights: the weight of each column in the squared
            error that is minimised. Finite and not negative. None: every weight counts the same, and a quicker search
            is used.
        scale_dtype: "f32", "f16" or "bf16", of scales and biases. Codes are chosen for the scales as rounded.
        threads: 0 takes all processors. The result does not depend on it.

    Returns:
        packed: uint32 (..., rows, cols * bits / 32), the first code in the lowest bits;
        scales, biases: (..., rows, groups) float32, float16, or uint16 holding bfloat16 bits.

    Raises:
        NonFiniteError: a weight is NaN, infinite, or beyond 65504 ("f16") or 4.25e37 (a GroupRangeError, with row and
            column).
        UsageError: shapes, dtypes, values of importance or threads, bits or group size that do not fit.
    """
    array, scalar = float_array(weights, "weights")
    if array.ndim not in (2, 3):
        raise UsageError(f"weights must be (rows, cols) or (experts, rows, cols), not of shape {array.shape}")
    bits = _known(bits, "bits", BITS)
    if scale_dtype not in get_args(Float):
        raise UsageError(f"unknown scale_dtype {scale_dtype!r}", hint=f"Known: {', '.join(get_args(Float))}.")
    *batch, cols = array.shape
    group = _group_columns(group_size, cols)
    count = thread_count(threads)
    packed = np.empty((*batch, cols * bits // 32), np.uint32)
    scales = np.empty((*batch, cols // group), _NUMPY[scale_dtype])
    biases = np.empty_like(scales)
    columns = _importance(importance, array.shape)
    options = (bits, group, bool(symmetric), scale_dtype)
    if array.ndim == 2:
        _quantize_rows(array, scalar, columns, options, (packed, scales, biases), count)
        return packed, scales, biases
    for expert in range(array.shape[0]):
        out = (packed[expert], scales[expert], biases[expert])
        try:
            _quantize_rows(array[expert], scalar, None if columns is None else columns[expert], options, out, count)
        except GroupRangeError as error:
            error.what = f"expert {expert}: {error.what}"
            raise
    return packed, scales, biases


def dequantize_groups(
    packed: Any,
    scales: Any,
    biases: Any,
    bits: int = 4,
    group_size: int = 64,
    dtype: npt.DTypeLike = np.float32,
    threads: int = 0,
) -> npt.NDArray[Any]:
    """Decode groups: scale * code + bias in float32, rounded to `dtype` at the end.

    With float32 scales that is `mlx.core.dequantize` bit for bit. With 16-bit scales MLX computes in that type and
    rounds the product as well as the sum; hand it the scales as float32 and it gives these values.

    Args:
        packed: uint32 (..., cols * bits / 32), of numpy or any library that speaks DLPack.
        scales, biases: (..., groups) float32, float16, bfloat16, or uint16 holding bfloat16 bits.
        bits, group_size: as they were quantized with; a `group_size` of -1 is a whole row.
        dtype: of the result, a float of 16 bits or more.
        threads: 0 takes all processors.

    Returns:
        (..., cols) of `dtype`.

    Raises:
        UsageError: shapes and dtypes that do not fit together, or dtype is no float.
    """
    bits = _known(bits, "bits", BITS)
    wanted = float_dtype(dtype)
    words = word_rows(packed)
    cols = words.shape[-1] * 32 // bits
    if cols * bits != words.shape[-1] * 32:
        raise UsageError(f"packed has rows of {words.shape[-1]} words, which is no whole number of {bits}-bit codes")
    group = _group_columns(group_size, cols)
    shape = (*words.shape[:-1], cols // group)
    (scale, scale_dtype), (bias, bias_dtype) = float_array(scales, "scales"), float_array(biases, "biases")
    if scale.shape != shape or bias.shape != shape or scale_dtype != bias_dtype:
        raise UsageError(
            f"scales are {scale_dtype} of shape {scale.shape}, biases {bias_dtype} of shape {bias.shape}; "
            f"packed of shape {words.shape} has groups of shape {shape}",
            hint="Give bits and group_size as they were quantized with, and scales and biases of one type.",
        )
    out = np.empty((*words.shape[:-1], cols), np.float32)
    _machine.decode_groups(
        current_tier(),
        _flat_bytes(words),
        _flat_bytes(scale),
        _flat_bytes(bias),
        scale_dtype,
        words.size // max(1, words.shape[-1]),
        cols,
        group,
        bits,
        out.reshape(-1),
        thread_count(threads),
    )
    return out.astype(wanted, copy=False)


def _quantize_rows(
    weights: npt.NDArray[Any],
    scalar: Float,
    importance: npt.NDArray[np.float32] | None,
    options: tuple[int, int, bool, Float],
    out: tuple[Words, Scales, Scales],
    threads: int,
) -> None:
    rows, cols = weights.shape
    source, row_stride, col_stride = rows_in_place(weights)
    bits, group, symmetric, scale_dtype = options
    packed, scales, biases = out
    bad = _machine.encode_groups(
        current_tier(),
        source,
        scalar,
        rows,
        cols,
        row_stride,
        col_stride,
        importance,
        bits,
        group,
        symmetric,
        scale_dtype,
        _flat_bytes(packed),
        _flat_bytes(scales),
        _flat_bytes(biases),
        threads,
    )
    if bad is not None:
        raise GroupRangeError(scale_dtype, *bad)


def _importance(importance: Any, shape: tuple[int, ...]) -> npt.NDArray[np.float32] | None:
    if importance is None:
        return None
    if len(shape) == 2:
        return column_weights(importance, shape[1])
    given = number_array(importance, "importance")
    if given.shape != (shape[0], shape[2]):
        raise UsageError(
            f"importance has shape {given.shape}; (experts, cols) of these weights is {(shape[0], shape[2])}"
        )
    return (
        np.stack([column_weights(row, shape[2]) for row in given]) if shape[0] else np.empty((0, shape[2]), np.float32)
    )


def _known(value: Any, name: str, known: tuple[int, ...]) -> int:
    """The whole number, if it is one of the known. UsageError otherwise: 4.0 bits are none."""
    try:
        found = operator.index(value)
    except TypeError:
        found = 0
    if found not in known or isinstance(value, bool):
        raise UsageError(f"{name} is {value!r}", hint=f"Known: {', '.join(map(str, known))}, as a whole number.")
    return found


def _group_columns(group_size: int, cols: int) -> int:
    """Columns of one group. UsageError unless rows are whole groups, and codes of whole words."""
    group_size = _known(group_size, "group_size", (*GROUP_SIZES, WHOLE_ROW))
    group = 32 if group_size == WHOLE_ROW else group_size
    if cols % group or not cols:
        what = "a whole number of 32 weights" if group_size == WHOLE_ROW else f"a whole number of groups of {group}"
        raise UsageError(f"a row of {cols} weights is not {what}")
    return cols if group_size == WHOLE_ROW else group


def _flat_bytes(array: npt.NDArray[Any]) -> Bytes:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
