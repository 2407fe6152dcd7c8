"""Importance matrices: per input column, the sum of squared activations, and over how many tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import CheckpointError
from quantkit.gguf.field import Field
from quantkit.gguf.header import GgufTensor, read_header
from quantkit.gguf.legacy_imatrix import read_legacy

Float32: TypeAlias = NDArray[np.float32]
Float64: TypeAlias = NDArray[np.float64]
T = TypeVar("T")


@dataclass(frozen=True)
class ImatrixEntry:
    """Statistics of one weight.

    Args:
        values: float32 (experts, cols), sums of squares as stored; (1, experts * cols) where experts are as one.
        counts: float64 (experts,), tokens seen by each; a single number where the file has no counts by expert.
    """

    values: Float32
    counts: Float64

    @property
    def sums(self) -> Float64:
        """float64, of `values`' shape."""
        return self.values.astype(np.float64)


@dataclass(frozen=True)
class Imatrix:
    """All entries of a file, and what it says about itself.

    Args:
        path: the file.
        entries: by weight name ("blk.0.ffn_down_exps.weight").
        datasets: names of the calibration texts.
        chunk_count, chunk_size: chunks read, and tokens in each (0 in a legacy file).
        legacy: whether this is a .dat file, which has no counts by expert.
    """

    path: Path
    entries: Mapping[str, ImatrixEntry]
    datasets: tuple[str, ...]
    chunk_count: int
    chunk_size: int
    legacy: bool

    def importance(self, name: str, n_experts: int, cols: int) -> Float32 | None:
        """Mean square of each input column of the weight `name`, by expert.

        An expert that saw no token takes the mean over the others: what is known about a layer's inputs is a better
        guess than the ones that llama-quantize puts there.

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
        if entry.values.size != n_experts * cols or len(entry.counts) not in (1, n_experts):
            raise CheckpointError(
                f"{self.path}: {name} has {entry.values.size} values for {len(entry.counts)} experts, "
                f"and the weight has {n_experts * cols} input columns for {n_experts}",
                hint="Is this imatrix of another model?",
            )
        sums = entry.sums.reshape(n_experts, cols)
        counts = np.broadcast_to(entry.counts, (n_experts,))
        seen = counts > 0
        if self.legacy and n_experts > 1:
            # The old format has no counts by expert, and stores means of exactly 1 for those that saw nothing.
            seen = seen & (sums != counts[:, None]).any(axis=1)
        if not seen.any():
            return None
        means = np.divide(sums, counts[:, None], out=np.zeros_like(sums), where=seen[:, None])
        means[~seen] = means[seen].mean(axis=0)
        return means.astype(np.float32)


def read_imatrix(path: str | Path) -> Imatrix:
    """Read an importance matrix: GGUF, or the older .dat.

    Raises:
        CheckpointError: the file is missing, cut off or malformed, or holds a value that no sum of squares can be
            (NaN, infinite, negative); named with the entry or the byte offset.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            magic = file.read(4)
        if magic == b"GGUF":
            return _read_gguf(path)
        entries, datasets, chunk_count = read_legacy(path)
    except OSError as error:
        raise CheckpointError(f"cannot read the imatrix {path}: {error.strerror or error}") from None
    checked = {name: _checked(path, name, values, [n_calls]) for name, (values, n_calls) in entries.items()}
    return Imatrix(path, checked, datasets, chunk_count, 0, legacy=True)


def _read_gguf(path: Path) -> Imatrix:
    header = read_header(path)
    kind = header.fields.get("general.type")
    if kind is not None and kind.value != "imatrix":
        raise CheckpointError(f"{path} is a GGUF of type {kind.value!r}, not an imatrix")
    datasets = _value(path, header.fields, "imatrix.datasets", list)
    chunk_count = _value(path, header.fields, "imatrix.chunk_count", int)
    chunk_size = _value(path, header.fields, "imatrix.chunk_size", int)
    sums: dict[str, GgufTensor] = {}
    counts: dict[str, GgufTensor] = {}
    for tensor in header.tensors:  # other suffixes are statistics that no encoder reads
        for suffix, found in ((".in_sum2", sums), (".counts", counts)):
            if tensor.name.endswith(suffix):
                found[tensor.name.removesuffix(suffix)] = tensor
    if not sums:
        raise CheckpointError(f"{path}: the imatrix has no entries")
    for name in sums.keys() ^ counts.keys():
        raise CheckpointError(f"{path}: {name} has {'no counts' if name in sums else 'counts without sums'}")
    entries = {}
    with path.open("rb") as file:
        for name, tensor in sums.items():
            values, count = _floats(path, file, tensor), _floats(path, file, counts[name])
            rows = tensor.shape[0] if len(tensor.shape) > 1 else 1
            if len(tensor.shape) > 2 or count.size not in (1, rows):
                raise CheckpointError(f"{path}: {name} has sums of shape {list(tensor.shape)} and {count.size} counts")
            entries[name] = _checked(path, name, values.reshape(rows, -1), count)
    return Imatrix(path, entries, tuple(datasets), chunk_count, chunk_size, legacy=False)


def _floats(path: Path, file: BinaryIO, tensor: GgufTensor) -> Float32:
    if tensor.type != "f32":
        raise CheckpointError(f"{path}: {tensor.name} is {tensor.type}, and an imatrix holds f32")
    file.seek(tensor.offset_bytes)
    values = np.frombuffer(file.read(tensor.n_bytes), "<f4")
    if values.nbytes != tensor.n_bytes:
        raise CheckpointError(f"{path}: the file became shorter while {tensor.name} was read")
    return values


def _checked(path: Path, name: str, values: Float32, counts: Sequence[float] | Float32) -> ImatrixEntry:
    for what, numbers in (("sums", values), ("counts", np.asarray(counts, np.float64))):
        wrong = ~(np.isfinite(numbers) & (numbers >= 0))
        if wrong.any():
            at = int(np.flatnonzero(wrong)[0])
            raise CheckpointError(
                f"{path}: {name} holds {numbers.ravel()[at]} at index {at} of its {what}",
                hint="Such an imatrix comes from a run that overflowed; collect it again.",
            )
    return ImatrixEntry(values, np.rint(np.asarray(counts, np.float64)).ravel())


def _value(path: Path, fields: Mapping[str, Field], key: str, kind: type[T]) -> T:
    field = fields.get(key)
    if field is None or not isinstance(field.value, kind):
        raise CheckpointError(
            f"{path}: the imatrix has no {key}" if field is None else f"{path}: {key} is {field.value!r}",
            hint="llama-quantize refuses such a file too; collect it again with a current llama-imatrix.",
        )
    return field.value
