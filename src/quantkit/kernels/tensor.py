"""A quantized tensor: packed weights together with what they mean."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np
import numpy.typing as npt

from quantkit.errors import NonFiniteError, UsageError
from quantkit.kernels import codec
from quantkit.kernels.arrays import Float, byte_rows, float_array, index_array, word_rows
from quantkit.kernels.deviation import Deviation, deviation
from quantkit.kernels.formats import find_format
from quantkit.kernels.group_format import GroupFormat, find_group_format
from quantkit.kernels.groups import dequantize_groups, quantize_groups
from quantkit.kernels.matmul import Mode, by_expert, matmul, matmul_experts, matmul_groups, routed

if TYPE_CHECKING:
    from quantkit.kernels.repacked import RepackedTensor


@dataclass(frozen=True, eq=False, repr=False)
class QuantizedTensor:
    """Weights in a block format or a group format: a matrix (rows, cols), or those (experts, rows, cols) of experts.

    `qt[...]` takes rows and experts by whole numbers and slices without a copy, and by arrays of whole numbers with
    one; columns are packed in blocks and cannot be taken. `x @ qt.T` is the product with activations, a numpy array
    for x of numpy, torch and JAX; MLX's arrays know no right operand but their own, and raise TypeError: for them, and
    for every library's, there is `qt.matmul(x)`. The arrays are shared with what they came in as, and read-only here.
    Any library's arrays are taken, without a copy.

    Attributes:
        packed: uint8 (..., row_bytes), the bytes that a GGUF stores; or uint32 (..., cols * bits / 32), MLX's words.
        format: "q4_k", "q8_0", ...: a key of FORMATS; or "int4_g64": 2, 3, 4, 5, 6 or 8 bits a code, and a scale and a
            bias for each 32, 64 or 128 weights, or for each row ("int4_row").
        scales, biases: of group formats: (..., groups) float32, float16, or uint16 holding bfloat16 bits; else None.

    Raises:
        UsageError: dtypes or shapes that do not fit the format; the format is unknown.
    """

    packed: npt.NDArray[Any]
    format: str
    scales: npt.NDArray[Any] | None = None
    biases: npt.NDArray[Any] | None = None

    __array_ufunc__ = None  # numpy leaves `x @ qt.T` to __rmatmul__

    def __post_init__(self) -> None:
        group = find_group_format(self.format)
        if group is not None:
            parts = _group_parts(group, self.packed, self.scales, self.biases)
        elif self.scales is not None or self.biases is not None:
            raise UsageError(f"{self.format} has its scales in its blocks", hint="Give packed and format alone.")
        else:
            parts = {"packed": byte_rows(self.packed, block_bytes=find_format(self.format).block_bytes)}
        for name, part in parts.items():
            view = part.view()
            view.flags.writeable = False
            object.__setattr__(self, name, view)

    @classmethod
    def quantize(
        cls,
        weights: Any,
        format: str,
        *,
        importance: Any | None = None,
        weighting: codec.Weighting = "plain",
        symmetric: bool = False,
        scale_dtype: Float = "f32",
        threads: int = 0,
    ) -> QuantizedTensor:
        """Quantize (rows, cols) or (experts, rows, cols).

        Arguments and errors are those of `quantkit.kernels.quantize`, which takes `weighting`, and of
        `quantkit.kernels.quantize_groups`, which takes `symmetric` and `scale_dtype`.
        """
        group = find_group_format(format)
        if group is None:
            if symmetric or scale_dtype != "f32":
                raise UsageError(f"{format} has no symmetric and no scale_dtype", hint="Group formats have: int4_g64.")
            packed = codec.quantize(weights, format, importance=importance, weighting=weighting, threads=threads)
            return cls(packed, format)
        if weighting != "plain":
            raise UsageError(f"{format} is quantized with weighting 'plain', not {weighting!r}")
        parts = quantize_groups(
            weights,
            bits=group.bits,
            group_size=group.group_size,
            symmetric=symmetric,
            importance=importance,
            scale_dtype=scale_dtype,
            threads=threads,
        )
        return cls(parts[0], format, *parts[1:])

    def dequantize(self, dtype: npt.DTypeLike = np.float32, *, threads: int = 0) -> npt.NDArray[Any]:
        """The weights as a new numpy array of `dtype`, a float of 16 bits or more.

        `torch.from_numpy(qt.dequantize())`, `mx.array(...)` and `jnp.asarray(...)` take it further; with ml_dtypes
        there is a bfloat16: `qt.dequantize(ml_dtypes.bfloat16)`.
        """
        group = find_group_format(self.format)
        if group is None:
            return codec.dequantize(self.packed, self.format, dtype=dtype, threads=threads)
        return dequantize_groups(
            self.packed,
            self.scales,
            self.biases,
            bits=group.bits,
            group_size=group.group_size,
            dtype=dtype,
            threads=threads,
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weights: (rows, cols) or (experts, rows, cols)."""
        *lead, width = self.packed.shape
        group = find_group_format(self.format)
        if group is not None:
            return (*lead, group.cols(width))
        found = find_format(self.format)
        return (*lead, width // found.block_bytes * found.block_size)

    @property
    def ndim(self) -> int:
        return self.packed.ndim

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weights, their scales and biases."""
        return sum(part.nbytes for part in self.parts().values())

    @property
    def bits_per_weight(self) -> float:
        group = find_group_format(self.format)
        if group is None or self.scales is None:
            return find_format(self.format).bits_per_weight
        return group.bits + 16 * self.scales.itemsize / group.group_cols(self.shape[-1])

    def parts(self) -> dict[str, npt.NDArray[Any]]:
        """The arrays by name, without a copy: packed, and for group formats scales and biases."""
        named = {"packed": self.packed, "scales": self.scales, "biases": self.biases}
        return {name: part for name, part in named.items() if part is not None}

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[QuantizedTensor]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: Any) -> QuantizedTensor:
        key = tuple(self._index_part(part) for part in (index if isinstance(index, tuple) else (index,)))
        whole = any(part is Ellipsis for part in key)
        if len(key) - whole >= self.ndim:
            raise UsageError(
                f"{self!r} has no index {index!r}: columns are packed in blocks", hint="Dequantize the rows first."
            )
        key = (*key, slice(None)) if whole else (*key, ...)
        return QuantizedTensor(format=self.format, **{name: part[key] for name, part in self.parts().items()})

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
        group = find_group_format(self.format)
        if group is not None and self.scales is not None and self.biases is not None:
            return matmul_groups(
                x,
                self.packed,
                self.scales,
                self.biases,
                bits=group.bits,
                group_size=group.group_size,
                mode=mode,
                threads=threads,
            )
        return matmul(x, self.packed, self.format, mode=mode, threads=threads)

    def matmul_experts(
        self, x: Any, expert_ids: Any, *, scale: Any | None = None, mode: Mode = "exact", threads: int = 0
    ) -> npt.NDArray[np.float32]:
        """scale[i] x[i] W[expert_ids[i]]ᵀ: x (n, cols) -> float32 (n, rows). See `quantkit.kernels.matmul_experts`."""
        if self.ndim != 3:
            raise UsageError(f"{self!r} is not of experts", hint="For one matrix there is qt.matmul.")
        if self.scales is not None:
            rows = routed(x, self.shape[-1], scale)
            ids = index_array(expert_ids, "expert_ids", length=len(rows), limit=len(self))
            out = np.empty((len(rows), self.shape[1]), np.float32)
            order, starts = by_expert(ids, len(self))
            for expert in np.flatnonzero(np.diff(starts)):
                mine = order[starts[expert] : starts[expert + 1]]
                try:
                    out[mine] = self[expert].matmul(rows[mine], mode=mode, threads=threads)
                except NonFiniteError as error:
                    error.what = f"expert {expert}: {error.what}"
                    raise
            return out
        return matmul_experts(x, self.packed, self.format, expert_ids, scale=scale, mode=mode, threads=threads)

    def repack(self, *, threads: int = 0) -> RepackedTensor:
        """A copy whose rows lie as `matmul(mode="fast")` with few rows of x reads them quickest: see RepackedTensor.

        Raises:
            UsageError: the format is none of blocks.
        """
        from quantkit.kernels.repacked import RepackedTensor

        return RepackedTensor.of(self, threads=threads)

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


def _group_parts(group: GroupFormat, packed: Any, scales: Any, biases: Any) -> dict[str, npt.NDArray[Any]]:
    if scales is None or biases is None:
        raise UsageError(
            f"{group.name} needs scales and biases beside the packed words",
            hint=f'QuantizedTensor(packed, "{group.name}", scales, biases) holds all three.',
        )
    words = word_rows(packed)
    (scale, type), (bias, bias_type) = float_array(scales, "scales"), float_array(biases, "biases")
    cols = group.cols(words.shape[-1])
    wanted = (*words.shape[:-1], cols // group.group_cols(cols))
    if scale.shape != wanted or bias.shape != wanted or type != bias_type:
        raise UsageError(
            f"scales are {type} of shape {scale.shape}, biases {bias_type} of shape {bias.shape}; both must be of "
            f"shape {wanted} and one type for {group.name} words of shape {words.shape}"
        )
    return {"packed": words, "scales": scale, "biases": bias}


@dataclass(frozen=True)
class Transposed:
    """A quantized matrix as the right operand of `@`, which numpy, torch and JAX leave to it."""

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
