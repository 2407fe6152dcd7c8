"""From an imatrix to the weights of each column: coverage checked by name, gaps of single experts filled."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from quantkit.errors import PlanRefusedError
from quantkit.gguf import read_imatrix
from quantkit.llama4 import OutputTensor

# llama-imatrix does not collect these unless it is told to.
_OPTIONAL = ("token_embd.weight", "output.weight")


@dataclass(frozen=True)
class Statistics:
    """An imatrix as the walk wants it.

    Args:
        importance: GGUF tensor -> float32 (experts, cols), mean square of the inputs per expert.
        n_entries: in the file, whether the model has such tensors or not.
        datasets, chunk_count: where it came from, as far as it says.
    """

    path: Path
    sha256: str
    importance: dict[str, npt.NDArray[np.float32]]
    n_entries: int
    datasets: tuple[str, ...]
    chunk_count: int

    @property
    def n_bytes(self) -> int:
        """Memory that it holds on to."""
        return sum(values.nbytes for values in self.importance.values())


def read_statistics(path: Path, tensors: Sequence[OutputTensor]) -> Statistics:
    """Read an imatrix and fit it to the model's tensors.

    Raises:
        CheckpointError: not an imatrix, values that are negative or not finite, or an entry whose size is not its
            tensor's.
    """
    imatrix = read_imatrix(path)
    importance = {}
    for tensor in tensors:
        if len(tensor.shape) < 2:
            continue
        experts = tensor.shape[0] if len(tensor.shape) == 3 else 1
        values = imatrix.importance(tensor.name, experts, tensor.shape[-1])
        if values is not None:
            importance[tensor.name] = values
    with path.open("rb") as file:
        sha256 = hashlib.sha256()
        while block := file.read(1 << 20):
            sha256.update(block)
    return Statistics(path, sha256.hexdigest(), importance, len(imatrix.entries), imatrix.datasets, imatrix.chunk_count)


def check_coverage(statistics: Statistics, quantized: Sequence[str], *, allow_missing: bool) -> list[str]:
    """Names among `quantized` that the imatrix says nothing about (token_embd and output are not expected in one).

    Raises:
        PlanRefusedError: there are such, and they are not allowed.
    """
    missing = [name for name in quantized if name not in statistics.importance and name not in _OPTIONAL]
    if missing and not allow_missing:
        names = ", ".join(missing[:8]) + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")
        raise PlanRefusedError(
            f"{statistics.path} has no data for {len(missing)} of the {len(quantized)} tensors to quantize: {names}",
            hint="Make the imatrix from more text, or pass --allow-missing-imatrix to quantize these without it.",
        )
    return missing
