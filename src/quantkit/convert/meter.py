"""Progress reports, no more than ten a second, and the process's peak memory."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

from quantkit.convert.progress import Progress
from quantkit.llama4 import Slab

_INTERVAL_SECONDS = 0.1


class Meter:
    """Counts source bytes as their slabs are encoded."""

    def __init__(self, total_bytes: int, callback: Callable[[Progress], None] | None) -> None:
        self._total_bytes = total_bytes
        self._callback = callback
        self._resumed_bytes = 0
        self._done_bytes = 0
        self._current: Slab | None = None
        self._written_bytes = 0
        self._begun = self._last = time.monotonic()

    def start(self, resumed_bytes: int) -> None:
        """The walk begins; so much was done by an earlier run."""
        self._resumed_bytes = self._done_bytes = resumed_bytes
        self._begun = time.monotonic()
        self._tell(resumed_bytes, "")

    def report(self, slab: Slab, share: float, written_bytes: int) -> None:
        """A share of a slab is encoded."""
        if slab is not self._current:
            if self._current is not None:
                self._done_bytes += self._current.n_bytes
            self._current = slab
        self._written_bytes = written_bytes
        if time.monotonic() - self._last >= _INTERVAL_SECONDS:
            self._tell(self._done_bytes + int(share * slab.n_bytes), slab.entry.name)

    def finish(self) -> None:
        """The walk is over."""
        self._tell(self._total_bytes, "")

    def _tell(self, done_bytes: int, tensor: str) -> None:
        self._last = now = time.monotonic()
        if self._callback is None:
            return
        fresh, seconds = done_bytes - self._resumed_bytes, now - self._begun
        rate = fresh / seconds if fresh and seconds > 0 else 0.0
        remaining = (self._total_bytes - done_bytes) / rate if rate else None
        self._callback(
            Progress(done_bytes, self._total_bytes, tensor, rate, remaining, self._resumed_bytes, self._written_bytes)
        )


def peak_rss_bytes() -> int:
    """Largest resident set of this process so far."""
    import resource

    try:  # Linux's ru_maxrss also counts what the parent held when it forked
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    except (OSError, IndexError, ValueError):
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes there, KiB elsewhere
