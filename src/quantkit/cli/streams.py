"""stdout and stderr that cannot end a command: what they do not take is lost, and said once at the end."""

from __future__ import annotations

import io
import os
import select
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class Channel(io.FileIO):
    """A file descriptor to write to. From the first error on everything is dropped, and `lost` holds that error."""

    lost: OSError | None = None

    def write(self, data: ReadableBuffer, /) -> int:
        n_bytes = memoryview(data).nbytes
        if self.lost is not None:
            return n_bytes
        try:
            while (written := super().write(data)) is None:  # a pipe that its owner made non-blocking, and is full
                select.select([], [self], [])
            return written
        except OSError as error:
            self.lost = error
            return n_bytes


def guard() -> Channel:
    """Put a `Channel` under sys.stdout and sys.stderr, also where they were closed, and return that of stdout.

    A conversion of hours must not fail, nor seem to, because the reader of its progress has gone away.
    """
    # A closed descriptor would be given to the next file that is opened, which then took what others print.
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    out = Channel(1, "w", closefd=False)
    sys.stdout = _text(out, sys.stdout)
    sys.stderr = _text(Channel(2, "w", closefd=False), sys.stderr)
    return out


def _text(channel: Channel, before: object) -> io.TextIOWrapper:
    """A text stream over a channel that encodes as the one before it did."""
    buffer = io.BufferedWriter(channel)
    # A sign or a file name that the terminal's encoding lacks must not end a conversion that is done.
    if isinstance(before, io.TextIOWrapper):
        before.flush()
        return io.TextIOWrapper(
            buffer,
            before.encoding,
            "backslashreplace",
            line_buffering=before.line_buffering,
            write_through=before.write_through,
        )
    return io.TextIOWrapper(buffer, "utf-8", "backslashreplace")
