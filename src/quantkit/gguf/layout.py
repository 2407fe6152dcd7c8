"""Where every byte of a GGUF goes, known before the first payload byte is written."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BufferedWriter, BytesIO
from math import prod
from pathlib import Path
from typing import Any, cast

import numpy as np
from gguf import (
    GGML_QUANT_SIZES,
    GGUF_DEFAULT_ALIGNMENT,
    SHARD_NAME_FORMAT,
    GGMLQuantizationType,
    GGUFValueType,
    GGUFWriter,
)

from quantkit.errors import PlanRefusedError, UsageError
from quantkit.gguf.field import Field

ALIGNMENT = GGUF_DEFAULT_ALIGNMENT
MAX_NAME_BYTES = 63  # ggml keeps names in char[64] with a terminating NUL, and refuses longer ones
MAX_DIMS = 4
MAX_SPLITS = 65535  # split.count is a u16


@dataclass(frozen=True)
class FilePlan:
    """One file to write: its header, and where each tensor's bytes go.

    Args:
        path: final name of the file.
        header: everything before the first tensor, padded so that the payload begins at `len(header)`.
        offsets: absolute byte offset of each tensor, in file order; bytes between tensors are zero.
        n_bytes: size of the finished file, padding of the last tensor included.
    """

    path: Path
    header: bytes
    offsets: Mapping[str, int]
    n_bytes: int


class _HeaderWriter(GGUFWriter):
    """The package's writer with memory in place of files: it packs headers, and opens nothing."""

    def __init__(self, split_max_bytes: int | None) -> None:
        super().__init__(None, "", split_max_size=split_max_bytes or 0)
        self.kv_data = [{}]  # the architecture is one of the fields, at the place the caller gave it

    def headers(self) -> list[bytes]:
        self.split_max_size = 0  # it has done its work, and would only make the writer warn about a single shard
        self.write_header_to_file()
        self.write_kv_data_to_file()
        self.write_ti_data_to_file()
        return [file.getvalue() for file in self._files]

    def open_output_file(self, path: Any = None) -> None:
        self._files = [BytesIO() for _ in self.tensors]
        self.fout = cast("list[BufferedWriter]", self._files)
        self.state = type(self.state).EMPTY


def tensor_bytes(shape: Sequence[int], type_name: str) -> int:
    """Bytes of a tensor of `shape` (numpy order) in the format `type_name` ("q4_k"); rows must be whole blocks."""
    block_size, block_bytes = GGML_QUANT_SIZES[ggml_type(type_name)]
    if shape[-1] % block_size:
        raise PlanRefusedError(
            f"a row of {shape[-1]} values is not a whole number of {type_name} blocks ({block_size})"
        )
    return prod(shape) // block_size * block_bytes


def ggml_type(type_name: str) -> GGMLQuantizationType:
    """The `gguf` package's constant for our spelling of a format ("q4_k")."""
    try:
        return GGMLQuantizationType[type_name.upper()]
    except KeyError:
        raise UsageError(f"GGUF has no tensor type {type_name!r}") from None


def lay_out(
    fields: Sequence[Field],
    tensors: Sequence[tuple[str, Sequence[int], str]],
    *,
    path: Path,
    split_max_bytes: int | None = None,
) -> list[FilePlan]:
    """Plan the file, or files, that hold `tensors`.

    Args:
        fields: key-value pairs in file order, `general.architecture` among them.
        tensors: (name, shape in numpy order, type as we spell it) in file order.
        path: the output; with more than one split, `out.gguf` becomes `out-00001-of-00003.gguf` and so on.
        split_max_bytes: begin a new file where the tensors of one would exceed this (headers do not count; a larger
            tensor gets a file of its own). The first file has all fields; each has the three split.* keys.

    Raises:
        PlanRefusedError: what GGUF or its runtime cannot hold, named by key or tensor.
    """
    _check_tensors(tensors)
    writer = _HeaderWriter(split_max_bytes)
    keys: set[str] = set()
    for field in fields:
        _check_field(field, keys)
        writer.add_key_value(field.key, field.value, field.type, field.sub_type)
    for name, shape, type_name in tensors:
        writer.add_tensor_info(
            name,
            list(shape),
            np.dtype(np.float32),
            _named_bytes(name, shape, type_name),
            raw_dtype=ggml_type(type_name),
        )
    if len(writer.tensors) > MAX_SPLITS:
        raise PlanRefusedError(
            f"{path.name} would become {len(writer.tensors)} files, and a split GGUF has at most {MAX_SPLITS}",
            hint="Give a larger --split-max-size.",
        )
    return [
        _file_plan(file, header, {name: info.nbytes for name, info in infos.items()})
        for file, header, infos in zip(
            writer.format_shard_names(path), _pack(writer, fields), writer.tensors, strict=True
        )
    ]


def parse_split_size(text: str) -> int:
    """Bytes of "5G", "500M" or "100K" (decimal, as llama.cpp's converter reads them), or of a plain number."""
    match = re.fullmatch(r"([0-9]+)([KMG]?)", text.strip().upper())
    n_bytes = int(match[1]) * {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}[match[2]] if match else 0
    if not n_bytes:
        raise UsageError(f"cannot read {text!r} as a size of a split", hint="Write it like 5G, 500M or 100K (decimal).")
    return n_bytes


def split_name(path: Path, index: int, count: int) -> Path:
    """Name of split `index` (from 0) of `count` beside `path`."""
    return path.with_name(SHARD_NAME_FORMAT.format(path.stem, index + 1, count))


def _named_bytes(name: str, shape: Sequence[int], type_name: str) -> int:
    try:
        return tensor_bytes(shape, type_name)
    except PlanRefusedError as error:
        raise PlanRefusedError(f"{name}: {error.what}") from None


def _file_plan(path: Path, header: bytes, sizes: Mapping[str, int]) -> FilePlan:
    header += bytes(-len(header) % ALIGNMENT)
    offset, offsets = len(header), {}
    for name, n_bytes in sizes.items():
        offsets[name] = offset
        offset += n_bytes + -n_bytes % ALIGNMENT
    return FilePlan(path, header, offsets, offset)


def _pack(writer: _HeaderWriter, fields: Sequence[Field]) -> list[bytes]:
    try:
        return writer.headers()
    except (struct.error, UnicodeError, ValueError, TypeError, AttributeError):
        # The writer does not say which key it was at; packing them one by one does.
        for field in fields:
            try:
                writer._pack_val(field.value, field.type, add_vtype=True, sub_type=field.sub_type)
            except (struct.error, UnicodeError, ValueError, TypeError, AttributeError) as error:
                raise PlanRefusedError(
                    f"the value of {field.key} cannot be stored as {field.type.name.lower()}: {error}"
                ) from error
        raise


def _check_field(field: Field, keys: set[str]) -> None:
    if field.key in keys:
        raise PlanRefusedError(f"the key {field.key} is given twice")
    if field.key.startswith("split."):
        raise PlanRefusedError(f"the key {field.key} belongs to the layout and cannot be given")
    if field.key == "general.alignment" and field.value != ALIGNMENT:
        raise PlanRefusedError(f"general.alignment is {field.value}, and files are laid out with {ALIGNMENT}")
    if not field.key or not field.key.isascii() or len(field.key) > 65535:
        raise PlanRefusedError(f"{field.key[:80]!r} is not a GGUF key (1 to 65535 ASCII characters)")
    if field.type is GGUFValueType.STRING and not isinstance(field.value, (str, bytes)):
        raise PlanRefusedError(f"the value of {field.key} cannot be stored as string: {field.value!r}")
    keys.add(field.key)


def _check_tensors(tensors: Sequence[tuple[str, Sequence[int], str]]) -> None:
    names: set[str] = set()
    for name, shape, _ in tensors:
        if name in names:
            raise PlanRefusedError(f"two tensors are called {name}")
        if not 0 < len(name.encode()) <= MAX_NAME_BYTES:
            raise PlanRefusedError(f"the tensor name {name!r} is not of 1 to {MAX_NAME_BYTES} bytes")
        if not 0 < len(shape) <= MAX_DIMS or min(shape) < 1:
            raise PlanRefusedError(
                f"{name} has shape {list(shape)}; GGUF holds 1 to {MAX_DIMS} dimensions, none of them 0"
            )
        names.add(name)
