"""The float product of activations with packed weights, in the machine room where its tier has a kernel for it;
elsewhere a few rows are decoded and handed to BLAS."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol, cast

import numpy as np
import numpy.typing as npt

from quantkit.errors import NonFiniteError
from quantkit.kernels import _machine
from quantkit.kernels.arrays import check_finite, float32_array
from quantkit.kernels.blas import blas_threads
from quantkit.kernels.codec import OutOfRangeError, Scalar, encode_into
from quantkit.kernels.formats import Format
from quantkit.kernels.groups import WHOLE_ROW, dequantize_groups
from quantkit.kernels.tier import current_tier

Floats = npt.NDArray[np.float32]

# Decoded weights at a time. Few rows of activations are done with a weight soon, so it should still lie in L2; many
# rows keep BLAS busy far longer than a weight takes to come from memory, and it works better on wide panels.
FEW_ROWS = 128
SCRATCH_BYTES_FEW, SCRATCH_BYTES_MANY = 1 << 20, 16 << 20
ROWS_STEP = 16  # of weights: what a BLAS kernel takes at once
REPACKED_ROWS, CACHE_LINE = 16, 64


class Weights(Protocol):
    """Rows of weights that can be decoded a few at a time."""

    @property
    def shape(self) -> tuple[int, int]: ...

    def decode(self, first: int, out: Floats, threads: int) -> None:
        """Rows from `first` on into `out`, float32 (count, cols), C-contiguous."""

    def multiply_direct(self, x: Floats, out: Floats, threads: int) -> bool | None:
        """out = x Wᵀ in floats; whether it is finite, or None, and nothing done: rows are to be decoded first."""

    def multiply_int8(self, x: Floats, out: Floats, threads: int) -> bool:
        """out = x Wᵀ with x quantized to int8; whether it is finite. ValueError for x that is not."""


@dataclass(frozen=True)
class BlockWeights:
    """uint8 (rows, row_bytes) of a GGUF block format; or repacked, that many `rows` in a multiple of sixteen."""

    packed: npt.NDArray[np.uint8]
    format: Format
    rows: int | None = None

    @property
    def shape(self) -> tuple[int, int]:
        rows, n_bytes = self.packed.shape
        return rows if self.rows is None else self.rows, n_bytes // self.format.block_bytes * self.format.block_size

    def decode(self, first: int, out: Floats, threads: int) -> None:
        packed = self.packed if self.rows is None else repacked(self.packed, self.format, self.rows, back=True)
        rows = np.ascontiguousarray(packed[first : first + len(out)])
        _machine.decode(current_tier(), self.format.name, rows.reshape(-1), out.reshape(-1), threads)

    def multiply_direct(self, x: Floats, out: Floats, threads: int) -> bool | None:
        if len(x) > _machine.DOT_ROWS:
            packed = self.packed if self.packed.strides[1] == 1 else np.ascontiguousarray(self.packed)
            return _machine.matmul_panels(current_tier(), self.format.name, x, packed, out, threads)
        rows, cols = self.shape
        if cols % 32:
            x = np.pad(x, ((0, 0), (0, -cols % 32)))
        # rows that lie apart are put together some at a time
        step = rows if self.packed.flags.c_contiguous else max(1, SCRATCH_BYTES_MANY // self.packed.shape[1])
        for first in range(0, rows, step):
            packed = np.ascontiguousarray(self.packed[first : first + step])
            part = out if out.flags.c_contiguous and step == rows else np.empty((len(x), len(packed)), np.float32)
            _machine.matmul_few(current_tier(), self.format.name, x, packed.reshape(-1), cols, part, threads)
            out[:, first : first + step] = part
        return bool(np.isfinite(out).all())

    def multiply_int8(self, x: Floats, out: Floats, threads: int) -> bool:
        packed = np.ascontiguousarray(self.packed).reshape(-1)
        tier, name = current_tier(), self.format.name
        apart = self.rows is not None
        return _machine.matmul_fast(tier, name, x.reshape(-1), packed, *self.shape, out.reshape(-1), threads, apart)


def repacked(
    packed: npt.NDArray[np.uint8], format: Format, rows: int, *, back: bool = False, threads: int = 0
) -> npt.NDArray[np.uint8]:
    """Plain (rows, row_bytes) or (experts, rows, row_bytes) as the machine room repacks them, or `back`: a new array,
    which begins where a cache line does."""
    *lead, _, row_bytes = packed.shape
    shape = (*lead, rows if back else -(-rows // REPACKED_ROWS) * REPACKED_ROWS, row_bytes)
    n_bytes = math.prod(shape)
    room = np.empty(n_bytes + CACHE_LINE, np.uint8)
    start = -room.ctypes.data % CACHE_LINE
    out = room[start : start + n_bytes]
    if n_bytes:
        cols = row_bytes // format.block_bytes * format.block_size
        source = np.ascontiguousarray(packed).reshape(-1)
        _machine.repack(current_tier(), format.name, source, math.prod(lead), rows, cols, out, back, threads)
    return out.reshape(shape)


@dataclass(frozen=True)
class InputMajorWeights:
    """uint8 (cols, bytes of all rows) of f32, f16 or bf16: other weights transposed, and the same results bit by
    bit."""

    packed: npt.NDArray[np.uint8]
    format: Format

    @property
    def shape(self) -> tuple[int, int]:
        cols, n_bytes = self.packed.shape
        return n_bytes // self.format.block_bytes, cols

    def decode(self, first: int, out: Floats, threads: int) -> None:
        self.transpose(first, out.view(np.uint8), "f32", threads)

    def multiply_direct(self, x: Floats, out: Floats, threads: int) -> bool | None:
        if len(x) > _machine.DOT_ROWS:
            return _machine.matmul_panels(current_tier(), self.format.name, x, self.packed, out, threads, True)
        rows, cols = self.shape
        row_bytes = cols * self.format.block_bytes
        step = max(1, SCRATCH_BYTES_MANY // row_bytes)
        all_finite = True
        for first in range(0, rows, step):
            packed = np.empty((min(step, rows - first), row_bytes), np.uint8)
            self.transpose(first, packed, self.format.name, threads)
            part = out[:, first : first + step]
            all_finite &= bool(BlockWeights(packed, self.format).multiply_direct(x, part, threads))
        return all_finite

    def multiply_int8(self, x: Floats, out: Floats, threads: int) -> bool:
        raise NotImplementedError("int8 activations are for block formats")

    def transpose(self, first: int, out: npt.NDArray[np.uint8], format: str, threads: int) -> None:
        """Rows from `first` on into `out`, uint8 (count, row_bytes) of a plain float format, C-contiguous."""
        cols, n_bytes = self.packed.shape
        item, pitch = self.format.block_bytes, self.packed.strides[0]
        flat = np.lib.stride_tricks.as_strided(self.packed, ((cols - 1) * pitch + n_bytes,), (1,))
        try:
            encode_into(
                out,
                flat,
                format=format,
                dtype=cast(Scalar, self.format.name),
                rows=len(out),
                cols=cols,
                offset_elements=first,
                row_stride=1,
                col_stride=pitch // item,
                threads=threads,
            )
        except OutOfRangeError as error:
            raise OutOfRangeError(format, first + error.row, error.col, error.value) from None


@dataclass(frozen=True)
class GroupWeights:
    """uint32 (rows, words) in MLX's affine layout; scales and biases (rows, groups) float32, float16, or uint16 that
    holds bfloat16 bits."""

    packed: npt.NDArray[np.uint32]
    scales: npt.NDArray[Any]
    biases: npt.NDArray[Any]
    bits: int
    group_size: int

    @property
    def shape(self) -> tuple[int, int]:
        rows, words = self.packed.shape
        return rows, words * 32 // self.bits

    def decode(self, first: int, out: Floats, threads: int) -> None:
        some = slice(first, first + len(out))
        groups = self.packed[some], self.scales[some], self.biases[some]
        out[:] = dequantize_groups(*groups, self.bits, self.group_size, threads=threads)

    def multiply_direct(self, x: Floats, out: Floats, threads: int) -> bool | None:
        return None

    def multiply_int8(self, x: Floats, out: Floats, threads: int) -> bool:
        rows, cols = self.shape
        group = cols if self.group_size == WHOLE_ROW else self.group_size
        scales = np.ascontiguousarray(float32_array(self.scales, "scales")).reshape(-1)
        biases = np.ascontiguousarray(float32_array(self.biases, "biases")).reshape(-1)
        words = np.ascontiguousarray(self.packed).reshape(-1)
        weights = (words, scales, biases, rows, cols)
        y = out.reshape(-1)
        return _machine.matmul_fast_groups(current_tier(), self.bits, group, x.reshape(-1), *weights, y, threads)


def multiply(x: Floats, weights: Weights, out: Floats, *, int8: bool, threads: int) -> None:
    """out = x Wᵀ: x (n, cols), W (rows, cols), out (n, rows), all finite or a NonFiniteError. x is known to be finite,
    unless int8."""
    if not x.size or not out.size:
        out[:] = 0
        return
    if int8:
        with finite_activations(x):
            is_finite: bool | None = weights.multiply_int8(x, out, threads)
    else:
        is_finite = weights.multiply_direct(x, out, threads)
        if is_finite is None:
            is_finite = _multiply_panels(x, weights, out, threads)
    if not is_finite:
        refuse(out, weights)


@contextmanager
def finite_activations(x: Floats, name: str = "activations") -> Iterator[None]:
    """Name what is not finite in x, when the machine room has refused it."""
    try:
        yield
    except ValueError:
        check_finite(x, "f32", name)
        raise


def _multiply_panels(x: Floats, weights: Weights, out: Floats, threads: int) -> bool:
    """out = x Wᵀ, decoded some rows at a time; whether it is finite."""
    rows, cols = weights.shape
    n_bytes = SCRATCH_BYTES_FEW if len(x) < FEW_ROWS else SCRATCH_BYTES_MANY
    step = min(rows, max(1, n_bytes // (4 * cols * ROWS_STEP)) * ROWS_STEP)
    scratch = np.empty((step, cols), np.float32)
    all_finite = True
    with blas_threads(threads), np.errstate(all="ignore"):
        for first in range(0, rows, step):
            block = scratch[: rows - first]
            weights.decode(first, block, threads)
            part = out[:, first : first + len(block)]
            is_finite = _machine.matmul_panels(current_tier(), "f32", x, block.view(np.uint8), part, threads)
            if is_finite is None:
                np.matmul(x, block.T, out=part)
                is_finite = bool(np.isfinite(part).all())
            all_finite &= is_finite
    return all_finite


def refuse(out: Floats, weights: Weights) -> NoReturn:
    """Raise NonFiniteError for a product with finite activations that is NaN or infinite somewhere."""
    row = int(np.argmin(np.isfinite(out).all(axis=0)))
    decoded = np.empty((1, weights.shape[1]), np.float32)
    weights.decode(row, decoded, 1)
    finite = np.isfinite(decoded[0])
    if finite.all():
        raise NonFiniteError(
            f"the product with row {row} of the weights is beyond float32", hint="Scale the activations down."
        )
    col = int(np.argmin(finite))
    raise NonFiniteError(
        f"weight {decoded[0, col]} at row {row}, column {col} is not finite",
        hint="The packed bytes are damaged, or are not of this format.",
    )
