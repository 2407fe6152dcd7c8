"""How far a calibration has come, in files beside its output, so that a killed one goes on after its last layer.

    OUT.part.journal             the fingerprint, then a line for each finished layer and each round that is over
    OUT.part.states-0, -1        hidden states that go into the next layer, of even or odd number
    OUT.part.sums-0, -1          sums of each layer as they were after a round of even or odd number
    OUT.part                     the statistics, from their writing to their renaming

A layer's line is written when its sums and states are on the disk, into files that the lines before do not speak of. At
the end: statistics, their line, their renaming, deletion of all else, the journal last.
"""

from __future__ import annotations

import glob
import io
import os
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from quantkit.calibration.collector import Collector
from quantkit.calibration.fingerprint import COMMAND
from quantkit.calibration.rounds import Ending, Round, ShortExpert
from quantkit.errors import NonFiniteError, OutputError, PlanRefusedError, QuantkitError, ResumeError
from quantkit.gguf import Imatrix, write_imatrix
from quantkit.kernels.atomic_file import sync_folder
from quantkit.kernels.journal_file import GOES_ON, JournalFile, check_same, read_lines, sentence, unknown
from quantkit.llama4.forward import States

_BLOCK_BYTES = 4 << 20  # of hidden states at a time


@dataclass(frozen=True)
class Point:
    """Between two layers.

    Args:
        rounds: that are over.
        short: the experts that were short after the last of them.
        layer: of the round in work, the next to compute.
        seconds: that this round took until now.
        ending: of the calibration, once its statistics are written.
        sums: layer -> (round, offset and number of bytes) of its latest sums.
        states: number of bytes and CRC-32 of the hidden states that go into `layer`; (0, 0) for the first.
    """

    rounds: tuple[Round, ...] = ()
    short: tuple[ShortExpert, ...] = ()
    layer: int = 0
    seconds: float = 0.0
    ending: Ending | None = None
    sums: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    states: tuple[int, int] = (0, 0)

    def after(self, line: dict[str, Any]) -> Point:
        """With a further line of the journal. ValueError, KeyError or TypeError if it says nothing known."""
        if "layer" in line:
            layer, offset, size = int(line["layer"]), *map(int, line["sums"])
            n_bytes, checksum = map(int, line["states"])
            if layer != self.layer:
                raise ValueError(f"layer {layer} after {self.layer} layers")
            sums = self.sums | {layer: (len(self.rounds), offset, size)}
            seconds = float(line["seconds"])
            return replace(self, layer=layer + 1, seconds=seconds, sums=sums, states=(n_bytes, checksum))
        short = tuple(ShortExpert(*map(int, one)) for one in line["short"])
        rounds = (*self.rounds, Round(**line["round"]))
        return replace(self, rounds=rounds, short=short, layer=0, seconds=0.0, ending=line["ending"], states=(0, 0))


class Savepoint:
    """A context manager: opens what an earlier run left, or begins, and locks it.

    After an error what was finished stays, unless no run could use it.

    Args:
        out: the file that is to be.
        fingerprint: of this run.
        force: `out` may be replaced.

    Attributes:
        point: how far it is.

    Raises:
        PlanRefusedError: `out` exists, or another process is writing it.
        ResumeError: what lies there belongs to another run, or is damaged.
    """

    def __init__(self, out: Path, fingerprint: dict[str, Any], *, force: bool = False) -> None:
        self._out, self._part = out, _beside(out, "")
        path = _beside(out, ".journal")
        self._start_over = _start_over(out)
        refuse_existing(out, force=force)
        self._journal = JournalFile.open(path)
        try:
            self.point = self._begun(fingerprint, force=force)
        except BaseException:
            self._journal.close()
            raise

    def _begun(self, fingerprint: dict[str, Any], *, force: bool) -> Point:
        path = self._journal.path
        first, *others = read_lines(path, start_over=self._start_over) or [None]
        published = is_published(self._out)
        if first is None or (not others and _command(first) == COMMAND) or (published and not self._out.exists()):
            return self._anew(fingerprint, force=force)
        if published and force and first.get("fingerprint") != fingerprint:
            return self._anew(fingerprint, force=force)
        point, n_lines = Point(), 0
        try:
            check_same(path, dict(first["fingerprint"]), fingerprint, start_over=self._start_over)
            for line in others:
                n_lines += 1
                point = point.after(line)
        except (ValueError, KeyError, TypeError) as error:
            raise unknown(path, n_lines + 1, error, start_over=self._start_over) from error
        if os.path.lexists(self._out) and not force and not published:
            raise _exists(self._out)
        self._journal.resume()
        return point

    def _anew(self, fingerprint: dict[str, Any], *, force: bool) -> Point:
        if self._part.exists():
            self._journal.remove()
            raise ResumeError(
                f"{self._part} exists, but no journal says what is in it", hint=sentence(self._start_over)
            )
        if os.path.lexists(self._out) and not force:
            self._journal.remove()
            raise _exists(self._out)
        self._journal.begin(fingerprint)
        sync_folder(self._journal.path.parent)
        return Point()

    def __enter__(self) -> Savepoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is not None:
                if isinstance(error, NonFiniteError) or self.point == Point():
                    self._remove()  # the source has to change first, or nothing is lost
                elif (
                    isinstance(error, QuantkitError)
                    and not isinstance(error, ResumeError)
                    and GOES_ON not in error.hint
                ):
                    error.hint = f"{error.hint}\nWhat was finished is kept: {GOES_ON}".lstrip()
        finally:
            self._journal.close()

    def check_room(self, n_bytes: int) -> None:
        """PlanRefusedError when what has been written and what is free are less than `n_bytes`."""
        folder = self._part.absolute().parent
        held = sum(path.stat().st_blocks * 512 for path in self._files() if path.exists())
        free = shutil.disk_usage(folder).free
        if n_bytes > held + free:
            raise PlanRefusedError(
                f"{folder} has {free:,} bytes free, and {n_bytes - held:,} are needed until {self._out.name} is whole",
                hint=f"Make room for {n_bytes - held - free:,} bytes, or write to another disk.",
            )

    def restore(self, collector: Collector) -> None:
        """Give back the sums of all layers. ResumeError when a file does not hold them any more."""
        for _, (number, offset, size) in sorted(self.point.sums.items()):
            path = self._sums(number)
            try:
                data = self._read(path, offset, size)
                with np.load(io.BytesIO(data)) as members:
                    collector.restore(dict(members))
            except (QuantkitError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
                raise self._damaged(path) from error

    def states(self, hidden_size: int) -> Callable[[slice], npt.NDArray[np.float32]]:
        """What reads the hidden states that go into `point.layer`: rows -> float32 (n, hidden_size).

        ResumeError when the file is another than was written: the order of syncs does not help against what a disk
        loses, and numbers that are a little wrong would go unnoticed.
        """
        path, row_bytes = self._states(self.point.layer), 4 * hidden_size
        n_bytes, expected = self.point.states
        checksum = 0
        for start in range(0, n_bytes, _BLOCK_BYTES):
            checksum = zlib.crc32(self._read(path, start, min(_BLOCK_BYTES, n_bytes - start)), checksum)
        if checksum != expected:
            raise self._damaged(path)

        def read(rows: slice) -> npt.NDArray[np.float32]:
            data = self._read(path, rows.start * row_bytes, (rows.stop - rows.start) * row_bytes)
            return np.frombuffer(data, np.float32).reshape(-1, hidden_size)

        return read

    def note_layer(self, collector: Collector, states: States | None, seconds: float) -> None:
        """`point.layer` is finished.

        Args:
            states: that go into the next one; None after the last.
            seconds: that the round took until now.
        """
        layer, number = self.point.layer, len(self.point.rounds)
        packed = io.BytesIO()
        np.savez(packed, **collector.layer_arrays(layer))  # type: ignore[arg-type]
        before = self.point.sums.get(layer - 1) if layer else None
        offset = before[1] + before[2] if before else 0
        with self._written(self._sums(number)) as fd:
            _put(fd, packed.getbuffer(), offset)
        n_bytes = checksum = 0
        if states is not None:
            n, cols = states.shape
            n_bytes = 4 * n * cols
            step = max(1, _BLOCK_BYTES // (4 * cols))
            with self._written(self._states(layer + 1)) as fd:
                for start in range(0, n, step):
                    data = states.read(slice(start, min(n, start + step))).data.cast("B")
                    checksum = zlib.crc32(data, checksum)
                    _put(fd, data, start * 4 * cols)
        sums = [offset, len(packed.getbuffer())]
        self._note({"layer": layer, "seconds": seconds, "sums": sums, "states": [n_bytes, checksum]})

    def note_round(self, done: Round, short: tuple[ShortExpert, ...], ending: Ending | None = None) -> None:
        """A round is over, and with an `ending` all of it."""
        self._note({"round": asdict(done), "short": [astuple(one) for one in short], "ending": ending})

    def write(self, imatrix: Imatrix, *, legacy: bool) -> None:
        """Write the statistics; they have their name after `publish`."""
        write_imatrix(self._part, imatrix, legacy=legacy)

    def publish(self, *, keep_journal: bool = False) -> None:
        """Give the statistics their name, and delete all else."""
        try:
            if self._part.exists():
                self._part.replace(self._out)
                sync_folder(self._out.parent)
            self._remove(keep_journal=keep_journal)
        except OSError as error:
            raise _failed(self._part, error) from error

    def _remove(self, *, keep_journal: bool = False) -> None:
        unfinished = self._part.parent.glob(f".{glob.escape(self._part.name)}.*.part")  # of atomic_file
        for path in (*self._files(), *unfinished):
            path.unlink(missing_ok=True)
        sync_folder(self._part.parent)
        if not keep_journal:
            self._journal.remove()
            sync_folder(self._part.parent)

    def _note(self, line: dict[str, Any]) -> None:
        self._journal.append(line)
        self.point = self.point.after(line)

    def _files(self) -> tuple[Path, ...]:
        return self._states(0), self._states(1), self._sums(0), self._sums(1), self._part

    def _states(self, layer: int) -> Path:
        return _beside(self._out, f".states-{layer % 2}")

    def _sums(self, number: int) -> Path:
        return _beside(self._out, f".sums-{number % 2}")

    @contextmanager
    def _written(self, path: Path) -> Iterator[int]:
        """A file to write to, which is synced at the end."""
        try:
            is_new = not path.exists()
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o644)
            try:
                yield fd
                getattr(os, "fdatasync", os.fsync)(fd)
            finally:
                os.close(fd)
            if is_new:
                sync_folder(path.parent)
        except OSError as error:
            raise _failed(path, error) from error

    def _read(self, path: Path, offset_bytes: int, n_bytes: int) -> bytes:
        try:
            with path.open("rb") as file:
                file.seek(offset_bytes)
                data = file.read(n_bytes)
        except OSError as error:
            raise self._damaged(path) from error
        if len(data) != n_bytes:
            raise self._damaged(path)
        return data

    def _damaged(self, path: Path) -> ResumeError:
        return ResumeError(
            f"{path} is gone or damaged, but {self._journal.path.name} counts on it", hint=sentence(self._start_over)
        )


def refuse_existing(out: Path, *, force: bool) -> None:
    """PlanRefusedError when `out` exists, may not be replaced, and no run has stopped beside it."""
    if os.path.lexists(out) and not force and not _beside(out, ".journal").exists():
        raise _exists(out)


def _start_over(out: Path) -> str:
    return f"delete the files {_beside(out, '')}*."


def _exists(out: Path) -> PlanRefusedError:
    return PlanRefusedError(f"{out} exists", hint="Pass --force to overwrite it, or choose another name.")


def _beside(out: Path, suffix: str) -> Path:
    return out.with_name(f"{out.name}.part{suffix}")


def is_published(out: Path) -> bool:
    """Whether a journal says that a calibration was finished, of which nothing was left but to delete this journal."""
    *_, last = read_lines(_beside(out, ".journal"), start_over=_start_over(out)) or [None]
    return isinstance(last, dict) and last.get("ending") is not None and not _beside(out, "").exists()


def forget(out: Path) -> None:
    """Delete the journal that a calibration kept; nothing if there is none."""
    _beside(out, ".journal").unlink(missing_ok=True)
    sync_folder(out.parent)


def _command(line: Any) -> Any:
    fingerprint = line.get("fingerprint") if isinstance(line, dict) else None
    return fingerprint.get("command") if isinstance(fingerprint, dict) else None


def _put(fd: int, data: memoryview, offset_bytes: int) -> None:
    while data:
        written = os.pwrite(fd, data, offset_bytes)
        data, offset_bytes = data[written:], offset_bytes + written


def _failed(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{path}: writing failed: {error.strerror or error}", hint=f"Make room, or see to the cause, and {GOES_ON}"
    )
