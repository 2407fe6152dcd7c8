"""Weights for the forward pass, one door for checkpoints and GGUF files, under the GGUF's names.

Every matrix has its outputs as rows, whatever its origin, unless it is for products alone and lies otherwise in the
checkpoint: a BF16 tensor of that and the same tensor of a BF16 GGUF give the same results.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from quantkit.checkpoint import open_checkpoint
from quantkit.errors import NonFiniteError, UnsupportedModelError
from quantkit.gguf import open_gguf
from quantkit.kernels import FORMATS, Format, QuantizedTensor
from quantkit.kernels.panel import BlockWeights, InputMajorWeights, multiply
from quantkit.llama4.forward.floats import Floats
from quantkit.llama4.forward.team import Team
from quantkit.llama4.hyperparameters import Hyperparameters

# Pieces of a product: whole panels, enough for many threads, large enough for BLAS, which packs x anew for each.
PIECE_ROWS, _PANEL = 528, 48


@dataclass(frozen=True)
class Matrix:
    """A matrix (outputs, inputs), or some of its rows.

    Args:
        name: what errors tell.
        packed: uint8 (outputs, row_bytes); if input_major, (inputs, bytes of all outputs).
        format: "bf16", "q4_k", ...: see quantkit.kernels.FORMATS.
        input_major: for products alone, which are the same bit by bit.
    """

    name: str
    packed: npt.NDArray[np.uint8]
    format: str
    input_major: bool = False

    @property
    def tensor(self) -> QuantizedTensor:
        """The same bytes, as a user of quantkit knows them."""
        assert not self.input_major
        return QuantizedTensor(self.packed, self.format)

    @property
    def n_outputs(self) -> int:
        return self.packed.shape[1] // self._format.block_bytes if self.input_major else len(self.packed)

    @property
    def _format(self) -> Format:
        return FORMATS[self.format]

    def product(self, x: Floats, out: Floats, team: Team) -> Floats:
        """out = x Wᵀ in float32: x (n, inputs), finite, out (n, outputs). NonFiniteError with the tensor's name."""
        team.run(partial(self.multiply, x, out, outputs) for outputs in self.pieces())
        return out

    def pieces(self) -> list[slice]:
        """Outputs that are one task each: many at first, few at last, so that threads end together."""
        found, first = [], 0
        while first < self.n_outputs:
            panels = min(PIECE_ROWS, (self.n_outputs - first) // 4) // _PANEL
            stop = min(self.n_outputs, first + max(1, panels) * _PANEL)
            found.append(slice(first, stop))
            first = stop
        return found

    def multiply(self, x: Floats, out: Floats, outputs: slice) -> None:
        """One piece of `product`, on the calling thread."""
        first, stop = outputs.start, outputs.stop
        weights: InputMajorWeights | BlockWeights
        if self.input_major:
            item = self._format.block_bytes
            weights = InputMajorWeights(self.packed[:, item * first : item * stop], self._format)
        else:
            weights = BlockWeights(self.packed[first:stop], self._format)
        try:
            multiply(x, weights, out[:, outputs], int8=False, threads=1)
        except NonFiniteError as error:
            error.what = f"{self.name}, from row {first} on: {error.what}"
            raise


class Weights(Protocol):
    """Where a stream takes its weights from; reads may come from two threads.

    Attributes:
        hp: the model's shape and constants.
        source: what the weights are read from, for messages.
        reading_bytes: the most memory that reading takes beside what it returns.
    """

    hp: Hyperparameters
    source: Path
    reading_bytes: int

    def rope_divisors(self) -> Floats | None:
        """Divisors of RoPE's frequencies, float32 (head_dim / 2,); None for ones."""

    def vector(self, name: str) -> Floats:
        """The weights of a norm, float32 (n,)."""

    def matrices(self, names: Sequence[str], expert: int | None = None, *, input_major: bool = False) -> list[Matrix]:
        """Whole matrices, or those of one expert. What lies together is read together.

        Args:
            input_major: leave those so that lie so; else all have outputs as rows.
        """

    def rows(self, name: str, first: int, count: int) -> Matrix:
        """Rows `first` to `first + count` of a matrix."""

    def n_bytes(self, name: str) -> int:
        """Packed bytes of a matrix, or of one expert's."""

    def give_back(self, matrices: Iterable[Matrix]) -> None:
        """Matrices that nobody looks at any more; their memory is used for others."""

    def close(self) -> None:
        """Close the files."""


def open_weights(path: str | PathLike[str], hp: Hyperparameters | None = None) -> Weights:
    """The weights of a checkpoint folder, or of a GGUF (any of its splits).

    Args:
        hp: constants to compute with instead of the file's own. A GGUF does not hold all of a checkpoint's (see
            `mismatches`); the shape must be the same.

    Raises:
        CheckpointError: files are missing, malformed, or do not hold the tensors of `hp`.
        UnsupportedModelError: another architecture or function than Llama 4's.
        UsageError: a GGUF with a tensor type that is not decoded.
    """
    from quantkit.llama4.forward.checkpoint_weights import CheckpointWeights
    from quantkit.llama4.forward.gguf_weights import GgufWeights

    if Path(path).is_dir():
        return CheckpointWeights(open_checkpoint(path), hp)
    return GgufWeights(open_gguf(Path(path)), hp)


def refuse_unknown_functions(hp: Hyperparameters, source: Path) -> None:
    """UnsupportedModelError for what the forward pass does not compute."""
    if hp.hidden_act != "silu":
        raise UnsupportedModelError(f"{source}: hidden_act is {hp.hidden_act!r}; silu is computed")
    if hp.rope_type not in ("default", "llama3"):
        raise UnsupportedModelError(f"{source}: rope_type is {hp.rope_type!r}; default and llama3 are computed")
    if any(hp.is_chunked) and hp.attention_chunk_size is None:
        raise UnsupportedModelError(f"{source}: layers have chunked attention, and attention_chunk_size is null")
