"""Encode and decode rows of weights."""

from __future__ import annotations

import operator
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from quantkit.errors import NonFiniteError, UsageError
from quantkit.kernels import _machine
from quantkit.kernels.arrays import byte_array, float_array, number_array
from quantkit.kernels.formats import find_format, row_bytes
from quantkit.kernels.tier import current_tier

Weighting = Literal["plain", "magnitude", "unbiased"]
Scalar = Literal["f32", "f16", "bf16", "f8_e4m3"]
Bytes = npt.NDArray[np.uint8]


class OutOfRangeError(NonFiniteError):
    """A weight that cannot be encoded, with its place in the rows that were given."""

    def __init__(self, format: str, row: int, col: int, value: float) -> None:
        limit = find_format(format).max_abs
        why = "is not finite" if not np.isfinite(value) else f"is beyond the largest magnitude of {format}, {limit:g}"
        super().__init__(f"weight {value} at row {row}, column {col} {why}")
        self.row, self.col, self.value = row, col, value


def encode_into(
    out: Bytes,
    source: Bytes,
    *,
    format: str,
    dtype: Scalar,
    rows: int,
    cols: int,
    offset_elements: int = 0,
    row_stride: int | None = None,
    col_stride: int = 1,
    importance: npt.NDArray[np.float32] | None = None,
    weighting: Weighting = "plain",
    scale: npt.NDArray[np.float32] | None = None,
    threads: int = 0,
) -> None:
    """Encode `rows` x `cols` weights that lie anywhere in a buffer of scalars.

    Args:
        out: uint8 (rows, row_bytes(format, cols)), C-contiguous; written whole.
        source: uint8, one-dimensional: the raw bytes of `dtype` scalars, little endian.
        offset_elements, row_stride, col_stride: where weight (r, c) lies, in elements of the source:
            offset + r * row_stride + c * col_stride. A transposed slab has row_stride 1.
        importance: (cols,), finite and not negative; the encoder minimises sum(w * error**2). None: every weight
            counts the same, and a quicker search is used, so that the bytes may differ from those of ones.
        weighting: "plain" takes w = importance; "magnitude" takes
            importance * sqrt(mean square of the block + x**2), llama.cpp's correction for imatrix weights; "unbiased"
            chooses codes as "plain" does and then stretches the scales of each block until
            sum(w * x * decoded) = sum(w * x**2): least squares makes blocks shorter, which is an error of the same sign
            for every input (the unbiased scale of DRIVE, Vargaftik et al. 2021). mxfp4, whose scales are powers of two,
            is as with "plain".
        scale: float32 (rows,), multiplied into each row (fp8 sources).
        threads: 0 takes all processors. The bytes do not depend on it.

    Raises:
        NonFiniteError: a weight is NaN, infinite or beyond the format's range (an OutOfRangeError with row and col).
        UsageError: shapes, values of importance or threads, or names that do not fit.
    """
    expected = rows * row_bytes(format, cols)
    if out.dtype != np.uint8 or not out.flags.c_contiguous or out.size != expected:
        raise UsageError(f"out must be C-contiguous uint8 of {expected} bytes, not {out.dtype} of {out.size}")
    if importance is not None:
        importance = column_weights(importance, cols)
    if scale is not None:
        scale = np.ascontiguousarray(scale, np.float32)
    if weighting not in get_args(Weighting):
        raise UsageError(f"unknown weighting {weighting!r}", hint=f"Known: {', '.join(get_args(Weighting))}.")
    if dtype not in get_args(Scalar):
        raise UsageError(f"unknown scalar type {dtype!r}", hint=f"Known: {', '.join(get_args(Scalar))}.")
    count = thread_count(threads)
    try:
        bad = _machine.encode(
            current_tier(),
            format,
            source,
            dtype,
            offset_elements,
            rows,
            cols,
            cols if row_stride is None else row_stride,
            col_stride,
            scale,
            importance,
            weighting,
            out.reshape(-1),
            count,
        )
    except ValueError as error:  # sizes, strides and shapes that do not fit together
        raise UsageError(str(error)) from None
    if bad is not None:
        raise OutOfRangeError(format, *bad)


def quantize(
    weights: Any,
    format: str,
    *,
    importance: Any | None = None,
    weighting: Weighting = "plain",
    threads: int = 0,
) -> Bytes:
    """Quantize rows of weights to a GGUF block format.

    Args:
        weights: (rows, cols) or (experts, rows, cols); float32, float16, bfloat16, or uint16 holding bfloat16 bits, of
            numpy, torch, JAX, MLX or any library that speaks DLPack, on the CPU. Other floats are converted to
            float32. A transposed view is read in place.
        format: "q4_k", "q8_0", ...: see FORMATS.
        importance: (cols,), or (experts, cols) for three-dimensional weights: the weight of each column in the
            squared error that is minimised (an imatrix row). Finite and not negative. None: every weight counts the
            same, and a quicker search is used, so that the bytes may differ from those of ones.
        weighting: "plain", "magnitude" or "unbiased", see encode_into.
        threads: 0 takes all processors. The bytes do not depend on it.

    Returns:
        uint8 (rows, row_bytes) or (experts, rows, row_bytes), the bytes that a GGUF stores.

    Raises:
        NonFiniteError: a weight is NaN, infinite or beyond the format's range; row and column are named.
        UsageError: shapes, dtypes, values of importance or threads, or names that do not fit.
    """
    weights, scalar = float_array(weights, "weights")
    importance = None if importance is None else number_array(importance, "importance")
    if weights.ndim == 3:
        per_expert = importance
        wanted = (weights.shape[0], weights.shape[2])
        if per_expert is not None and per_expert.shape != wanted:
            raise UsageError(f"importance has shape {per_expert.shape}; (experts, cols) of these weights is {wanted}")
        out = np.empty((*weights.shape[:2], row_bytes(format, weights.shape[2])), np.uint8)
        for expert in range(weights.shape[0]):
            rows = None if per_expert is None else per_expert[expert]
            try:
                _quantize_rows(out[expert], weights[expert], scalar, format, rows, weighting, threads)
            except OutOfRangeError as error:
                error.what = f"expert {expert}: {error.what}"
                raise
        return out
    if weights.ndim != 2:
        raise UsageError(f"weights must be (rows, cols) or (experts, rows, cols), not of shape {weights.shape}")
    out = np.empty((weights.shape[0], row_bytes(format, weights.shape[1])), np.uint8)
    _quantize_rows(out, weights, scalar, format, importance, weighting, threads)
    return out


def _quantize_rows(
    out: Bytes,
    weights: npt.NDArray[Any],
    scalar: Scalar,
    format: str,
    importance: npt.NDArray[Any] | None,
    weighting: Weighting,
    threads: int,
) -> None:
    rows, cols = weights.shape
    source, row_stride, col_stride = rows_in_place(weights)
    encode_into(
        out,
        source,
        format=format,
        dtype=scalar,
        rows=rows,
        cols=cols,
        row_stride=row_stride,
        col_stride=col_stride,
        importance=importance,
        weighting=weighting,
        threads=threads,
    )


def rows_in_place(weights: npt.NDArray[Any]) -> tuple[Bytes, int, int]:
    """Flat bytes of (rows, cols) with row and column stride in elements; a transposed view is not copied."""
    rows, cols = weights.shape
    transposed = weights.flags.f_contiguous and not weights.flags.c_contiguous
    base = weights.T if transposed else np.ascontiguousarray(weights)
    return base.reshape(-1).view(np.uint8), 1 if transposed else cols, rows if transposed else 1


def column_weights(importance: npt.NDArray[Any], cols: int) -> npt.NDArray[np.float32]:
    """Importance as the machine room takes it. What float32 does not hold is refused before it would be infinite."""
    importance = number_array(importance, "importance")
    if importance.shape != (cols,):
        raise UsageError(f"importance has shape {importance.shape}, the rows have {cols} columns")
    held = (importance >= 0) & (importance <= np.finfo(np.float32).max)  # False for NaN
    if not held.all():
        column = int(np.argmin(held))
        raise UsageError(
            f"importance {importance[column]} at column {column} is negative, not finite or beyond float32",
            hint="Only the ratios between columns matter: divide all by their mean.",
        )
    return np.ascontiguousarray(importance, np.float32)


def thread_count(threads: int) -> int:
    """The number as the machine room takes it; UsageError when it is none."""
    try:
        count = operator.index(threads)
    except TypeError:
        count = -1
    if not 0 <= count < 1 << 31:
        raise UsageError(f"threads is {threads!r}", hint="Give a whole number of threads; 0 takes all processors.")
    return count


def dequantize(packed: Any, format: str, *, dtype: npt.DTypeLike = np.float32, threads: int = 0) -> npt.NDArray[Any]:
    """Decode rows of a GGUF block format, equal to the `gguf` package bit for bit.

    Args:
        packed: uint8 (..., row_bytes), of numpy or any library that speaks DLPack.
        dtype: of the result, a float of 16 bits or more; the decoding itself is float32.
        threads: 0 takes all processors.

    Returns:
        (..., cols) of `dtype`.

    Raises:
        UsageError: packed is not uint8 or its rows are not whole blocks; dtype is no float.
    """
    found = find_format(format)
    wanted = float_dtype(dtype)
    packed = byte_array(packed, block_bytes=found.block_bytes)
    out = np.empty((*packed.shape[:-1], packed.shape[-1] // found.block_bytes * found.block_size), np.float32)
    _machine.decode(current_tier(), format, packed.reshape(-1), out.reshape(-1), thread_count(threads))
    return out.astype(wanted, copy=False)


def float_dtype(dtype: npt.DTypeLike) -> np.dtype[Any]:
    """The dtype, if weights survive in it; integers would cut them to their whole part."""
    try:
        found = np.dtype(dtype)
    except TypeError:
        found = np.dtype(object)
    if dtype is None or (found.kind != "f" and found.name != "bfloat16"):
        raise UsageError(f"weights cannot be decoded to dtype {dtype!r}", hint="Give a float, such as numpy.float32.")
    return found
