"""The float product of activations with packed weights: decode a few rows, hand them to BLAS, go on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from quantkit.errors import NonFiniteError
from quantkit.kernels import _machine
from quantkit.kernels.blas import blas_threads
from quantkit.kernels.formats import Format
from quantkit.kernels.tier import current_tier

Floats = npt.NDArray[np.float32]

# Decoded weights at a time. Few rows of activations are done with a weight soon, so it should still lie in L2; many
# rows keep BLAS busy far longer than a weight takes to come from memory, and it works better on wide panels.
FEW_ROWS = 128
SCRATCH_BYTES_FEW, SCRATCH_BYTES_MANY = 1 << 20, 16 << 20
ROWS_STEP = 16  # of weights: what a BLAS kernel takes at once


class Weights(Protocol):
    """Rows of weights that can be decoded a few at a time."""

    @property
    def shape(self) -> tuple[int, int]: ...

    def decode(self, first: int, out: Floats, threads: int) -> None:
        """Rows from `first` on into `out`, float32 (count, cols), C-contiguous."""


@dataclass(frozen=True)
class BlockWeights:
    """uint8 (rows, row_bytes) of a GGUF block format, C-contiguous."""

    packed: npt.NDArray[np.uint8]
    format: Format

    @property
    def shape(self) -> tuple[int, int]:
        rows, n_bytes = self.packed.shape
        return rows, n_bytes // self.format.block_bytes * self.format.block_size

    def decode(self, first: int, out: Floats, threads: int) -> None:
        rows = self.packed[first : first + len(out)]
        _machine.decode(current_tier(), self.format.name, rows.reshape(-1), out.reshape(-1), threads)


def multiply(x: Floats, weights: Weights, out: Floats, threads: int) -> None:
    """out = x Wᵀ: x (n, cols), W (rows, cols), out (n, rows), all finite or a NonFiniteError."""
    rows, cols = weights.shape
    if not len(x) or not rows:
        return
    n_bytes = SCRATCH_BYTES_FEW if len(x) < FEW_ROWS else SCRATCH_BYTES_MANY
    step = min(rows, max(1, n_bytes // (4 * max(cols, 1) * ROWS_STEP)) * ROWS_STEP)
    scratch = np.empty((step, cols), np.float32)
    with blas_threads(threads), np.errstate(all="ignore"):
        for first in range(0, rows, step):
            block = scratch[: rows - first]
            weights.decode(first, block, threads)
            np.matmul(x, block.T, out=out[:, first : first + len(block)])
    check_finite(out, weights)


def check_finite(out: Floats, weights: Weights) -> None:
    """Raise NonFiniteError where a product of finite activations is NaN or infinite."""
    if np.isfinite(out).all():
        return
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
