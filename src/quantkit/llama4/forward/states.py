"""The hidden states of all tokens, in memory or in a file."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import numpy as np

from quantkit.errors import OutputError
from quantkit.llama4.forward.floats import Floats, Rows

_ADD_ROWS = 256  # at a time: what lies between is small


def part_of(rows: Rows, part: slice) -> Rows:
    """rows[part], for a slice with start and stop too."""
    return slice(rows.start + part.start, rows.start + part.stop) if isinstance(rows, slice) else rows[part]


class States(Protocol):
    """float32 (n, cols), read and written by rows: a slice, or ascending numbers. Several threads may do so at once,
    each with rows of its own."""

    shape: tuple[int, int]

    def read(self, rows: Rows, out: Floats | None = None) -> Floats:
        """A copy of the rows, in `out` if that is given: float32 (n, cols), C-contiguous."""

    def write(self, rows: Rows, values: Floats) -> None:
        """Put rows in place."""

    def add(self, rows: Rows, values: Floats) -> None:
        """Add to the rows, of which each is named once."""

    def close(self) -> None:
        """Let go of memory or file."""


class MemoryStates:
    def __init__(self, n: int, cols: int) -> None:
        self.shape = (n, cols)
        self._array = np.zeros((n, cols), np.float32)

    def read(self, rows: Rows, out: Floats | None = None) -> Floats:
        if out is None:
            return self._array[rows].copy() if isinstance(rows, slice) else self._array[rows]
        if isinstance(rows, slice):
            out[...] = self._array[rows]
        else:
            np.take(self._array, rows, axis=0, out=out, mode="clip")  # "raise" would go through a copy of `out`
        return out

    def write(self, rows: Rows, values: Floats) -> None:
        self._array[rows] = values

    def add(self, rows: Rows, values: Floats) -> None:
        if isinstance(rows, slice):
            self._array[rows] += values
            return
        for start in range(0, len(rows), _ADD_ROWS):
            self._array[rows[start : start + _ADD_ROWS]] += values[start : start + _ADD_ROWS]

    def close(self) -> None:
        self._array = np.empty((0, self.shape[1]), np.float32)


class FileStates:
    """In an unnamed file, by reads and writes: pages of a mapped one would count as the process's memory.

    Args:
        folder: where the file lies; None for the system's folder of temporary files.

    Raises:
        OutputError: the folder or its disk has no room.
    """

    def __init__(self, n: int, cols: int, folder: Path | None = None) -> None:
        self.shape = (n, cols)
        self._row_bytes = 4 * cols
        self._lock = threading.Lock()  # of the file's position
        self._folder = folder or Path(tempfile.gettempdir())
        try:
            self._file = tempfile.TemporaryFile(prefix="quantkit-", dir=folder, buffering=0)  # noqa: SIM115
            self._file.truncate(n * self._row_bytes)
        except OSError as error:
            raise self._failed(error) from error

    def read(self, rows: Rows, out: Floats | None = None) -> Floats:
        found = np.empty((self._count(rows), self.shape[1]), np.float32) if out is None else out
        for first, place, count in self._runs(rows):
            view = found[place : place + count].data.cast("B")
            with self._lock:
                self._file.seek(first * self._row_bytes)
                while view:
                    n_read = self._file.readinto(view)
                    if not n_read:
                        raise OutputError(f"{self._folder}: the file of hidden states became shorter")
                    view = view[n_read:]
        return found

    def write(self, rows: Rows, values: Floats) -> None:
        values = np.ascontiguousarray(values, np.float32)
        for first, place, count in self._runs(rows):
            view = values[place : place + count].data.cast("B")
            try:
                with self._lock:
                    self._file.seek(first * self._row_bytes)
                    while view:
                        view = view[self._file.write(view) or 0 :]
            except OSError as error:
                raise self._failed(error) from error

    def add(self, rows: Rows, values: Floats) -> None:
        index = np.arange(*rows.indices(self.shape[0])) if isinstance(rows, slice) else rows
        for start in range(0, len(index), _ADD_ROWS):
            part = index[start : start + _ADD_ROWS]
            self.write(part, self.read(part) + values[start : start + _ADD_ROWS])

    def close(self) -> None:
        self._file.close()

    def _failed(self, error: OSError) -> OutputError:
        n_bytes = self.shape[0] * self._row_bytes
        return OutputError(
            f"{self._folder}: hidden states of {n_bytes:,} bytes cannot be written: {os.strerror(error.errno or 0)}",
            hint="Name a folder on a disk with room, or allow more memory.",
        )

    def _count(self, rows: Rows) -> int:
        return len(range(*rows.indices(self.shape[0]))) if isinstance(rows, slice) else len(rows)

    def _runs(self, rows: Rows) -> Iterator[tuple[int, int, int]]:
        """(first row, its place among `rows`, how many follow each other)."""
        if isinstance(rows, slice):
            first, stop, _ = rows.indices(self.shape[0])
            if stop > first:
                yield first, 0, stop - first
            return
        borders = np.flatnonzero(np.diff(rows) != 1) + 1
        places = [0, *borders.tolist(), len(rows)]
        for place, end in pairwise(places):
            if end > place:
                yield int(rows[place]), place, end - place
