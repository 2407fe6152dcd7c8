"""Threads that share out work among themselves, with BLAS on one thread in each.

BLAS's own threads wait for each other in a spin, in every product; where another program wants a processor too, that
takes many times as long. Ours share whole pieces out. The pieces do not depend on the number of threads, and so
neither does any result.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

from quantkit.kernels.blas import blas_threads
from quantkit.kernels.codec import thread_count
from quantkit.llama4.forward.blocks import spans
from quantkit.llama4.forward.floats import Floats

_PIECE = 1 << 18  # elements


class Team:
    """Runs tasks on `threads` threads, the caller among them; 0 takes all processors that the process may use."""

    def __init__(self, threads: int = 0) -> None:
        self.n_threads = team_size(threads)
        self._pool = ThreadPoolExecutor(self.n_threads - 1, "quantkit-work") if self.n_threads > 1 else None

    def run(self, tasks: Iterable[Callable[[], object]]) -> None:
        """All of the tasks, in any order. Raises the error of the first that has one, after all have ended."""
        queue = list(tasks)
        if self._pool is None or len(queue) == 1:
            for task in queue:
                task()
            return
        places = iter(range(len(queue)))  # its next() is one step, so that threads may share it
        errors: dict[int, BaseException] = {}

        def work() -> None:
            for place in places:
                try:
                    queue[place]()
                except BaseException as error:  # noqa: BLE001  raised by the caller's thread
                    errors[place] = error

        helpers = [self._pool.submit(work) for _ in range(min(self.n_threads, len(queue)) - 1)]
        work()
        for helper in helpers:
            helper.result()
        if errors:
            raise errors[min(errors)]

    def spread(self, x: Floats, work: Callable[[slice], object]) -> None:
        """work(rows) on all rows of x (n, cols), so many at a time that a core's cache holds them."""
        self.run(partial(work, part) for part in spans(0, len(x), max(1, _PIECE // x.shape[1])))

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """BLAS on one thread, for as long as tasks are run."""
        with blas_threads(1):
            yield

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()


def team_size(threads: int) -> int:
    """How many threads a team of `threads` has."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return thread_count(threads) or processors
