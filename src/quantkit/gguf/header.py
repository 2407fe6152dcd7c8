"""Reading the header of one GGUF, with every length checked against the file before it is believed.

The package's own reader makes numpy views of each of 200,000 tokens, which takes ten seconds, and trusts what it reads.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from io import BufferedReader
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGUF_DEFAULT_ALIGNMENT, GGMLQuantizationType, GGUFValueType

from quantkit.errors import CheckpointError
from quantkit.gguf.field import Field
from quantkit.gguf.layout import MAX_DIMS, MAX_NAME_BYTES

_SCALARS = {
    GGUFValueType.UINT8: "<u1",
    GGUFValueType.INT8: "<i1",
    GGUFValueType.UINT16: "<u2",
    GGUFValueType.INT16: "<i2",
    GGUFValueType.UINT32: "<u4",
    GGUFValueType.INT32: "<i4",
    GGUFValueType.UINT64: "<u8",
    GGUFValueType.INT64: "<i8",
    GGUFValueType.FLOAT32: "<f4",
    GGUFValueType.FLOAT64: "<f8",
    GGUFValueType.BOOL: "<u1",
}


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of a file.

    Args:
        name: GGUF name.
        shape: numpy order, rows last but one.
        type: our spelling ("q4_k").
        offset_bytes: absolute, in `file`.
        n_bytes: without padding.
        file: the split that holds it.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    offset_bytes: int
    n_bytes: int
    file: Path


@dataclass(frozen=True)
class Header:
    """What stands before the payload of one file."""

    fields: dict[str, Field]
    tensors: list[GgufTensor]


def read_header(path: Path) -> Header:
    """Read and check one file's header. CheckpointError with the offset for a file that is not a sound GGUF."""
    try:
        with path.open("rb") as file:
            return _Parser(path, file, path.stat().st_size).header()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from None


class _Parser:
    def __init__(self, path: Path, file: BufferedReader, n_bytes: int) -> None:
        self.path, self.file, self.n_bytes = path, file, n_bytes
        self.at = 0

    def fail(self, what: str, at: int | None = None, *, hint: str = "") -> CheckpointError:
        return CheckpointError(f"{self.path}: {what} (byte {self.at if at is None else at})", hint=hint)

    def take(self, n_bytes: int, what: str) -> bytes:
        # Compared before anything is read: a length out of a damaged file may ask for exabytes.
        if n_bytes > self.n_bytes - self.at:
            raise self.fail(f"the file ends within {what}: {n_bytes} bytes wanted, {self.n_bytes - self.at} left")
        data = self.file.read(n_bytes)
        if len(data) != n_bytes:
            raise self.fail(f"the file became shorter while {what} was read")
        self.at += n_bytes
        return data

    def u32(self, what: str) -> int:
        return int.from_bytes(self.take(4, what), "little")

    def u64(self, what: str) -> int:
        return int.from_bytes(self.take(8, what), "little")

    def text(self, what: str) -> str:
        at = self.at
        data = self.take(self.u64(what), what)
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise self.fail(f"{what} is not UTF-8: {error}", at) from None

    def header(self) -> Header:
        magic = self.take(min(4, self.n_bytes), "the magic")
        if magic != b"GGUF":
            known = {b"vers": "a Git LFS pointer, not the file itself", b"": "empty"}
            raise self.fail(f"not a GGUF but {known.get(magic, f'something that begins with {magic!r}')}", 0)
        version = self.u32("the version")
        if version not in (2, 3):
            big_endian = int.from_bytes(version.to_bytes(4, "little"), "big") in (2, 3)
            raise self.fail(
                "a big-endian GGUF, which is not supported"
                if big_endian
                else f"GGUF version {version}; known are 2 and 3"
            )
        n_tensors, n_fields = self.u64("the tensor count"), self.u64("the key count")
        fields: dict[str, Field] = {}
        for i in range(n_fields):
            at = self.at
            field = self.field(f"key {i + 1} of {n_fields}")
            if field.key in fields:
                raise self.fail(f"the key {field.key} stands there twice", at)
            fields[field.key] = field
        return Header(fields, self.tensors(n_tensors, self.alignment(fields)))

    def field(self, which: str) -> Field:
        key = self.text(which)
        kind = self.value_type(key)
        if kind is not GGUFValueType.ARRAY:
            return Field(key, self.values(key, kind, 1)[0], kind)
        sub_type = self.value_type(key)
        if sub_type is GGUFValueType.ARRAY:
            raise self.fail(f"{key} is an array of arrays, which GGUF does not have")
        return Field(key, self.values(key, sub_type, self.u64(key)), kind, sub_type)

    def value_type(self, key: str) -> GGUFValueType:
        number = self.u32(key)
        try:
            return GGUFValueType(number)
        except ValueError:
            raise self.fail(f"{key} is of the unknown type {number}", self.at - 4) from None

    def values(self, key: str, kind: GGUFValueType, count: int) -> list[Any]:
        if kind is GGUFValueType.STRING:
            if count * 8 > self.n_bytes - self.at:
                raise self.fail(f"the file ends within {key}: {count} strings cannot fit in what is left")
            return self.texts(key, count)
        dtype = np.dtype(_SCALARS[kind])
        at = self.at
        items = np.frombuffer(self.take(count * dtype.itemsize, key), dtype)
        if kind is GGUFValueType.BOOL:
            if (items > 1).any():
                raise self.fail(f"{key} holds a boolean that is neither 0 nor 1", at)
            items = items.astype(bool)
        found: list[Any] = items.tolist()
        return found

    def texts(self, key: str, count: int) -> list[str]:
        """`count` strings; the hot loop of a large vocabulary, so without the calls of `text`."""
        read: Callable[[int], bytes] = self.file.read
        unpack = struct.Struct("<Q").unpack
        found, at, end = [], self.at, self.n_bytes
        for _ in range(count):
            length = unpack(read(8))[0] if at + 8 <= end else end
            if at + 8 + length > end:
                raise self.fail(f"the file ends within {key}", at)
            data = read(length)
            try:
                found.append(data.decode())
            except UnicodeDecodeError as error:
                raise self.fail(f"a string of {key} is not UTF-8: {error}", at) from None
            at += 8 + length
        self.at = at
        return found

    def alignment(self, fields: dict[str, Field]) -> int:
        field = fields.get("general.alignment")
        if field is None:
            return GGUF_DEFAULT_ALIGNMENT
        if field.type is not GGUFValueType.UINT32 or field.value == 0 or field.value & (field.value - 1):
            raise self.fail(f"general.alignment is {field.value!r}, not a power of two")
        return int(field.value)

    def tensors(self, count: int, alignment: int) -> list[GgufTensor]:
        if count * 24 > self.n_bytes - self.at:
            raise self.fail(f"the file ends within the list of its {count} tensors")
        listed, names, expected = [], set(), 0
        for i in range(count):
            at = self.at
            name = self.text(f"the name of tensor {i + 1} of {count}")
            if not name or len(name.encode()) > MAX_NAME_BYTES or name in names:
                problem = "stands there twice" if name in names else f"is not of 1 to {MAX_NAME_BYTES} bytes"
                raise self.fail(f"the tensor name {name!r} {problem}", at)
            names.add(name)
            shape, type_name, n_bytes = self.tensor_extent(name)
            offset = self.u64(name)
            if offset != expected:
                raise self.fail(f"{name} is said to begin at {offset} of the payload, where {expected} comes next", at)
            listed.append((name, shape, type_name, offset, n_bytes))
            expected += n_bytes + -n_bytes % alignment
        begin = self.at + -self.at % alignment
        for name, _, _, offset, n_bytes in listed:
            if begin + offset + n_bytes > self.n_bytes:
                raise self.fail(
                    f"cut off: {name} ends at byte {begin + offset + n_bytes}, the file at {self.n_bytes}",
                    begin + offset,
                )
        return [GgufTensor(n, s, t, begin + offset, size, self.path) for n, s, t, offset, size in listed]

    def tensor_extent(self, name: str) -> tuple[tuple[int, ...], str, int]:
        n_dims = self.u32(name)
        if n_dims > MAX_DIMS:
            raise self.fail(f"{name} has {n_dims} dimensions; GGUF has at most {MAX_DIMS}", self.at - 4)
        extents = struct.unpack(f"<{n_dims}Q", self.take(8 * n_dims, name))
        n_values = prod(extents)
        if not 0 < n_values < 2**63:
            raise self.fail(f"{name} has the impossible shape {list(reversed(extents))}")
        number = self.u32(name)
        try:
            kind = GGMLQuantizationType(number)
        except ValueError:
            hint = "It may be newer than the installed gguf package: pip install --upgrade gguf."
            raise self.fail(f"{name} is of the unknown tensor type {number}", self.at - 4, hint=hint) from None
        block_size, block_bytes = GGML_QUANT_SIZES[kind]
        if (extents[0] if extents else 1) % block_size:
            raise self.fail(f"{name} has rows of {extents[0]} values, not a whole number of {kind.name.lower()} blocks")
        return tuple(reversed(extents)), kind.name.lower(), n_values // block_size * block_bytes
