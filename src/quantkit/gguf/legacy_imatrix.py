"""The imatrix format of before 2025 (.dat): little endian, without a magic and without counts by expert."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import CheckpointError, UsageError

Entries = dict[str, tuple[NDArray[np.float32], int]]


def read_legacy(path: Path) -> tuple[Entries, tuple[str, ...], int]:
    """Read a .dat file.

    Returns:
        entries {name: (float32 (1, n) means times calls, calls)}, datasets, chunk count. The last two may be missing
        in the file, and are () and 0 then.

    Raises:
        CheckpointError: cut off, malformed, or of another kind; with the byte offset.
    """
    with path.open("rb") as file:
        return _Parser(path, file, path.stat().st_size).read()


def legacy_bytes(
    entries: Mapping[str, tuple[NDArray[Any], NDArray[Any]]], *, dataset: str, chunk_count: int, chunk_size: int
) -> bytes:
    """A .dat file with the means of {name: (sums (experts, cols), counts (experts,) or (1,))}, times calls.

    An expert that saw nothing gets ones, as the format has it; an entry that saw nothing is left out.

    Raises:
        UsageError: nothing is left, or there is no chunk size to count calls in.
    """
    if chunk_size < 1:
        raise UsageError("without a chunk size no .dat file can be written, since it counts in chunks")
    parts = []
    for name, (sums, counts) in entries.items():
        if not (counts > 0).any():
            continue
        n_calls = -(-int(counts.max()) // chunk_size)  # upwards, so that it is not 0
        seen = np.broadcast_to(counts > 0, len(sums))
        means = np.ones(sums.shape, np.float32)
        means[seen] = (sums / np.where(counts > 0, counts, 1)[:, None])[seen]
        coded = name.encode()
        parts.append(struct.pack("<i", len(coded)) + coded + struct.pack("<ii", n_calls, means.size))
        parts.append((means * np.float32(n_calls)).astype("<f4").tobytes())
    if not parts:
        raise UsageError("no entry saw a token, and a .dat file has no place for such")
    coded = dataset.encode()
    return b"".join([struct.pack("<i", len(parts) // 2), *parts, struct.pack("<ii", chunk_count, len(coded)), coded])


class _Parser:
    def __init__(self, path: Path, file: BinaryIO, n_bytes: int) -> None:
        self.path, self.file, self.n_bytes = path, file, n_bytes

    def fail(self, what: str, at: int) -> CheckpointError:
        return CheckpointError(
            f"{self.path}: {what} (byte {at})", hint="An imatrix is a GGUF, or a .dat file of llama-imatrix."
        )

    def take(self, n_bytes: int, what: str) -> bytes:
        at = self.file.tell()
        if not 0 <= n_bytes <= self.n_bytes - at:
            raise self.fail(f"{what} is {n_bytes} bytes long, and {self.n_bytes - at} are left", at)
        return self.file.read(n_bytes)

    def number(self, what: str, least: int) -> int:
        at = self.file.tell()
        value: int = struct.unpack("<i", self.take(4, what))[0]
        if value < least:
            raise self.fail(f"{what} is {value}", at)
        return value

    def text(self, what: str, least: int) -> str:
        length = self.number(f"the length of {what}", least)
        at = self.file.tell()
        try:
            return self.take(length, what).decode()
        except UnicodeDecodeError:
            raise self.fail(f"{what} is not UTF-8", at) from None

    def read(self) -> tuple[Entries, tuple[str, ...], int]:
        entries: Entries = {}
        count = self.number("the number of entries", 1)
        for i in range(count):
            at = self.file.tell()
            name = self.text(f"the name of entry {i + 1} of {count}", 1)
            if name in entries:
                raise self.fail(f"the entry {name} stands there twice", at)
            n_calls = self.number(f"the number of calls of {name}", 1)
            n_values = self.number(f"the number of values of {name}", 1)
            values = np.frombuffer(self.take(4 * n_values, f"the list of values of {name}"), "<f4")
            entries[name] = values.reshape(1, -1), n_calls
        if self.file.tell() == self.n_bytes:
            return entries, (), 0
        chunk_count = self.number("the number of chunks", 0)
        dataset = self.text("the name of the dataset", 0)
        if self.file.tell() != self.n_bytes:
            raise self.fail("the file goes on after its end", self.file.tell())
        return entries, (dataset,) if dataset else (), chunk_count
