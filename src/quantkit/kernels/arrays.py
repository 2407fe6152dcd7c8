"""Where arrays come in: numpy's own, and those of torch, JAX, MLX and others without a copy, bfloat16 included."""

from __future__ import annotations

import sys
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from quantkit.errors import NonFiniteError, UsageError
from quantkit.kernels import _machine

Float = Literal["f32", "f16", "bf16"]

_CPU = "Move it to the CPU first, in torch `x.cpu()`."
_DEVICES = {1: "the CPU", 2: "a CUDA device", 8: "a Metal device", 10: "a ROCm device", 13: "CUDA's managed memory"}
_METAL = 8
_CHUNK = 1 << 20  # elements looked at together, so that a check needs no memory of the array's size


def float_array(value: Any, name: str = "array") -> tuple[npt.NDArray[Any], Float]:
    """Floats as the kernels read them.

    Args:
        value: numpy float32, float16, ml_dtypes.bfloat16, or uint16 holding bfloat16 bits; or an array on the CPU of
            any library that speaks DLPack, the array interface or the buffer protocol. Other floats become float32.
        name: what errors call it.

    Returns:
        (array, type): native, aligned numpy float32 with "f32", float16 with "f16", or uint16 with "bf16". It shares
        the memory of `value`, whatever its strides, unless it had to be converted; do not write to it.

    Raises:
        UsageError: another dtype, another device, or no array.
    """
    array, type = real_array(value, name)
    if type is not None:
        return array, type
    with np.errstate(over="ignore"):  # infinity is refused where it matters, by row and column
        return array.astype(np.float32), "f32"


def real_array(value: Any, name: str = "array") -> tuple[npt.NDArray[Any], Float | None]:
    """As `float_array`, but that floats of other widths come as they are, with None for their type."""
    array, bfloat16 = _numpy(value, name)
    if bfloat16 or array.dtype == np.uint16:
        return array, "bf16"
    if array.dtype == np.float16:
        return array, "f16"
    if array.dtype == np.float32:
        return array, "f32"
    if array.dtype.kind == "f":
        return array, None
    raise UsageError(
        f"{name} has dtype {array.dtype}",
        hint="Give float32, float16, bfloat16, or uint16 holding bfloat16 bits.",
    )


def float32_array(value: Any, name: str = "array", *, shape: tuple[int, ...] | None = None) -> npt.NDArray[np.float32]:
    """The same as C-contiguous float32 of `shape`, if one is given; a copy unless it is that already. Finite.

    For what is small beside the weights: scales, biases, activations where float32 is what is computed with.

    Raises:
        UsageError: as `float_array`, and another shape.
        NonFiniteError: a value is NaN or infinite; it is named by its index.
    """
    array, type = float_array(value, name)
    if shape is not None and array.shape != shape:
        raise UsageError(f"{name} has shape {array.shape}, not {shape}")
    check_finite(array, type, name)
    return np.ascontiguousarray(widened(array, type))


def widened(array: npt.NDArray[Any], type: Float | None) -> npt.NDArray[Any]:
    """float32 of f16 and bf16 bits, exactly; others as they are."""
    if type == "bf16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32) if type == "f16" else array


def byte_array(value: Any, name: str = "packed", *, block_bytes: int = 1) -> npt.NDArray[np.uint8]:
    """Packed rows: C-contiguous uint8 (..., row_bytes), copied only if they lie otherwise.

    Raises:
        UsageError: not uint8, no dimension, or rows that are not whole blocks of `block_bytes`.
    """
    return np.ascontiguousarray(byte_rows(value, name, block_bytes=block_bytes))


def byte_rows(value: Any, name: str = "packed", *, block_bytes: int = 1) -> npt.NDArray[np.uint8]:
    """As `byte_array`, but the rows may lie apart: only the bytes of one row must be neighbours."""
    array, _ = _numpy(value, name)
    if array.dtype != np.uint8 or array.ndim < 1 or array.shape[-1] % block_bytes:
        what = f"{name} must be uint8 with rows of whole {block_bytes}-byte blocks"
        raise UsageError(f"{what}, not {array.dtype} of shape {array.shape}")
    return array if array.strides[-1] == 1 else np.ascontiguousarray(array)


def word_rows(value: Any, name: str = "packed") -> npt.NDArray[np.uint32]:
    """Packed words of group formats: uint32 (..., words), in place if the words of a row are neighbours.

    Raises:
        UsageError: not uint32, or no dimension.
    """
    array, _ = _numpy(value, name)
    if array.dtype != np.uint32 or array.ndim < 1:
        raise UsageError(f"{name} must be uint32 (..., words), not {array.dtype} of shape {array.shape}")
    return array if array.strides[-1] == 4 else np.ascontiguousarray(array)


def number_array(value: Any, name: str = "array") -> npt.NDArray[Any]:
    """Real numbers of any dtype, as numpy; bfloat16 is widened to float32, and uint16 is whole numbers.

    Raises:
        UsageError: another device, or dtype that is no real number.
    """
    array, bfloat16 = _numpy(value, name)
    if bfloat16:
        return widened(array, "bf16")
    if array.dtype.kind not in "fiub":
        raise UsageError(f"{name} has dtype {array.dtype}", hint="Give real numbers.")
    return array


def index_array(value: Any, name: str, *, length: int, limit: int) -> npt.NDArray[np.int64]:
    """Whole numbers from 0 to limit - 1, one for each of `length` rows: C-contiguous int64 (length,).

    Raises:
        UsageError: another dtype or shape, or a number out of range, named by its row.
    """
    array, bfloat16 = _numpy(value, name)
    if bfloat16 or array.dtype.kind not in "iu":
        raise UsageError(f"{name} has dtype {'bfloat16' if bfloat16 else array.dtype}", hint="Give whole numbers.")
    if array.shape != (length,):
        raise UsageError(f"{name} has shape {array.shape}, not ({length},): one number a row")
    outside = (array < 0) | (array >= limit)
    if outside.any():
        row = int(np.argmax(outside))
        raise UsageError(f"{name}: {array[row]} at row {row} is not in 0 .. {limit - 1}")
    return np.ascontiguousarray(array, np.int64)


def check_finite(array: npt.NDArray[Any], type: Float, name: str = "array") -> None:
    """Refuse NaN and infinity in what `float_array` returned, in little memory.

    Raises:
        NonFiniteError: with the value and its index.
    """
    step = max(1, _CHUNK // max(1, array[:1].size))
    for start in range(0, array.shape[0] if array.ndim else 0, step):
        part = array[start : start + step]
        finite = (part & 0x7F80) != 0x7F80 if type == "bf16" else np.isfinite(part)
        if not finite.all():
            inside = np.unravel_index(int(np.argmin(finite)), part.shape)
            index = (start + int(inside[0]), *map(int, inside[1:]))
            value = float(widened(part[inside][None], type)[0])
            at = f"row {index[0]}, column {index[1]}" if len(index) == 2 else f"index {list(index)}"
            raise NonFiniteError(f"{name}: {value} at {at} is not finite")


def _numpy(value: Any, name: str) -> tuple[npt.NDArray[Any], bool]:
    """Any array as native, aligned numpy, and whether it is bfloat16 in the form of uint16 bits."""
    bfloat16 = False
    if isinstance(value, np.ndarray | np.generic) or not hasattr(value, "__dlpack__"):
        try:
            array = np.asarray(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise UsageError(f"{name} is a {_kind(value)} that is no array: {error}") from error
    else:
        array, bfloat16 = _from_dlpack(value, name)
    if array.dtype.kind == "V" and array.dtype.name == "bfloat16":
        array, bfloat16 = array.view(np.uint16), True
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return array if array.flags.aligned else array.copy(), bfloat16  # kernels read whole words


def _from_dlpack(value: Any, name: str) -> tuple[npt.NDArray[Any], bool]:
    if getattr(value, "requires_grad", False):
        value = value.detach()  # a torch parameter: nothing is computed that would have a gradient
    try:
        try:
            capsule = value.__dlpack__(max_version=(1, 0))  # a read-only array has no older form
        except TypeError:
            capsule = value.__dlpack__()
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise UsageError(f"{name}, a {_kind(value)}, cannot be read through DLPack: {error}", hint=_CPU) from error
    array, dtype, device = _machine.from_dlpack(capsule)
    if array is not None:
        return array, dtype == "bfloat16"
    if device == _METAL and type(value).__module__ == "mlx.core":  # in memory that the buffer protocol shows as well
        bfloat16 = dtype == "bfloat16"
        return np.asarray(value.view(sys.modules["mlx.core"].uint16) if bfloat16 else value), bfloat16
    if device not in (1, 3, 11):
        raise UsageError(f"{name} lies on {_DEVICES.get(device, f'a device of DLPack type {device}')}", hint=_CPU)
    raise UsageError(f"{name} has dtype {dtype}", hint="Give float32, float16 or bfloat16.")


def _kind(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"
