"""The journal beside OUT.part: which slabs are safely on disk, and which source and plan they came from.

After the fingerprint, each line holds the slabs that became durable together, or that all are.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.errors import ResumeError
from quantkit.kernels.journal_file import JournalFile, check_same, line, read_lines, sentence, unknown

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
    """Parse a journal; None when there is none. ResumeError when it cannot be read, or says what is not known."""
    entries = read_lines(path, start_over=_start_over(path))
    if entries is None:
        return None
    fingerprint: dict[str, Any] | None = None
    finished: set[SlabKey] = set()
    complete = False
    for number, entry in enumerate(entries, start=1):
        try:
            if number == 1:
                fingerprint = dict(entry["fingerprint"])
            elif "complete" in entry:
                complete = bool(entry["complete"])
            else:
                finished.update((str(name), int(offset), int(size)) for name, offset, size in entry["slabs"])
        except (ValueError, KeyError, TypeError) as error:
            raise unknown(path, number, error, start_over=_start_over(path)) from error
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
    anew = sentence(_start_over(path))
    present = [part for part in parts if part.exists()]
    record = read_record(path)
    if record is None or record.fingerprint is None:
        if present:
            raise ResumeError(f"{present[0]} exists, but no journal says what is in it", hint=anew)
        return Standing()
    if not present and not record.complete:
        return Standing()  # nothing is left that it could speak for
    check_same(path, record.fingerprint, fingerprint, implied="layout", start_over=_start_over(path))
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


def _start_over(path: Path) -> str:
    return f"delete {path.with_suffix('')} and {path.name} (with several files, every .part of this run)."


class Journal(JournalFile):
    """A journal open for writing. `begin` takes room for what `line_room` says."""

    def note(self, slabs: Iterable[SlabKey]) -> None:
        """Record slabs whose payload is durable already."""
        self.append({"slabs": [list(slab) for slab in slabs]})

    def note_complete(self) -> None:
        """Record that every byte of every output is durable; only renames are left."""
        self.append({"complete": True})


def line_room(slabs: Iterable[SlabKey]) -> int:
    """Bytes that a journal needs at most to list these slabs, each on a line of its own, and its last line."""
    return sum(len(line({"slabs": [list(slab)]})) for slab in slabs) + len(line({"complete": True}))
