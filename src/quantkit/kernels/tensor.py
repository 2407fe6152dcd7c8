"""A quantized tensor: packed bytes together with what they mean."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
import numpy.typing as npt

from quantkit.errors import UsageError
from quantkit.kernels import codec
from quantkit.kernels.arrays import byte_rows
from quantkit.kernels.deviation import Deviation, deviation
from quantkit.kernels.formats import find_format
from quantkit.kernels.matmul import Mode, matmul, matmul_experts


@dataclass(frozen=True, eq=False, repr=False)
class QuantizedTensor:
    """Weights in a block format: a matrix (rows, cols), or the matrices (experts, rows, cols) of experts.

    `qt[...]` takes rows and experts by whole numbers and slices without a copy, and by arrays of whole numbers with
    one; columns are packed in blocks and cannot be taken. `x @ qt.T` is the product with activations. The bytes are
    shared with the array that they came in, and read-only here.

    Attributes:
        packed: uint8 (..., row_bytes), the bytes that a GGUF stores. Any library's array is taken, without a copy.
        format: "q4_k", "q8_0", ...: a key of FORMATS.

    Raises:
        UsageError: packed is not uint8 or its rows are not whole blocks; the format is unknown.
    """

    packed: npt.NDArray[np.uint8]
    format: str

    __array_ufunc__ = None  # numpy leaves `x @ qt.T` to __rmatmul__

    def __post_init__(self) -> None:
        found = find_format(self.format)
        packed = byte_rows(self.packed, block_bytes=found.block_bytes).view()
        packed.flags.writeable = False
        object.__setattr__(self, "packed", packed)

    @classmethod
    def quantize(
        cls,
        weights: Any,
        format: str,
        *,
        importance: Any | None = None,
        weighting: codec.Weighting = "plain",
        threads: int = 0,
    ) -> QuantizedTensor:
        """Quantize (rows, cols) or (experts, rows, cols).

        Arguments and errors are those of `quantkit.kernels.quantize`.
        """
        packed = codec.quantize(weights, format, importance=importance, weighting=weighting, threads=threads)
        return cls(packed, format)

    def dequantize(self, dtype: npt.DTypeLike = np.float32, *, threads: int = 0) -> npt.NDArray[Any]:
        """The weights as a new numpy array of `dtype`, a float of 16 bits or more.

        `torch.from_numpy(qt.dequantize())`, `mx.array(...)` and `jnp.asarray(...)` take it further; with ml_dtypes
        there is a bfloat16: `qt.dequantize(ml_dtypes.bfloat16)`.
        """
        return codec.dequantize(self.packed, self.format, dtype=dtype, threads=threads)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weights: (rows, cols) or (experts, rows, cols)."""
        found = find_format(self.format)
        return (*self.packed.shape[:-1], self.packed.shape[-1] // found.block_bytes * found.block_size)

    @property
    def ndim(self) -> int:
        return self.packed.ndim

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weights."""
        return self.packed.nbytes

    @property
    def bits_per_weight(self) -> float:
        return find_format(self.format).bits_per_weight

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> QuantizedTensor:
        key = tuple(self._index_part(part) for part in (index if isinstance(index, tuple) else (index,)))
        whole = any(part is Ellipsis for part in key)
        if len(key) - whole >= self.ndim:
            raise UsageError(
                f"{self!r} has no index {index!r}: columns are packed in blocks", hint="Dequantize the rows first."
            )
        return QuantizedTensor(self.packed[(*key, slice(None)) if whole else (*key, ...)], self.format)

    def _index_part(self, part: Any) -> Any:
        if isinstance(part, slice) or part is Ellipsis:
            return part
        if isinstance(part, SupportsIndex) and not isinstance(part, bool) and np.ndim(part) == 0:  # type: ignore[arg-type]
            return operator.index(part)
        array = np.asarray(part)
        if array.ndim and array.dtype.kind in "iu":
            return array
        raise UsageError(
            f"{self!r} has no index {part!r}",
            hint="Take rows and experts by whole numbers, slices, or arrays of numbers.",
        )

    def error(self, reference: Any, weights: Any | None = None) -> Deviation:
        """How far these weights are from `reference`, in float64, a few rows at a time.

        Args:
            reference: floats of this tensor's shape, of any library.
            weights: (cols,) or (experts, cols): the weight of each column in sums and means (importance).

        Raises:
            UsageError: shapes, dtypes or weights that do not fit.
            NonFiniteError: a value on either side is NaN or infinite.
        """
        return deviation(reference, self.shape, lambda index: self[index].dequantize(), weights)

    def matmul(self, x: Any, *, mode: Mode = "exact", threads: int = 0) -> npt.NDArray[np.float32]:
        """x Wᵀ: x (n, cols) or (cols,) -> float32 (n, rows) or (rows,). See `quantkit.kernels.matmul`."""
        if self.ndim != 2:
            raise UsageError(f"{self!r} is no matrix", hint="Take one expert, qt[i], or use qt.matmul_experts.")
        return matmul(x, self.packed, self.format, mode=mode, threads=threads)

    def matmul_experts(
        self, x: Any, expert_ids: Any, *, scale: Any | None = None, mode: Mode = "exact", threads: int = 0
    ) -> npt.NDArray[np.float32]:
        """scale[i] x[i] W[expert_ids[i]]ᵀ: x (n, cols) -> float32 (n, rows). See `quantkit.kernels.matmul_experts`."""
        if self.ndim != 3:
            raise UsageError(f"{self!r} is not of experts", hint="For one matrix there is qt.matmul.")
        return matmul_experts(x, self.packed, self.format, expert_ids, scale=scale, mode=mode, threads=threads)

    @property
    def T(self) -> Transposed:
        """What stands on the right of `x @ qt.T`; nothing is computed or moved."""
        return Transposed(self)

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, whole or not at all; a file of that name is replaced.

        Raises:
            OutputError: writing failed.
        """
        from quantkit.kernels.storage import save

        save(self, Path(path))

    @classmethod
    def load(cls, path: str | Path) -> QuantizedTensor:
        """What `save` wrote. The file is mapped: what is not looked at is not read.

        Raises:
            CheckpointError: the file is missing, damaged, or was not written by `save`.
        """
        from quantkit.kernels.storage import load

        return load(Path(path))

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        if copy is False:
            raise ValueError(f"{self!r} has no array to share: decoding makes a new one")
        return self.dequantize(np.float32 if dtype is None else dtype)

    def __repr__(self) -> str:
        size = f"{self.nbytes / 1e6:.1f} MB" if self.nbytes >= 1e6 else f"{self.nbytes:,} bytes"
        return f"QuantizedTensor({self.format}, shape={self.shape}, {self.bits_per_weight:g} bits per weight, {size})"


@dataclass(frozen=True)
class Transposed:
    """A quantized matrix as the right operand of `@`.

    MLX and JAX arrays may insist on an operand of their own; `qt.matmul(x)` takes those.
    """

    tensor: QuantizedTensor

    __array_ufunc__ = None

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.tensor.shape[:-2], *self.tensor.shape[:-3:-1])

    @property
    def T(self) -> QuantizedTensor:
        return self.tensor

    def __rmatmul__(self, x: Any) -> npt.NDArray[np.float32]:
        return self.tensor.matmul(x)
