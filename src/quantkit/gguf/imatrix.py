"""Importance matrices: per input column of a weight, the sum of squared activations, and over how many tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import CheckpointError, UsageError
from quantkit.gguf.shrinkage import Shrunk, shrink

Float32: TypeAlias = NDArray[np.float32]
Float64: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class ImatrixEntry:
    """Raw statistics of one weight's inputs, as the product sees them (Llama 4: router weight times hidden state).

    Args:
        sums: (experts, cols), Σx²; float32 as a file holds them, float64 where they are added up. (1, experts * cols)
            where a file has no counts by expert. A matrix is one expert.
        counts: float64 (experts,), tokens seen by each.
        inputs: (experts, cols), Σx, or None.
        router_sums: float64 (experts,), Σw of the router weights of those tokens, or None.
        router_squares: float64 (experts,), Σw², or None.
    """

    sums: NDArray[Any]
    counts: Float64
    inputs: NDArray[Any] | None = None
    router_sums: Float64 | None = None
    router_squares: Float64 | None = None

    @property
    def effective_counts(self) -> Float64:
        """float64 (experts,): Kish's effective sample size (Σw)²/Σw² under the router weights; counts without them.

        L. Kish, *Survey Sampling*, 1965: so many tokens of equal weight would tell as much.
        """
        if self.router_sums is None or self.router_squares is None:
            return self.counts
        squares = np.where(self.router_squares > 0, self.router_squares, 1.0)
        return np.minimum(self.router_sums**2 / squares, self.counts)

    @property
    def saw_any(self) -> bool:
        """Whether an expert saw a token."""
        return bool((self.effective_counts > 0).any())


@dataclass(frozen=True)
class Imatrix:
    """All entries of a file, and what it says about itself.

    Args:
        entries: by weight name ("blk.0.ffn_down_exps.weight").
        datasets: names of the calibration texts.
        chunk_count, chunk_size: chunks read, and tokens in each (0 in a legacy file).
        legacy: whether it came from a .dat file, which has means, ones for what was not seen, and no counts by expert.
        shrunk: whether `sums` and `counts` are estimates (`shrunk()`), and not what was seen.
        path: the file; None for one that is not from a file.
    """

    entries: Mapping[str, ImatrixEntry]
    datasets: tuple[str, ...]
    chunk_count: int
    chunk_size: int
    legacy: bool = False
    shrunk: bool = False
    path: Path | None = field(default=None, compare=False)

    def importance(self, name: str, n_experts: int, cols: int) -> Float32 | None:
        """Mean square of each input column of the weight `name`, by expert.

        Experts with little data are shrunk toward the layer's pooled statistics (`quantkit.gguf.shrinkage`), and one
        that saw no token takes these, where llama-quantize puts ones. Without counts by expert (a .dat file, or what
        llama-imatrix makes of one) there is nothing to shrink by: means are as they are, and the mean over the others
        stands for an expert that saw nothing.

        Args:
            n_experts: 1 for a matrix.
            cols: input columns.

        Returns:
            float32 (n_experts, cols), or None where the file has no entry of that name or the entry saw no token.

        Raises:
            CheckpointError: the entry's size is another, always.
        """
        entry = self.entries.get(name)
        if entry is None:
            return None
        if entry.sums.size != n_experts * cols or len(entry.counts) not in (1, n_experts):
            raise CheckpointError(
                f"{self.path or 'the imatrix'}: {name} has {entry.sums.size} values for {len(entry.counts)} experts, "
                f"and the weight has {n_experts * cols} input columns for {n_experts}",
                hint="Is this imatrix of another model?",
            )
        if not entry.saw_any:
            return None
        if len(entry.counts) > 1 and not self.shrunk:
            return _shrunk(entry).means.astype(np.float32)
        sums = entry.sums.reshape(n_experts, cols).astype(np.float64)
        means: Float64 = sums / np.broadcast_to(entry.counts, (n_experts,))[:, None]
        if self.legacy and n_experts > 1:
            # The old format has no counts by expert, and stores means of exactly 1 for those that saw nothing.
            seen = (means != 1).any(axis=1)
            if not seen.any():
                return None
            means[~seen] = means[seen].mean(axis=0)
        return means.astype(np.float32)

    def as_shrunk(self) -> Imatrix:
        """What `importance` gives, as an imatrix that llama-quantize reads as it is: no expert without a count.

        The count of an expert becomes that of its tokens and of those that the pooled statistics stand for, at least 1;
        entries that saw no token at all are left out (llama-quantize quantizes without importance what it misses).

        Raises:
            UsageError: it is marked as shrunk already, or has no counts by expert.
        """
        if self.shrunk or self.legacy:
            raise UsageError(
                f"{self.path or 'the imatrix'} is "
                + ("shrunk already" if self.shrunk else "a .dat file, which has no counts by expert to shrink by"),
                hint="Take the raw statistics, a GGUF of llama-imatrix or of quantkit.",
            )
        entries = {}
        for name, entry in self.entries.items():
            if not entry.saw_any:
                continue
            if len(entry.counts) == 1:
                entries[name] = ImatrixEntry(entry.sums.astype(np.float64), entry.counts)
                continue
            estimate = _shrunk(entry)
            prior = min(estimate.prior_tokens, float(entry.counts.sum()))
            counts = np.maximum(np.rint(entry.counts + prior), 1.0)
            entries[name] = ImatrixEntry(estimate.means * counts[:, None], counts)
        return replace(self, entries=entries, shrunk=True)


def _shrunk(entry: ImatrixEntry) -> Shrunk:
    return shrink(entry.sums, entry.counts, entry.effective_counts)
