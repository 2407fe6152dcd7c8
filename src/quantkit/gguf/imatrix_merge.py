"""Several importance matrices as one: sums and counts added up, as if one run had read all the text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import CheckpointError, UsageError
from quantkit.gguf.imatrix import Float64, Imatrix, ImatrixEntry

MAX_CHUNKS = 2**32 - 1  # stored as u32


def merge_imatrix(imatrices: Sequence[Imatrix], *, legacy_chunk_size: int = 512) -> Imatrix:
    """Add up the raw statistics of one model over different texts, in float64; the order changes the last bits only.

    Chunk counts are added up; where chunk sizes differ, chunks are counted in the largest size that divides all of
    them, so that count times size remains the number of tokens. Data sets are listed once each. What not all of the
    files have (Σx, router weights) the result has not either.

    Args:
        legacy_chunk_size: tokens of a chunk in .dat files, which do not say so.

    Raises:
        UsageError: nothing to merge, or a file that is marked as shrunk or is a .dat of experts: no sums that could be
            added up.
        CheckpointError: tensors or shapes that differ, by file and tensor.
    """
    if not imatrices:
        raise UsageError("no imatrix to merge")
    if legacy_chunk_size < 1:
        raise UsageError(f"chunks of {legacy_chunk_size} tokens")
    imatrices = [_raw(imatrix, legacy_chunk_size) for imatrix in imatrices]
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


def _raw(imatrix: Imatrix, legacy_chunk_size: int) -> Imatrix:
    """The imatrix with sums and counts that can be added up.

    Those of a .dat file are taken as llama-imatrix takes them: values and calls, times the chunk size. For a matrix,
    whose inputs are whole chunks, that is what was seen. For experts it is not: their calls are those of the one that
    saw most, whatever each saw, and an expert that saw nothing has ones.
    """
    if imatrix.shrunk:
        raise UsageError(
            f"{_named(imatrix)} is marked as shrunk: its values are estimates, not sums",
            hint="Merge the raw statistics that it was made from, then export again.",
        )
    if not imatrix.legacy:
        return imatrix
    routed = next((name for name in imatrix.entries if "_exps." in name), None)
    if routed is not None:
        raise UsageError(
            f"{_named(imatrix)} is a .dat file, which has one count for all experts of {routed}, and ones for those "
            "that saw nothing, so that their sums are unknown",
            hint="Collect the statistics again as GGUF, with a current llama-imatrix or with quantkit.",
        )
    entries = {
        name: ImatrixEntry(entry.sums.astype(np.float64) * legacy_chunk_size, entry.counts * legacy_chunk_size)
        for name, entry in imatrix.entries.items()
    }
    return replace(imatrix, entries=entries, chunk_size=legacy_chunk_size, legacy=False)


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
