"""Reading a GGUF, all its splits together."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from quantkit.errors import CheckpointError
from quantkit.gguf.field import Field
from quantkit.gguf.header import GgufTensor, Header, read_header
from quantkit.gguf.layout import split_name


@dataclass(frozen=True)
class GgufFile:
    """What the headers say.

    Args:
        files: one path, or those of all splits in order.
        fields: key -> field, of the first split, where all but the split keys stand.
        tensors: in file order, with the file that holds each.
        n_bytes: size of all files.
    """

    files: tuple[Path, ...]
    fields: dict[str, Field]
    tensors: list[GgufTensor]
    n_bytes: int


def open_gguf(path: str | Path) -> GgufFile:
    """Read the header of a GGUF, and of its other splits when it is one (any of them may be given).

    Raises:
        CheckpointError: the file, or one of its splits, is missing, cut off or malformed; named with the byte offset.
    """
    path = Path(path)
    header = read_header(path)
    count = _number(path, header, "split.count", default=1)
    if count <= 1:
        return GgufFile((path,), header.fields, header.tensors, path.stat().st_size)
    files = _split_paths(path, _number(path, header, "split.no"), count)
    headers = [header if file == path else read_header(file) for file in files]
    tensors: dict[str, GgufTensor] = {}
    for i, (file, part) in enumerate(zip(files, headers, strict=True)):
        if (number := _number(file, part, "split.no")) != i:
            raise CheckpointError(f"{file}: split.no is {number}, and its name says {i}")
        if (other := _number(file, part, "split.count")) != count:
            raise CheckpointError(f"{file}: split.count is {other}, and {path.name} says {count}")
        for tensor in part.tensors:
            if tensor.name in tensors:
                raise CheckpointError(f"{tensor.name} is in {tensors[tensor.name].file.name} and in {file.name}")
            tensors[tensor.name] = tensor
    total = _number(files[0], headers[0], "split.tensors.count")
    if total != len(tensors):
        raise CheckpointError(f"{path}: the splits hold {len(tensors)} tensors, and split.tensors.count says {total}")
    n_bytes = sum(file.stat().st_size for file in files)
    return GgufFile(files, headers[0].fields, list(tensors.values()), n_bytes)


def _number(path: Path, header: Header, key: str, default: int | None = None) -> int:
    field = header.fields.get(key)
    value = field.value if field else default
    if not isinstance(value, int):
        raise CheckpointError(f"{path}: {key} is {'missing' if value is None else repr(value)}")
    return value


def _split_paths(path: Path, index: int, count: int) -> tuple[Path, ...]:
    match = re.fullmatch(r"(.+)-([0-9]{5})-of-([0-9]{5})\.gguf", path.name)
    if not match or (int(match[2]), int(match[3])) != (index + 1, count):
        raise CheckpointError(
            f"{path} is split {index + 1} of {count}, and its name does not say so",
            hint=f"Name the splits {split_name(Path('NAME'), index, count)} and so on, as they were written.",
        )
    whole = path.with_name(f"{match[1]}.gguf")
    return tuple(split_name(whole, i, count) for i in range(count))
