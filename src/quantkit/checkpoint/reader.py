"""Positional reads from a few files, from any number of threads."""

from __future__ import annotations

import os
import threading
import weakref
from pathlib import Path

# os.preadv is missing on Windows.
_HAS_PREADV = hasattr(os, "preadv")


class FileReader:
    """Keeps one descriptor a file, opened at its first read."""

    def __init__(self) -> None:
        self._descriptors: dict[Path, int] = {}
        self._lock = threading.Lock()
        self._finalizer = weakref.finalize(self, _close_all, self._descriptors)

    def read_into(self, path: Path, buffer: memoryview, offset_bytes: int) -> None:
        """Fill all of `buffer` (bytes) from `offset_bytes` of the file on.

        Raises:
            EOFError: the file ends before.
            OSError: opening or reading fails.
        """
        descriptor = self._descriptor(path)
        done = 0
        while done < buffer.nbytes:
            # One call moves at most 2 GiB on Linux, and may move less for its own reasons.
            n_read = self._read_some(descriptor, buffer[done:], offset_bytes + done)
            if n_read == 0:
                raise EOFError(f"{done} of {buffer.nbytes} bytes at offset {offset_bytes}")
            done += n_read

    def _read_some(self, descriptor: int, buffer: memoryview, offset_bytes: int) -> int:
        if _HAS_PREADV:
            return os.preadv(descriptor, [buffer], offset_bytes)
        with self._lock:  # position and read are two steps here
            os.lseek(descriptor, offset_bytes, os.SEEK_SET)
            with open(descriptor, "rb", buffering=0, closefd=False) as file:
                return file.readinto(buffer) or 0

    def _descriptor(self, path: Path) -> int:
        with self._lock:
            if path not in self._descriptors:
                flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
                self._descriptors[path] = os.open(path, flags)
            return self._descriptors[path]

    def close(self) -> None:
        """Close all descriptors; none may be in use."""
        with self._lock:
            _close_all(self._descriptors)


def _close_all(descriptors: dict[Path, int]) -> None:
    while descriptors:
        os.close(descriptors.popitem()[1])
