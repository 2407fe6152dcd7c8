"""What has been written and what of it is safe: syncs in batches on a thread of its own, then moves the journal on."""

from __future__ import annotations

import threading
import time

from quantkit.convert.journal import Journal, SlabKey
from quantkit.convert.part import Part


class Ledger:
    """Between the writers and the journal. A slab enters the journal after a sync that began after its last byte.

    Args:
        journal: is appended to.
        sync_bytes, sync_seconds: a sync starts when so much was written, or so long after something was.
    """

    def __init__(self, journal: Journal, *, sync_bytes: int, sync_seconds: float) -> None:
        self._journal = journal
        self._sync_bytes = sync_bytes
        self._sync_seconds = sync_seconds
        self._condition = threading.Condition()
        self._dirty: dict[Part, None] = {}
        self._unsynced_bytes = 0
        self._finished: list[SlabKey] = []
        self._closing = False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._keep, name="quantkit-sync")
        self._thread.start()

    def wrote(self, part: Part, n_bytes: int) -> None:
        """Bytes went to a part.

        Raises:
            OutputError: the disk refused an earlier sync.
        """
        with self._condition:
            if self._failure is not None:
                raise self._failure
            self._dirty[part] = None
            self._unsynced_bytes += n_bytes
            if self._unsynced_bytes >= self._sync_bytes:
                self._condition.notify()

    def finished(self, slab: SlabKey) -> None:
        """All bytes of a slab, in all outputs, have been written."""
        with self._condition:
            self._finished.append(slab)

    def close(self) -> None:
        """Sync what is left, note it, end the thread.

        Raises:
            OutputError: the disk refused a sync.
        """
        with self._condition:
            self._closing = True
            self._condition.notify()
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _keep(self) -> None:
        try:
            last = time.monotonic()
            closing = False
            while not closing:
                with self._condition:
                    self._condition.wait_for(
                        lambda: self._closing or self._unsynced_bytes >= self._sync_bytes,
                        timeout=max(0.0, last + self._sync_seconds - time.monotonic()),
                    )
                    closing = self._closing
                    dirty, self._dirty = list(self._dirty), {}
                    finished, self._finished = self._finished, []
                    self._unsynced_bytes = 0
                for part in dirty:
                    part.sync()
                if finished:
                    self._journal.note(finished)
                last = time.monotonic()
        except BaseException as error:  # noqa: BLE001  handed to the walk, which raises it
            self._failure = error
