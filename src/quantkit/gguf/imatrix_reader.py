"""Reading importance matrices, of llama-imatrix and our own, and believing nothing that is malformed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import CheckpointError
from quantkit.gguf.field import Field
from quantkit.gguf.header import GgufTensor, read_header
from quantkit.gguf.imatrix import Float32, Float64, Imatrix, ImatrixEntry
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
    SUFFIXES,
    SUMS,
)
from quantkit.gguf.legacy_imatrix import read_legacy

T = TypeVar("T")
Tensors = dict[str, GgufTensor]  # by suffix


def read_imatrix(path: str | Path, *, inputs: bool = False) -> Imatrix:
    """Read an importance matrix: GGUF, or the older .dat.

    Args:
        inputs: read Σx too, where the file has it; it is as large as Σx².

    Raises:
        CheckpointError: the file is missing, cut off or malformed, or holds a value that no sum of squares can be
            (NaN, infinite, negative); named with the entry or the byte offset.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            magic = file.read(4)
        if magic == b"GGUF":
            return _read_gguf(path, inputs=inputs)
        entries, datasets, chunk_count = read_legacy(path)
    except OSError as error:
        raise CheckpointError(f"cannot read the imatrix {path}: {error.strerror or error}") from None
    checked = {
        name: ImatrixEntry(check_sums(path, name, values), np.asarray([n_calls], np.float64))
        for name, (values, n_calls) in entries.items()
    }
    return Imatrix(checked, datasets, chunk_count, 0, legacy=True, path=path)


def check_sums(
    path: Path, name: str, values: NDArray[Any], what: str = "sums", *, signed: bool = False
) -> NDArray[Any]:
    """`values`, if all of them are finite, and not negative unless they may be; else CheckpointError."""
    wrong = ~np.isfinite(values) if signed else ~(np.isfinite(values) & (values >= 0))
    if wrong.any():
        at = int(np.flatnonzero(wrong)[0])
        raise CheckpointError(
            f"{path}: {name} holds {values.ravel()[at]} at index {at} of its {what}",
            hint="Such an imatrix comes from a run that overflowed; collect it again.",
        )
    return values


def _read_gguf(path: Path, *, inputs: bool) -> Imatrix:
    header = read_header(path)
    kind = header.fields.get(GENERAL_TYPE)
    if kind is not None and kind.value != IMATRIX:
        raise CheckpointError(f"{path} is a GGUF of type {kind.value!r}, not an imatrix")
    datasets = _value(path, header.fields, DATASETS, list)
    chunk_count = _value(path, header.fields, CHUNK_COUNT, int)
    chunk_size = _value(path, header.fields, CHUNK_SIZE, int)
    shrunk = SHRUNK in header.fields and _value(path, header.fields, SHRUNK, bool)
    found: dict[str, Tensors] = {}
    for tensor in header.tensors:  # other suffixes are statistics that no encoder reads
        for suffix in SUFFIXES:
            if tensor.name.endswith(suffix):
                found.setdefault(tensor.name.removesuffix(suffix), {})[suffix] = tensor
    if not any(SUMS in tensors for tensors in found.values()):
        raise CheckpointError(f"{path}: the imatrix has no entries")
    entries = {}
    with path.open("rb") as file:
        for name, tensors in found.items():
            if SUMS not in tensors and COUNTS not in tensors:
                continue
            if SUMS not in tensors or COUNTS not in tensors:
                lacks = "no counts" if SUMS in tensors else "counts without sums"
                raise CheckpointError(f"{path}: {name} has {lacks}")
            entries[name] = _entry(path, file, name, tensors, inputs=inputs)
            if shrunk and not entries[name].counts.all():
                raise CheckpointError(f"{path}: {name} is marked as shrunk, and has an expert without a count")
    named = tuple(name for name in datasets if name)
    return Imatrix(entries, named, chunk_count, chunk_size, shrunk=shrunk, path=path)


def _entry(path: Path, file: BinaryIO, name: str, tensors: Tensors, *, inputs: bool) -> ImatrixEntry:
    sums, counts = _floats(path, file, tensors[SUMS]), _floats(path, file, tensors[COUNTS])
    shape = tensors[SUMS].shape
    rows = shape[0] if len(shape) > 1 else 1
    if len(shape) > 2 or counts.size not in (1, rows):
        raise CheckpointError(f"{path}: {name} has sums of shape {list(shape)} and {counts.size} counts")
    squares = check_sums(path, name, sums.reshape(rows, -1))
    tokens = np.rint(check_sums(path, name, counts, "counts").astype(np.float64)).ravel()

    def by_expert(suffix: str) -> Float64 | None:
        if suffix not in tensors:
            return None
        values = check_sums(path, name, _floats(path, file, tensors[suffix]).ravel(), suffix[1:])
        if values.size != tokens.size:
            raise CheckpointError(f"{path}: {name} has {tokens.size} counts and {values.size} of {suffix[1:]}")
        return values.astype(np.float64)

    summed = None
    if inputs and INPUTS in tensors:
        summed = check_sums(path, name, _floats(path, file, tensors[INPUTS]), "sums of inputs", signed=True)
        if summed.size != squares.size:
            raise CheckpointError(f"{path}: {name} has {squares.size} sums of squares and {summed.size} of inputs")
        summed = summed.reshape(squares.shape)
    return ImatrixEntry(squares, tokens, summed, by_expert(ROUTER_SUMS), by_expert(ROUTER_SQUARES))


def _floats(path: Path, file: BinaryIO, tensor: GgufTensor) -> Float32:
    if tensor.type != "f32":
        raise CheckpointError(f"{path}: {tensor.name} is {tensor.type}, and an imatrix holds f32")
    file.seek(tensor.offset_bytes)
    values = np.frombuffer(file.read(tensor.n_bytes), "<f4")
    if values.nbytes != tensor.n_bytes:
        raise CheckpointError(f"{path}: the file became shorter while {tensor.name} was read")
    return values


def _value(path: Path, fields: Mapping[str, Field], key: str, kind: type[T]) -> T:
    field = fields.get(key)
    if field is None or not isinstance(field.value, kind):
        raise CheckpointError(
            f"{path}: the imatrix has no {key}" if field is None else f"{path}: {key} is {field.value!r}",
            hint="llama-quantize refuses such a file too; collect it again with a current llama-imatrix.",
        )
    return field.value
