"""Reading what is needed next while something else computes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


class Prefetch:
    """One thread that reads one thing ahead: memory is that of two."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "quantkit-read")
        self._ahead: tuple[object, Future[Any]] | None = None

    def start(self, key: object, read: Callable[[], Any]) -> None:
        """Begin to read what `take(key)` will ask for."""
        self.drop()
        self._ahead = (key, self._pool.submit(read))

    def take(self, key: object, read: Callable[[], T]) -> T:
        """What was started under `key`, or else what `read` returns."""
        ahead, self._ahead = self._ahead, None
        if ahead is None:
            return read()
        if ahead[0] == key:
            found: T = ahead[1].result()
            return found
        self._ahead = ahead
        self.drop()
        return read()

    def drop(self) -> None:
        """Forget what was started, once it has ended; its error, if any, will come back when it is read again."""
        if self._ahead is not None:
            ahead, self._ahead = self._ahead[1], None
            if not ahead.cancel():
                ahead.exception()

    def close(self) -> None:
        self.drop()
        self._pool.shutdown()
