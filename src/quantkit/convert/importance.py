"""From an imatrix to the weights of each column: coverage checked by name, gaps of single experts filled."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from quantkit.errors import CheckpointError, PlanRefusedError
from quantkit.llama4 import OutputTensor

# llama-imatrix does not collect these unless it is told to.
_OPTIONAL = ("token_embd.weight", "output.weight")


@dataclass(frozen=True)
class Statistics:
    """An imatrix as the walk wants it.

    Args:
        importance: GGUF tensor -> float32 (experts, cols), mean square of the inputs per expert.
        datasets, chunk_count: where it came from, as far as it says.
    """

    path: Path
    sha256: str
    importance: dict[str, npt.NDArray[np.float32]]
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
    from quantkit.gguf import read_imatrix  # type: ignore[attr-defined,unused-ignore]

    imatrix = read_imatrix(path)
    importance = {}
    for tensor in tensors:
        entry = imatrix.entries.get(tensor.name)
        if entry is None or len(tensor.shape) < 2:
            continue
        experts = tensor.shape[0] if len(tensor.shape) == 3 else 1
        if entry.sums.shape != (experts, tensor.shape[-1]) or entry.counts.shape != (experts,):
            raise CheckpointError(
                f"{path}: the entry for {tensor.name} has {_sizes(entry.sums.shape)}, "
                f"the tensor has {_sizes((experts, tensor.shape[-1]))}",
                hint="The imatrix was made from another model; make one from this checkpoint.",
            )
        values = _mean_squares(path, tensor.name, entry.sums, entry.counts)
        if values is not None:
            importance[tensor.name] = values
    with path.open("rb") as file:
        sha256 = hashlib.sha256()
        while block := file.read(1 << 20):
            sha256.update(block)
    return Statistics(path, sha256.hexdigest(), importance, tuple(imatrix.datasets), int(imatrix.chunk_count or 0))


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


def _mean_squares(
    path: Path, name: str, sums: npt.NDArray[np.float64], counts: npt.NDArray[np.float64]
) -> npt.NDArray[np.float32] | None:
    """Per expert; an expert that saw nothing takes the mean over the others. None when all saw nothing."""
    if not (np.isfinite(sums).all() and np.isfinite(counts).all() and (sums >= 0).all() and (counts >= 0).all()):
        raise CheckpointError(
            f"{path}: the entry for {name} holds values that are negative or not finite", hint="Make the imatrix again."
        )
    seen = counts > 0
    if not seen.any():
        return None
    means = np.empty(sums.shape, np.float64)
    means[seen] = sums[seen] / counts[seen, None]
    means[~seen] = means[seen].mean(axis=0)
    return means.astype(np.float32)


def _sizes(shape: Sequence[int]) -> str:
    return f"{shape[0]} × {shape[1]} values" if len(shape) == 2 else f"shape {tuple(shape)}"
