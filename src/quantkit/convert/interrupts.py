"""Ctrl-C and SIGTERM while files are written: noted when they come, obeyed where nothing is left in between."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """A context manager: within it, no signal raises an exception in the midst of anything, however often it comes.

    Only handlers that are Python functions are stood in for, and only in the main thread; what theirs would have raised
    is raised by `check`, or at the end of the block. An ignored or deadly signal stays what it is.
    """

    def __init__(self) -> None:
        self._error: BaseException | None = None
        self._stop: Callable[[BaseException], None] | None = None
        self._before: dict[signal.Signals, Callable[[int, FrameType | None], Any]] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                handler = signal.getsignal(number)
                if callable(handler):
                    self._before[number] = handler
                    signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if error is None:
            self.check()

    def check(self) -> None:
        """Raise what a signal asked for, if one came."""
        if self._error is not None:
            raise self._error

    @contextmanager
    def stopping(self, stop: Callable[[BaseException], None]) -> Iterator[None]:
        """Within the block a signal calls `stop` with its exception: at any point of this thread, so it must be
        reentrant. It is called at once when a signal has come before."""
        self._stop = stop
        try:
            if self._error is not None:
                stop(self._error)
            yield
        finally:
            self._stop = None

    def _note(self, number: int, frame: FrameType | None) -> None:
        try:
            self._before[signal.Signals(number)](number, frame)
        except BaseException as error:  # noqa: BLE001  raised again by `check`
            if self._error is None:
                self._error = error
            if self._stop is not None:
                self._stop(self._error)
