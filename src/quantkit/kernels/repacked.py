"""Weights laid out for few rows of activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from quantkit.errors import UsageError
from quantkit.kernels.arrays import byte_rows
from quantkit.kernels.codec import thread_count
from quantkit.kernels.formats import find_format
from quantkit.kernels.group_format import find_group_format
from quantkit.kernels.matmul import direct, product, product_experts
from quantkit.kernels.panel import REPACKED_ROWS, BlockWeights, repacked
from quantkit.kernels.tensor import QuantizedTensor


@dataclass(frozen=True, eq=False, repr=False)
class RepackedTensor:
    """Weights in a block format, sixteen rows of each matrix side by side: what `QuantizedTensor.repack()` gives.

    The same bits in another order, in memory only: a lane of a vector is a row of weights, so that products with one to
    three rows of x (decoding) need fewer operations. Products are those of `mode="fast"`; a row of them is
    bit by bit that of the plain weights with four rows of x and more, however many there are here.

    Attributes:
        packed: uint8 (rows up to a multiple of sixteen, row_bytes), or (experts, ...); read-only.
        format: "q4_k", "q8_0", ...
        rows: of a matrix.

    Raises:
        UsageError: `packed` is not what `repack()` gives for the format and the number of rows.
    """

    packed: npt.NDArray[np.uint8]
    format: str
    rows: int

    def __post_init__(self) -> None:
        view = byte_rows(self.packed, block_bytes=find_format(self.format).block_bytes).view()
        wanted = -(-self.rows // REPACKED_ROWS) * REPACKED_ROWS
        if view.ndim not in (2, 3) or view.shape[-2] != wanted or not view.flags.c_contiguous:
            raise UsageError(
                f"{self.rows} repacked rows are a C-contiguous array (..., {wanted}, row_bytes), not one of shape "
                f"{view.shape}",
                hint="QuantizedTensor.repack() makes it.",
            )
        view.flags.writeable = False
        object.__setattr__(self, "packed", view)

    @classmethod
    def of(cls, tensor: QuantizedTensor, *, threads: int = 0) -> RepackedTensor:
        """What `tensor.repack()` gives.

        Raises:
            UsageError: the format is none of blocks, or the tensor has more than three dimensions.
        """
        count = thread_count(threads)
        if find_group_format(tensor.format) is not None or find_format(tensor.format).block_size == 1:
            raise UsageError(f"{tensor.format} cannot be repacked", hint="Block formats can: q4_k, q8_0, ...")
        if tensor.ndim not in (2, 3):
            raise UsageError(f"{tensor!r} is neither a matrix nor those of experts")
        rows = tensor.shape[-2]
        return cls(repacked(tensor.packed, find_format(tensor.format), rows, threads=count), tensor.format, rows)

    def unpack(self, *, threads: int = 0) -> QuantizedTensor:
        """The plain tensor, byte by byte what was repacked; a copy."""
        count = thread_count(threads)
        plain = repacked(self.packed, find_format(self.format), self.rows, back=True, threads=count)
        return QuantizedTensor(plain, self.format)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weights: (rows, cols) or (experts, rows, cols)."""
        *lead, _, n_bytes = self.packed.shape
        found = find_format(self.format)
        return (*lead, self.rows, n_bytes // found.block_bytes * found.block_size)

    @property
    def ndim(self) -> int:
        return self.packed.ndim

    @property
    def nbytes(self) -> int:
        return self.packed.nbytes

    def matmul(
        self, x: Any, *, threads: int = 0, out: npt.NDArray[np.float32] | None = None
    ) -> npt.NDArray[np.float32]:
        """x Wᵀ: x (n, cols) or (cols,) -> float32 (n, rows) or (rows,).

        Arguments and errors are those of `quantkit.kernels.matmul`.
        """
        if self.ndim != 2:
            raise UsageError(f"{self!r} is no matrix", hint="For experts there is matmul_experts.")
        if out is not None and direct(x, self.packed, self.format, out, threads, self.rows):
            return out
        weights = BlockWeights(self.packed, find_format(self.format), self.rows)
        return product(x, weights, int8=True, threads=threads, out=out)

    def matmul_experts(
        self,
        x: Any,
        expert_ids: Any,
        *,
        scale: Any | None = None,
        threads: int = 0,
        out: npt.NDArray[np.float32] | None = None,
    ) -> npt.NDArray[np.float32]:
        """scale[i] x[i] W[expert_ids[i]]ᵀ: x (n, cols) -> float32 (n, rows).

        Arguments and errors are those of `quantkit.kernels.matmul_experts`.
        """
        if self.ndim != 3:
            raise UsageError(f"{self!r} is not of experts", hint="For one matrix there is matmul.")
        return product_experts(
            x,
            self.packed,
            find_format(self.format),
            expert_ids,
            scale=scale,
            int8=True,
            threads=threads,
            out=out,
            rows_of_each=self.rows,
        )

    def __repr__(self) -> str:
        size = f"{self.nbytes / 1e6:.1f} MB" if self.nbytes >= 1e6 else f"{self.nbytes:,} bytes"
        return f"RepackedTensor({self.format}, shape={self.shape}, {size})"
