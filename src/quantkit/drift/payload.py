"""Every value of a GGUF, decoded some rows at a time: whether it is finite, and whether anything is all zero."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from quantkit.checkpoint.reader import FileReader
from quantkit.errors import CheckpointError
from quantkit.gguf import GgufFile, GgufTensor
from quantkit.kernels import FORMATS, QuantizedTensor
from quantkit.llama4.forward import foreign

Floats = npt.NDArray[np.float32]
_ELEMENTS = 1 << 22  # decoded at a time: 16 MB


@dataclass(frozen=True)
class BadValue:
    """The first value of a matrix, or of an expert, that is NaN or infinite.

    Args:
        expert: None where the tensor has none.
        row, col: of the matrix.
        value: as decoded.
        offset_bytes: where its block begins in the file.
        blocks: how many blocks of the matrix, or expert, hold such values.
    """

    expert: int | None
    row: int
    col: int
    value: float
    offset_bytes: int
    blocks: int


@dataclass(frozen=True)
class Payload:
    """What was found in a tensor.

    Args:
        tensor: as the header has it.
        bad: not finite, one for each expert at fault.
        zero: experts whose values are all zero, or (None,) for a tensor without experts.
        is_decoded: False for a type that nobody here decodes; then only bytes were read.
        sha256: of its bytes, in hex; None if not asked for.
    """

    tensor: GgufTensor
    bad: tuple[BadValue, ...]
    zero: tuple[int | None, ...]
    is_decoded: bool
    sha256: str | None


def read_payload(
    file: GgufFile,
    *,
    sha256: bool = False,
    threads: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> Iterator[Payload]:
    """All tensors in file order; memory is that of some rows.

    Args:
        sha256: hash the bytes as well.
        progress: is told a tensor's name, and how many bytes are done of how many.

    Raises:
        CheckpointError: the file cannot be read.
    """
    total, done = sum(tensor.n_bytes for tensor in file.tensors), 0
    with closing(FileReader()) as reader:
        for tensor in file.tensors:
            digest = hashlib.sha256() if sha256 else None
            is_decoded = tensor.type in FORMATS or foreign.is_known(tensor.type)
            n_experts = tensor.shape[0] if len(tensor.shape) == 3 else 1
            bad: list[BadValue] = []
            zero: list[int | None] = []
            for number in range(n_experts):
                expert = number if len(tensor.shape) == 3 else None
                largest, first_bad, n_bad = 0.0, None, 0
                for row, packed in _rows(reader, tensor, number, n_experts):
                    if digest is not None:
                        digest.update(packed.data)
                    if is_decoded:
                        found = _decoded(packed, tensor, threads)
                        most = max(abs(float(found.max())), abs(float(found.min())))
                        largest = max(largest, most) if math.isfinite(most) else math.inf
                        if not math.isfinite(most):
                            here, blocks = _bad(found, tensor, expert, number, row, packed.shape[1])
                            first_bad, n_bad = first_bad or here, n_bad + blocks
                    done += packed.nbytes
                    if progress is not None:
                        progress(tensor.name, done, total)
                if first_bad is not None:
                    bad.append(replace(first_bad, blocks=n_bad))
                elif is_decoded and largest == 0:
                    zero.append(expert)
            yield Payload(tensor, tuple(bad), tuple(zero), is_decoded, digest.hexdigest() if digest else None)


def _rows(
    reader: FileReader, tensor: GgufTensor, expert: int, n_experts: int
) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
    """(first row, packed rows) of an expert, or of a whole tensor."""
    n_rows = math.prod(tensor.shape[:-1]) // n_experts
    row_bytes = tensor.n_bytes // (n_rows * n_experts)
    step = max(1, _ELEMENTS // tensor.shape[-1])
    for first in range(0, n_rows, step):
        packed = np.empty((min(step, n_rows - first), row_bytes), np.uint8)
        try:
            at = tensor.offset_bytes + (expert * n_rows + first) * row_bytes
            reader.read_into(tensor.file, packed.reshape(-1).data, at)
        except (OSError, EOFError) as error:
            raise CheckpointError(f"{tensor.file}: {tensor.name} cannot be read: {error}") from error
        yield first, packed


def _decoded(packed: npt.NDArray[np.uint8], tensor: GgufTensor, threads: int) -> Floats:
    if tensor.type in FORMATS:
        values: Floats = QuantizedTensor(packed, tensor.type).dequantize(threads=threads)
        return values
    with np.errstate(invalid="ignore", over="ignore"):
        return foreign.decoded(packed, tensor.type, tensor.shape[-1])


def _bad(
    values: Floats, tensor: GgufTensor, expert: int | None, number: int, first: int, row_bytes: int
) -> tuple[BadValue, int]:
    """The first value that is not finite, and how many blocks hold such."""
    rows, cols = np.nonzero(~np.isfinite(values))
    cols_per_block, block_bytes = _block(tensor)
    blocks = len(np.unique(rows * tensor.shape[-1] + cols // cols_per_block))
    row, col = int(rows[0]), int(cols[0])
    n_rows = math.prod(tensor.shape[:-1]) // (tensor.shape[0] if expert is not None else 1)
    at = tensor.offset_bytes + (number * n_rows + first + row) * row_bytes + col // cols_per_block * block_bytes
    return BadValue(expert, first + row, col, float(values[row, col]), at, 0), blocks


def _block(tensor: GgufTensor) -> tuple[int, int]:
    """(values, bytes) of a block."""
    if tensor.type in FORMATS:
        return FORMATS[tensor.type].block_size, FORMATS[tensor.type].block_bytes
    return tensor.shape[-1], foreign.row_bytes(tensor.type, tensor.shape[-1])
