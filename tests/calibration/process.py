"""Calibrations in processes of their own, to be killed: forked from one that has imported everything."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import tokenizers  # noqa: F401  so that no fork has to

import quantkit
from quantkit.calibration import walk
from quantkit.errors import QuantkitError
from quantkit.kernels.blas import blas_identity

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.calibration.process"])
blas_identity()  # looks for the libraries, once


class Process:
    """Runs `quantkit.calibrate(**settings)`.

    Args:
        die_at: step at which it dies by SIGKILL, in place of it. Steps are writes, syncs, renames and deletions.
        power_cut: what was written and not synced is garbage then; only steps at which there is such count.
    """

    def __init__(self, settings: dict[str, Any], *, die_at: int | None = None, power_cut: bool = False) -> None:
        self._reader, writer = _context.Pipe(duplex=False)
        self._process = _context.Process(target=_run, args=(writer, settings, die_at, power_cut))
        self._process.start()
        writer.close()

    def wait_for_layers(self) -> None:
        """Until it has begun to compute, or has ended."""
        with contextlib.suppress(EOFError):
            self._reader.recv()

    def is_running(self) -> bool:
        return self._process.is_alive()

    def kill(self) -> None:
        self._process.kill()

    def end(self) -> int:
        """Waits; the exit code, or minus the signal that killed it."""
        self._process.join(120)
        code = self._process.exitcode
        assert code is not None
        self._reader.close()
        self._process.close()
        return code


def _run(conn: Connection, settings: dict[str, Any], die_at: int | None, power_cut: bool) -> None:
    if die_at is not None:
        walk.check_layers = lambda *_: None  # for speed
        _die_at(die_at, power_cut)
    begun = False

    def report(_: Any) -> None:
        nonlocal begun
        if not begun:
            conn.send("walking")
        begun = True

    try:
        quantkit.calibrate(**settings, progress=report)
    except QuantkitError as error:
        raise SystemExit(str(error)) from error


def _die_at(step: int, power_cut: bool) -> None:
    left, pwrite = step, os.pwrite
    unsynced: dict[tuple[int, int], tuple[int, list[tuple[int, int]]]] = {}  # file -> descriptor, places written to

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def dying(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            if unsynced or not power_cut:
                if left == 0:
                    for fd, places in unsynced.values() if power_cut else ():
                        for offset, n_bytes in places:
                            pwrite(fd, b"\xaa" * n_bytes, offset)
                    os.kill(os.getpid(), signal.SIGKILL)
                left -= 1
            return call(*arguments, **options)

        return dying

    def write(fd: int, data: Any, offset: int) -> int:
        n_bytes = pwrite(fd, data, offset)
        unsynced.setdefault(_file(fd), (os.dup(fd), []))[1].append((offset, n_bytes))
        return n_bytes

    def sync(fd: int) -> None:
        unsynced.pop(_file(fd), None)  # and not to the disk, which takes its time

    os.pwrite = counted(write)
    os.fsync = os.fdatasync = counted(sync)
    Path.replace, Path.unlink = counted(Path.replace), counted(Path.unlink)  # type: ignore[method-assign]


def _file(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino
