"""Weights for the forward pass, one door for checkpoints and GGUF files, under the GGUF's names.

Every matrix has its outputs as rows and lies packed in one run of memory, whatever its origin: a checkpoint's BF16
tensor and the same tensor of a BF16 GGUF are the same bytes, go through the same products, and give the same results.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from quantkit.checkpoint import open_checkpoint
from quantkit.errors import NonFiniteError, UnsupportedModelError
from quantkit.gguf import open_gguf
from quantkit.kernels import QuantizedTensor
from quantkit.llama4.hyperparameters import Hyperparameters

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Matrix:
    """A matrix (outputs, inputs), or some of its rows, with the name that errors tell."""

    name: str
    tensor: QuantizedTensor

    def product(self, x: Floats, threads: int) -> Floats:
        """x Wᵀ in float32: x (n, inputs) -> (n, outputs). NonFiniteError with the tensor's name."""
        try:
            return self.tensor.matmul(x, threads=threads)
        except NonFiniteError as error:
            error.what = f"{self.name}: {error.what}"
            raise


class Weights(Protocol):
    """Where a stream takes its weights from; reads may come from two threads.

    Attributes:
        hp: the model's shape and constants.
        source: what the weights are read from, for messages.
    """

    hp: Hyperparameters
    source: Path

    def rope_divisors(self) -> Floats | None:
        """Divisors of RoPE's frequencies, float32 (head_dim / 2,); None for ones."""

    def vector(self, name: str) -> Floats:
        """The weights of a norm, float32 (n,)."""

    def matrices(self, names: Sequence[str], expert: int | None = None) -> list[Matrix]:
        """Whole matrices, or those of one expert. What lies together is read together."""

    def rows(self, name: str, first: int, count: int) -> Matrix:
        """Rows `first` to `first + count` of a matrix."""

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
