"""JSON lines beside unfinished output: what of it is durable, and which run it belongs to.

The first line holds a fingerprint, each further one what became durable. A line is written only when the bytes that it
speaks of have been synced, so whatever the file says survives a kill or a power cut. Room for more may follow, as
newlines.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, TypeVar

from quantkit.errors import OutputError, PlanRefusedError, ResumeError

Kind = TypeVar("Kind", bound="JournalFile")
GOES_ON = "run the same command again: it goes on where it stopped."


def read_lines(path: Path, *, start_over: str) -> list[Any] | None:
    """The lines of a journal; None when there is none. Newlines at its end are room for more, and a last line torn by a
    kill is dropped: no part of a JSON object is one.

    Args:
        start_over: how to, for the hints of errors; begins in lower case.

    Raises:
        ResumeError: it cannot be read, or a line before the last one is not JSON.
    """
    try:
        lines = path.read_bytes().rstrip(b"\n").split(b"\n")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ResumeError(
            f"{path} cannot be read: {error.strerror or error}",
            hint=f"Make it readable to go on where that run stopped, or start over: {start_over}",
        ) from error
    entries: list[Any] = []
    for line in lines:
        try:
            entries.append(json.loads(line))
        except ValueError as error:
            if len(entries) == len(lines) - 1:
                break
            raise unknown(path, len(entries) + 1, error, start_over=start_over) from error
    return entries


def unknown(path: Path, number: int, error: Exception, *, start_over: str) -> ResumeError:
    """The error for a line, counted from 1, that says nothing which this version knows."""
    return ResumeError(f"{path} is not a journal of this version (line {number}: {error})", hint=sentence(start_over))


def sentence(start_over: str) -> str:
    """With a capital letter."""
    return start_over[:1].upper() + start_over[1:]


def check_same(path: Path, old: dict[str, Any], new: dict[str, Any], *, implied: str = "", start_over: str) -> None:
    """Compare the fingerprint of a journal with that of today's run, by field.

    Args:
        implied: a field that follows from the others, so that it is named only when it stands alone.

    Raises:
        ResumeError: names each field that differs, with both values.
    """
    differing = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    if len(differing) > 1 and implied in differing:
        differing.remove(implied)
    if differing:
        named = "; ".join(f"{name} was {_short(old.get(name))}, is {_short(new.get(name))}" for name in differing)
        raise ResumeError(
            f"{path} belongs to another run: {named}",
            hint=f"Run the command with the old settings to go on, or start over: {start_over}",
        )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else text[:100] + "…" + text[-16:]


class JournalFile:
    """A journal open for writing, locked against other processes until closed."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd = fd
        self._end = 0

    @classmethod
    def open(cls: type[Kind], path: Path) -> Kind:
        """Open or create, and lock.

        Raises:
            PlanRefusedError: another process is writing these outputs.
            OutputError: it cannot be created.
        """
        import fcntl

        while True:
            try:
                fd = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o644)
            except OSError as error:
                raise _failed(path, error) from error
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(fd)
                raise PlanRefusedError(
                    f"another process is writing {path.with_suffix('')}",
                    hint="Wait until it has finished, or choose another output name.",
                ) from error
            # The holder before us may have finished and deleted the file between our open and our lock.
            try:
                if os.path.samestat(os.fstat(fd), path.stat()):
                    return cls(path, fd)
            except FileNotFoundError:
                pass
            os.close(fd)

    def begin(self, fingerprint: dict[str, Any], room_bytes: int = 0) -> None:
        """Throw away what is in it, write the first line, and take room for the others: on a full disk it must still
        be able to say what was done."""
        first = line({"fingerprint": fingerprint})
        try:
            os.ftruncate(self._fd, 0)
        except OSError as error:
            raise _failed(self.path, error) from error
        if room_bytes:
            self._put(b"\n" * (len(first) + room_bytes), 0)
        self._put(first, 0)
        self._end = len(first)

    def resume(self) -> None:
        """Go on after the last whole line; a torn one is blotted out."""
        content = self.path.read_bytes()
        written = content.rstrip(b"\n")
        last = written.rfind(b"\n") + 1
        try:
            json.loads(written[last:])
            self._end = len(written) + 1
        except ValueError:
            self._end = last
            self._put(b"\n" * (len(written) - last), last)
        if len(content) < self._end:  # its newline was torn off
            self._put(b"\n", self._end - 1)

    def append(self, entry: dict[str, Any]) -> None:
        """Add a line, durably."""
        data = line(entry)
        self._put(data, self._end)
        self._end += len(data)

    def _put(self, data: bytes, offset_bytes: int) -> None:
        left = memoryview(data)
        try:
            while left:
                written = os.pwrite(self._fd, left, offset_bytes)
                left, offset_bytes = left[written:], offset_bytes + written
            os.fsync(self._fd)
        except OSError as error:
            raise _failed(self.path, error) from error

    def remove(self) -> None:
        """Delete the file; the lock goes with `close`."""
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Release the lock."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def line(entry: dict[str, Any]) -> bytes:
    """What `append` writes."""
    return json.dumps(entry, separators=(",", ":")).encode() + b"\n"


def _failed(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{path}: writing failed: {error.strerror}", hint=f"Make room, or see to the cause, and {GOES_ON}"
    )
