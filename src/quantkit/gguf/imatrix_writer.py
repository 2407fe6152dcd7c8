"""Writing importance matrices as llama.cpp has them, with what else we know in tensors that it passes over."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGUFValueType
from numpy.typing import NDArray

from quantkit.errors import UsageError
from quantkit.gguf.field import Field
from quantkit.gguf.imatrix import Float32, Imatrix, ImatrixEntry
from quantkit.gguf.imatrix_names import (
    CHUNK_COUNT,
    CHUNK_SIZE,
    COUNTS,
    DATASETS,
    GENERAL_TYPE,
    IMATRIX,
    INPUTS,
    ROUTER_SQUARES,
    ROUTER_SUMS,
    SHRUNK,
    SUMS,
)
from quantkit.gguf.imatrix_reader import check_sums
from quantkit.gguf.layout import lay_out
from quantkit.gguf.legacy_imatrix import legacy_bytes
from quantkit.kernels.atomic_file import atomic_file, write_array


def write_imatrix(path: str | Path, imatrix: Imatrix, *, legacy: bool = False) -> None:
    """Write an imatrix, whole or not at all; a file of that name is replaced. llama-quantize reads it as it is.

    GGUF holds raw sums and counts in float32 (a relative error of 6e-8, and counts above 2**24 are no longer exact).

    Args:
        legacy: write a .dat instead, which has means in place of sums, ones for an expert that saw nothing, and neither
            counts by expert nor Σx: it cannot be merged or shrunk. Of several data sets it names the last.

    Raises:
        UsageError: no entries, shapes that do not fit, or for a .dat: no entry that saw a token, or no chunk size; or
            `imatrix` itself came from a .dat, whose means are no sums.
        CheckpointError: a value that is not finite, beyond float32, or negative where it cannot be.
        PlanRefusedError: a name that GGUF cannot hold.
        OutputError: writing failed.
    """
    path = Path(path)
    if imatrix.legacy:
        raise UsageError(
            f"{imatrix.path or 'the imatrix'} came from a .dat file, which has no counts by expert to write",
            hint="Collect the statistics again with a current llama-imatrix, or with quantkit.",
        )
    if not imatrix.entries:
        raise UsageError(f"an imatrix without entries cannot be written to {path}")
    for name, entry in imatrix.entries.items():
        _check(path, name, entry)
    if legacy:
        data = legacy_bytes(
            {name: (entry.sums, entry.counts) for name, entry in sorted(imatrix.entries.items())},
            dataset=imatrix.datasets[-1] if imatrix.datasets else "",
            chunk_count=imatrix.chunk_count,
            chunk_size=imatrix.chunk_size,
        )
        with atomic_file(path) as file:
            file.write(data)
        return
    tensors = {}
    for name, entry in sorted(imatrix.entries.items()):
        for suffix, values in _tensors(entry).items():
            tensors[name + suffix] = values
    shapes = [(name, values.shape, "f32") for name, values in tensors.items()]
    (plan,) = lay_out(_fields(imatrix), shapes, path=path)
    with atomic_file(path) as file:
        file.write(plan.header)
        for name, values in tensors.items():
            file.write(bytes(plan.offsets[name] - file.tell()))
            write_array(file, values)
        file.write(bytes(plan.n_bytes - file.tell()))


def _fields(imatrix: Imatrix) -> list[Field]:
    datasets = list(imatrix.datasets) or [""]  # the `gguf` package has no empty arrays; the reader drops the empty name
    fields = [
        Field(GENERAL_TYPE, IMATRIX, GGUFValueType.STRING),
        Field(DATASETS, datasets, GGUFValueType.ARRAY, GGUFValueType.STRING),
        Field(CHUNK_COUNT, imatrix.chunk_count, GGUFValueType.UINT32),
        Field(CHUNK_SIZE, imatrix.chunk_size, GGUFValueType.UINT32),
    ]
    if imatrix.shrunk:
        fields.append(Field(SHRUNK, True, GGUFValueType.BOOL))
    return fields


def _tensors(entry: ImatrixEntry) -> dict[str, Float32]:
    by_expert = {COUNTS: entry.counts, ROUTER_SUMS: entry.router_sums, ROUTER_SQUARES: entry.router_squares}
    found = {SUMS: entry.sums.astype(np.float32)}
    if entry.inputs is not None:
        found[INPUTS] = entry.inputs.astype(np.float32)
    return found | {
        suffix: values.astype(np.float32)[:, None] for suffix, values in by_expert.items() if values is not None
    }


def _check(path: Path, name: str, entry: ImatrixEntry) -> None:
    """Shapes that fit together and values that the file can hold, or an error that names the entry."""
    if entry.sums.ndim != 2 or entry.counts.ndim != 1 or len(entry.counts) not in (1, len(entry.sums)):
        raise UsageError(f"{name} has sums of shape {entry.sums.shape} and counts of shape {entry.counts.shape}")
    if entry.inputs is not None and entry.inputs.shape != entry.sums.shape:
        raise UsageError(f"{name} has sums of inputs of shape {entry.inputs.shape}, and of squares {entry.sums.shape}")
    check_sums(path, name, _narrowed(entry.sums))
    check_sums(path, name, _narrowed(entry.counts), "counts")
    if entry.inputs is not None:
        check_sums(path, name, _narrowed(entry.inputs), "sums of inputs", signed=True)
    for what, values in (("router_sum", entry.router_sums), ("router_square_sum", entry.router_squares)):
        if values is None:
            continue
        if values.shape != entry.counts.shape:
            raise UsageError(f"{name} has counts of shape {entry.counts.shape} and {what} of shape {values.shape}")
        check_sums(path, name, _narrowed(values), what)


def _narrowed(values: NDArray[np.floating]) -> Float32:
    with np.errstate(over="ignore"):  # what overflows is infinite, and refused as such
        return values.astype(np.float32)
