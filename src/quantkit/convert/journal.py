"""The journal beside OUT.part: which slabs are safely on disk, and which source and plan they came from.

JSON lines, with room for more at the end. The first holds the fingerprint; each further one the slabs that became
durable together, or that all are. A line is written only when its payload bytes have been synced, so whatever the
journal says survives a kill or a power cut.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.errors import OutputError, PlanRefusedError, ResumeError

SlabKey = tuple[str, int, int]  # HF tensor, offset_bytes in it, n_bytes


@dataclass(frozen=True)
class Record:
    """What a journal says: `fingerprint` is None when not even its first line was finished."""

    fingerprint: dict[str, Any] | None
    finished: frozenset[SlabKey]
    complete: bool


@dataclass(frozen=True)
class Standing:
    """What an earlier run left behind, seen from today's plan. `resumes` is False when nothing was finished."""

    resumes: bool = False
    complete: bool = False
    finished: frozenset[SlabKey] = frozenset()


def read_record(path: Path) -> Record | None:
    """Parse a journal; None when there is none. Newlines at its end are room for more, and a last line torn by a kill
    is dropped: no part of a JSON object is one."""
    try:
        lines = path.read_bytes().rstrip(b"\n").split(b"\n")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ResumeError(
            f"{path} cannot be read: {error.strerror or error}",
            hint=f"Make it readable to go on where that run stopped, or start over: {_start_over(path, lower=True)}",
        ) from error
    fingerprint: dict[str, Any] | None = None
    finished: set[SlabKey] = set()
    complete = False
    for number, line in enumerate(lines):
        try:
            entry = json.loads(line)
            if number == 0:
                fingerprint = dict(entry["fingerprint"])
            elif "complete" in entry:
                complete = bool(entry["complete"])
            else:
                finished.update((str(name), int(offset), int(size)) for name, offset, size in entry["slabs"])
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines) - 1 and isinstance(error, ValueError):
                break
            raise ResumeError(
                f"{path} is not a journal of this version (line {number + 1}: {error})", hint=_start_over(path)
            ) from error
    return Record(fingerprint, frozenset(finished), complete)


def standing(path: Path, fingerprint: dict[str, Any], parts: dict[Path, int]) -> Standing:
    """Compare what lies at `path` with today's plan, without touching anything.

    Args:
        path: OUT.part.journal.
        fingerprint: JSON values by field name; fields are compared by name.
        parts: unfinished files -> the size that they are to have.

    Raises:
        ResumeError: it belongs to another source, plan or version (each field that differs is named), or a part lacks
            its journal, or a part has another size than the journal's plan gave it.
    """
    anew = _start_over(path)
    present = [part for part in parts if part.exists()]
    record = read_record(path)
    if record is None or record.fingerprint is None:
        if present:
            raise ResumeError(f"{present[0]} exists, but no journal says what is in it", hint=anew)
        return Standing()
    if not present and not record.complete:
        return Standing()  # nothing is left that it could speak for
    differing = _differences(record.fingerprint, fingerprint)
    if differing:
        raise ResumeError(
            f"{path} belongs to another run: {'; '.join(differing)}",
            hint=f"Run the command with the old settings to go on, or start over: {_start_over(path, lower=True)}",
        )
    if record.complete:
        for part, n_bytes in parts.items():
            holder = part if part.exists() else part.with_name(part.name.removesuffix(".part"))
            if not holder.exists() or holder.stat().st_size != n_bytes:
                raise ResumeError(f"{path} says that {holder} was finished, but it is gone or another", hint=anew)
        return Standing(resumes=True, complete=True, finished=record.finished)
    for part, n_bytes in parts.items():
        size = part.stat().st_size if part.exists() else None
        if size != n_bytes and record.finished:
            state = "is gone" if size is None else f"has {size} bytes instead of {n_bytes}"
            raise ResumeError(f"{part} {state}, but {path.name} counts on it", hint=anew)
    return Standing(resumes=bool(record.finished), finished=record.finished)


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """One phrase per field that differs. "layout" follows from the others, so it is named only when it stands alone."""
    differing = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    if len(differing) > 1 and "layout" in differing:
        differing.remove("layout")
    return [f"{name} was {_short(old.get(name))}, is {_short(new.get(name))}" for name in differing]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else text[:100] + "…" + text[-16:]


def _start_over(path: Path, *, lower: bool = False) -> str:
    verb = "delete" if lower else "Delete"
    return f"{verb} {path.with_suffix('')} and {path.name} (with several files, every .part of this run)."


class Journal:
    """A journal open for writing, locked against other processes until closed.

    Room for what it will say is taken at the beginning, as newlines at its end: on a full disk it must still be able to
    say what was done.
    """

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd = fd
        self._end = 0

    @classmethod
    def open(cls, path: Path) -> Journal:
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

    def begin(self, fingerprint: dict[str, Any], room_bytes: int) -> None:
        """Throw away what is in it, write the first line, and take room for the others."""
        first = _line({"fingerprint": fingerprint})
        try:
            os.ftruncate(self._fd, 0)
        except OSError as error:
            raise _failed(self.path, error) from error
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

    def note(self, slabs: Iterable[SlabKey]) -> None:
        """Record slabs whose payload is durable already."""
        self._append({"slabs": [list(slab) for slab in slabs]})

    def note_complete(self) -> None:
        """Record that every byte of every output is durable; only renames are left."""
        self._append({"complete": True})

    def _append(self, entry: dict[str, Any]) -> None:
        line = _line(entry)
        self._put(line, self._end)
        self._end += len(line)

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


def line_room(slabs: Iterable[SlabKey]) -> int:
    """Bytes that a journal needs at most to list these slabs, each on a line of its own, and its last line."""
    return sum(len(_line({"slabs": [list(slab)]})) for slab in slabs) + len(_line({"complete": True}))


def _line(entry: dict[str, Any]) -> bytes:
    return json.dumps(entry, separators=(",", ":")).encode() + b"\n"


def _failed(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{path}: writing failed: {error.strerror}",
        hint="Make room, or see to the cause, and run the same command again: it goes on where it stopped.",
    )
