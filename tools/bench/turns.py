"""Contenders in processes of their own that take turns, so that one run compares them on one state of the machine.

A process each, because two builds of ggml cannot live in one (their libraries share a name), and because the threads
of one must not spin while another is measured. Weights are handed over in shared memory, so no side has a copy more.
"""

from __future__ import annotations

import multiprocessing as mp
import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any, cast

import numpy as np

REST_S, LONGEST_REST_S = 0.02, 1.0


@dataclass(frozen=True)
class Handle:
    """An array in shared memory, by name."""

    name: str
    shape: tuple[int, ...]
    dtype: str


class Shared:
    """An array that every contender sees."""

    def __init__(self, shape: tuple[int, ...], dtype: Any) -> None:
        n_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self._memory = SharedMemory(create=True, size=n_bytes)
        self.array: np.ndarray = np.ndarray(shape, dtype, self._memory.buf)
        self.handle = Handle(self._memory.name, shape, np.dtype(dtype).str)

    def close(self) -> None:
        del self.array
        self._memory.close()
        self._memory.unlink()


def share(array: np.ndarray) -> Shared:
    shared = Shared(array.shape, array.dtype)
    shared.array[...] = array
    return shared


_attached: dict[str, SharedMemory] = {}


def attach(handle: Handle) -> np.ndarray:
    """The array behind a handle; it stays mapped until `detach`."""
    if handle.name not in _attached:
        _attached[handle.name] = SharedMemory(handle.name)
    found: np.ndarray = np.ndarray(handle.shape, handle.dtype, _attached[handle.name].buf)
    return found


def own(handle: Handle) -> np.ndarray:
    """A copy in this process's memory, for which numpy asks the system for huge pages; aligned, as ggml insists."""
    source = attach(handle)
    memory = np.empty(source.nbytes + 64, np.uint8)
    first = -memory.ctypes.data % 64
    found: np.ndarray = memory[first : first + source.nbytes].view(source.dtype).reshape(source.shape)
    found[...] = source
    return found


def detach() -> None:
    for memory in _attached.values():
        memory.close()
    _attached.clear()


def wait_until_idle(pid: int | str | None) -> None:
    """Waits until that process's threads have stopped spinning: those of a pool go on for a tenth of a second."""
    tasks = Path(f"/proc/{pid}/task")
    deadline, before = time.monotonic() + LONGEST_REST_S, -1
    while time.monotonic() < deadline:
        time.sleep(REST_S)
        if not tasks.exists():  # not Linux
            time.sleep(0.3)
            return
        now = sum(int((task / "schedstat").read_text().split()[0]) for task in tasks.iterdir())
        if now - before < REST_S * 1e9 / 20:
            return
        before = now


def _serve(connection: Connection, module: str, name: str, settings: dict[str, Any]) -> None:
    """Obeys orders (method, arguments) until told to stop."""
    try:
        contender = getattr(__import__(module), name)(**settings)
        connection.send((True, contender.describe()))
    except Exception:  # noqa: BLE001  the parent raises it
        connection.send((False, traceback.format_exc()))
        return
    while True:
        method, arguments, named = connection.recv()
        if method == "stop":
            return
        try:
            connection.send((True, getattr(contender, method)(*arguments, **named)))
        except NotImplementedError as error:
            connection.send((True, error))
        except Exception:  # noqa: BLE001
            connection.send((False, traceback.format_exc()))


class Player:
    """One contender's process."""

    def __init__(self, module: str, name: str, **settings: Any) -> None:
        context = mp.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, module, name, settings), daemon=True)
        self._process.start()
        other.close()
        self.description = cast("dict[str, Any]", self._answer())

    def _answer(self) -> Any:
        good, answer = self._connection.recv()
        if not good:
            raise RuntimeError(answer)
        return answer

    def call(self, method: str, *arguments: Any, **named: Any) -> Any:
        """The method's result; NotImplementedError, returned, where the contender cannot do this."""
        self._connection.send((method, arguments, named))
        return self._answer()

    def rest(self) -> None:
        wait_until_idle(self._process.pid)

    def stop(self) -> None:
        self._connection.send(("stop", (), {}))
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()


@contextmanager
def players(wanted: Mapping[str, tuple[str, str, dict[str, Any]]]) -> Iterator[dict[str, Player]]:
    """Starts contenders; one whose package is not installed is left out, with a line that says so."""
    started: dict[str, Player] = {}
    try:
        for label, (module, name, settings) in wanted.items():
            try:
                started[label] = Player(module, name, **settings)
            except RuntimeError as error:
                last = str(error).strip().splitlines()[-1]
                if not last.startswith(("ModuleNotFoundError", "FileNotFoundError", "ImportError")):
                    raise
                print(f"left out: {label}: {last}", flush=True)
        yield started
    finally:
        for player in started.values():
            player.stop()


def medians(
    group: Mapping[str, Player], turns: int, between: Mapping[str, Callable[[], float]] | None = None
) -> tuple[dict[str, float], dict[str, float]]:
    """Interleaved turns of all players, after one that does not count; each round begins with another of them.

    Args:
        between: measurements to make once in every round, as ceilings are.

    Returns:
        medians of the seconds of each player's prepared job, and of what was measured between.
    """
    times: dict[str, list[float]] = {label: [] for label in group}
    others: dict[str, list[float]] = {name: [] for name in between or {}}
    labels = list(group)
    for turn in range(turns + 1):
        first = turn % len(labels)
        for label in labels[first:] + labels[:first]:
            seconds = group[label].call("turn")
            group[label].rest()
            if turn:
                times[label].append(seconds)
        for name, measure in (between or {}).items():
            if turn:
                others[name].append(measure())
    return (
        {label: statistics.median(found) for label, found in times.items()},
        {name: statistics.median(found) for name, found in others.items()},
    )
