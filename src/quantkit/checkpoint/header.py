"""The header of one safetensors file: which tensors it holds and where.

Layout: u64 little-endian N | N bytes of JSON | payload. The JSON maps a tensor's name to
{"dtype", "shape", "data_offsets": [begin, end]}, relative to the payload; the tensors cover it without hole or overlap.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.checkpoint.document import parse_document
from quantkit.checkpoint.pointer import refuse_pointer
from quantkit.errors import CheckpointError

MAX_HEADER_BYTES = 100_000_000
LENGTH_BYTES = 8
_U64_MAX = 2**64 - 1

# Bits, because some elements are smaller than a byte; a tensor as a whole fills whole bytes.
DTYPE_BITS: dict[str, int] = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "I64": 64,
    "U64": 64,
    "F64": 64,
    "C64": 64,
}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where one tensor lies.

    Attributes:
        dtype: as safetensors spells it, a key of `DTYPE_BITS`.
        offset_bytes: absolute in `file`.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset_bytes: int
    n_bytes: int


@dataclass(frozen=True, slots=True)
class Header:
    """A checked header.

    Attributes:
        entries: in the order of their place in the file.
        metadata: the free-form `__metadata__` strings.
        sha256: of the length field and the JSON as they stand in the file.
    """

    file: Path
    entries: tuple[TensorEntry, ...]
    metadata: dict[str, str]
    file_bytes: int
    sha256: bytes


def byte_size(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor.

    Raises:
        ValueError: unknown dtype, more than 2^64 - 1 bits, or not a whole number of bytes.
    """
    if dtype not in DTYPE_BITS:
        raise ValueError(f"dtype {dtype!r} is not one of the safetensors format")
    n_bits = 1
    for factor in (*shape, DTYPE_BITS[dtype]):
        n_bits *= factor
        if n_bits > _U64_MAX:
            raise ValueError(f"shape {list(shape)} overflows 64 bits")
    if n_bits % 8:
        raise ValueError(f"shape {list(shape)} of {dtype} does not fill whole bytes")
    return n_bits // 8


def read_header(path: Path) -> Header:
    """Read and check the header of the safetensors file at `path`; no payload byte is read.

    Raises:
        CheckpointError: whatever the format forbids, each with the file and, where there is one, the tensor.
    """
    try:
        with path.open("rb") as file:
            file_bytes = os.fstat(file.fileno()).st_size
            head = file.read(64)
            refuse_pointer(head, path)
            n_header = _header_length(head, file_bytes, path)
            file.seek(LENGTH_BYTES)
            data = file.read(n_header)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    if len(data) != n_header:
        raise CheckpointError(f"{path}: truncated while its header was read", hint=_AGAIN)
    entries, metadata = parse_header(data, path, payload_bytes=file_bytes - LENGTH_BYTES - n_header)
    digest = hashlib.sha256(head[:LENGTH_BYTES] + data).digest()
    return Header(path, entries, metadata, file_bytes, digest)


_AGAIN = "The file is damaged or was cut short; download it again."


def _header_length(head: bytes, file_bytes: int, path: Path) -> int:
    if file_bytes < LENGTH_BYTES:
        raise CheckpointError(
            f"{path}: truncated: {file_bytes} bytes do not even hold the length of the header", hint=_AGAIN
        )
    if head.startswith(b"PK\x03\x04"):
        raise CheckpointError(
            f"{path}: this is a PyTorch (zip) file, not safetensors", hint="Convert it to safetensors first."
        )
    if head.startswith(b"GGUF"):
        raise CheckpointError(
            f"{path}: this is a GGUF file, not safetensors", hint="Give the original checkpoint instead."
        )
    n_header = int.from_bytes(head[:LENGTH_BYTES], "little")
    if n_header > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"{path}: header length of {n_header} bytes is above the format's limit of {MAX_HEADER_BYTES}",
            hint="This is not a safetensors file, or its beginning is damaged; download it again.",
        )
    if LENGTH_BYTES + n_header > file_bytes:
        raise CheckpointError(
            f"{path}: truncated: the header says it is {n_header} bytes long, the file has {file_bytes} in all",
            hint=_AGAIN,
        )
    return n_header


def parse_header(data: bytes, path: Path, *, payload_bytes: int) -> tuple[tuple[TensorEntry, ...], dict[str, str]]:
    """Check the JSON of a header against the format and against the length of the payload that follows it.

    Returns:
        the entries in the order of their offsets, and `__metadata__`.

    Raises:
        CheckpointError: see `read_header`.
    """
    if not data.startswith(b"{"):
        raise CheckpointError(f"{path}: header does not begin with '{{'", hint=_AGAIN)
    document = parse_document(data, f"{path}: header", parse_int=_unsigned)
    metadata = _metadata(document.pop("__metadata__", None), path)
    payload_start = LENGTH_BYTES + len(data)
    entries = [_entry(name, info, path, payload_start) for name, info in document.items()]
    entries.sort(key=lambda entry: (entry.offset_bytes, entry.n_bytes))
    _check_cover(entries, path, payload_start, payload_bytes)
    return tuple(entries), metadata


def _unsigned(digits: str) -> int:
    if digits.startswith("-"):
        raise ValueError(f"{digits} is negative")
    if len(digits) > 20 or int(digits) > _U64_MAX:
        raise ValueError(f"{digits[:24]} is above 2^64 - 1")
    return int(digits)


def _metadata(value: Any, path: Path) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise CheckpointError(f"{path}: __metadata__ must map strings to strings", hint=_AGAIN)
    return value


def _entry(name: str, info: Any, path: Path, payload_start: int) -> TensorEntry:
    where = f"{path}: tensor {name!r}"
    if not isinstance(info, dict) or set(info) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{where}: must have dtype, shape and data_offsets and nothing else", hint=_AGAIN)
    dtype, shape, offsets = info["dtype"], info["shape"], info["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise CheckpointError(f"{where}: unknown dtype {dtype!r}", hint=f"Known: {', '.join(DTYPE_BITS)}.")
    if not _all_sizes(shape):
        raise CheckpointError(f"{where}: shape {shape!r} is not a list of sizes", hint=_AGAIN)
    if not _all_sizes(offsets) or len(offsets) != 2:
        raise CheckpointError(f"{where}: data_offsets {offsets!r} are not [begin, end]", hint=_AGAIN)
    begin, end = offsets
    if begin > end:
        raise CheckpointError(f"{where}: data_offsets begin at {begin} and end before, at {end}", hint=_AGAIN)
    try:
        expected_bytes = byte_size(dtype, tuple(shape))
    except ValueError as error:
        raise CheckpointError(f"{where}: {error}", hint=_AGAIN) from error
    if end - begin != expected_bytes:
        raise CheckpointError(
            f"{where}: shape {shape} of {dtype} takes {expected_bytes} bytes, its data_offsets span {end - begin}",
            hint=_AGAIN,
        )
    return TensorEntry(name, dtype, tuple(shape), path, payload_start + begin, end - begin)


def _all_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int for size in value)


def _check_cover(entries: list[TensorEntry], path: Path, payload_start: int, payload_bytes: int) -> None:
    at, before = payload_start, ""
    for entry in entries:
        if entry.offset_bytes < at:
            raise CheckpointError(f"{path}: tensor {entry.name!r} overlaps {before!r}", hint=_AGAIN)
        if entry.offset_bytes > at:
            hole = entry.offset_bytes - at
            raise CheckpointError(f"{path}: hole of {hole} bytes before tensor {entry.name!r}", hint=_AGAIN)
        at, before = entry.offset_bytes + entry.n_bytes, entry.name
    declared_bytes = at - payload_start
    if declared_bytes > payload_bytes:
        missing = declared_bytes - payload_bytes
        raise CheckpointError(
            f"{path}: truncated: {missing} bytes are missing at the end, the last of tensor {before!r}", hint=_AGAIN
        )
    if declared_bytes < payload_bytes:
        extra = payload_bytes - declared_bytes
        raise CheckpointError(f"{path}: {extra} bytes lie behind the last tensor and belong to none", hint=_AGAIN)
