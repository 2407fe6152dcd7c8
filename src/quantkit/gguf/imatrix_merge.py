"""Several importance matrices as one: sums and counts added up, as if one run had read all the text."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import CheckpointError, UsageError
from quantkit.gguf.imatrix import Float64, Imatrix, ImatrixEntry

MAX_CHUNKS = 2**32 - 1  # stored as u32


def merge_imatrix(imatrices: Sequence[Imatrix]) -> Imatrix:
    """Add up the raw statistics of one model over different texts, in float64; the order changes the last bits only.

    Chunk counts are added up; where chunk sizes differ, chunks are counted in the largest size that divides all of
    them, so that count times size remains the number of tokens. Data sets are listed once each. What not all of the
    files have (Σx, router weights) the result has not either.

    Raises:
        UsageError: nothing to merge, or a file that is marked as shrunk or is a .dat: no sums that could be added up.
        CheckpointError: tensors or shapes that differ, by file and tensor.
    """
    if not imatrices:
        raise UsageError("no imatrix to merge")
    for imatrix in imatrices:
        _check_raw(imatrix)
    first = imatrices[0]
    for other in imatrices[1:]:
        _check_same_tensors(first, other)
    chunk_size = math.gcd(*(imatrix.chunk_size for imatrix in imatrices))
    chunk_count = sum(imatrix.chunk_count * max(imatrix.chunk_size // max(chunk_size, 1), 1) for imatrix in imatrices)
    if chunk_count > MAX_CHUNKS:
        raise UsageError(f"{chunk_count} chunks of {chunk_size} tokens are more than a file can count")
    return Imatrix(
        {name: _sum([imatrix.entries[name] for imatrix in imatrices]) for name in first.entries},
        tuple(dict.fromkeys(name for imatrix in imatrices for name in imatrix.datasets)),
        chunk_count,
        chunk_size,
    )


def _named(imatrix: Imatrix) -> str:
    return str(imatrix.path or "an imatrix")


def _check_raw(imatrix: Imatrix) -> None:
    if imatrix.shrunk:
        raise UsageError(
            f"{_named(imatrix)} is marked as shrunk: its values are estimates, not sums",
            hint="Merge the raw statistics that it was made from, then export again.",
        )
    if imatrix.legacy:
        raise UsageError(
            f"{_named(imatrix)} is a .dat file, which has no counts by expert, so that its sums are unknown",
            hint="Collect the statistics again as GGUF, with a current llama-imatrix or with quantkit.",
        )


def _check_same_tensors(first: Imatrix, other: Imatrix) -> None:
    for here, there in ((first, other), (other, first)):
        missing = [name for name in here.entries if name not in there.entries]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise CheckpointError(
                f"{_named(there)} has no {missing[0]}{more}, which {_named(here)} has",
                hint="Only statistics of the same tensors of the same model can be merged.",
            )
    for name, entry in other.entries.items():
        ours, theirs = (_shape(first.entries[name]), _shape(entry))
        if ours != theirs:
            raise CheckpointError(
                f"{_named(other)}: {name} has {theirs[0]} counts and {theirs[1]} × {theirs[2]} sums, "
                f"and in {_named(first)} {ours[0]} and {ours[1]} × {ours[2]}",
                hint="Are these imatrices of the same model?",
            )


def _shape(entry: ImatrixEntry) -> tuple[int, ...]:
    return (len(entry.counts), *entry.sums.shape)


def _sum(entries: Sequence[ImatrixEntry]) -> ImatrixEntry:
    return ImatrixEntry(
        _total([entry.sums for entry in entries]),
        _total([entry.counts for entry in entries]),
        _total_of_all([entry.inputs for entry in entries]),
        _total_of_all([entry.router_sums for entry in entries]),
        _total_of_all([entry.router_squares for entry in entries]),
    )


def _total(arrays: Sequence[NDArray[np.floating]]) -> Float64:
    total = arrays[0].astype(np.float64)
    for array in arrays[1:]:
        total += array
    return total


def _total_of_all(arrays: Sequence[NDArray[np.floating] | None]) -> Float64 | None:
    given = [array for array in arrays if array is not None]
    return _total(given) if len(given) == len(arrays) else None
