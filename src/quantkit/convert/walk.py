"""The walk: read slab k+1 while slab k is encoded and what was encoded before is written. Memory is a few buffers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from queue import SimpleQueue
from typing import cast

import numpy as np
import numpy.typing as npt

from quantkit.checkpoint import Checkpoint
from quantkit.convert.ledger import Ledger
from quantkit.convert.part import Part
from quantkit.convert.tuning import Tuning
from quantkit.errors import NonFiniteError
from quantkit.kernels import encode_into, row_bytes
from quantkit.kernels.codec import Scalar, Weighting
from quantkit.llama4 import Slab, Target
from quantkit.llama4.fault import located
from quantkit.llama4.scale import Scales, read_scales, row_scales

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Sink:
    """Where one tensor goes in one output.

    Args:
        part: the file.
        offset_bytes: of the tensor in it.
        shape: numpy order; one dimension counts as one row.
        format: of the kernels.
        importance: float32 (experts, cols) or None.
        weighting: of the kernels.
    """

    part: Part
    offset_bytes: int
    shape: tuple[int, ...]
    format: str
    importance: npt.NDArray[np.float32] | None
    weighting: Weighting

    @property
    def cols(self) -> int:
        return self.shape[-1]

    @property
    def rows(self) -> int:
        """Rows per expert."""
        return self.shape[-2] if len(self.shape) > 1 else 1

    @cached_property
    def row_bytes(self) -> int:
        return row_bytes(self.format, self.cols)

    def place(self, expert: int, row: int) -> int:
        """Byte offset of a row in the file."""
        return self.offset_bytes + (expert * self.rows + row) * self.row_bytes


@dataclass
class Loaded:
    """A slab in memory; `pending` counts the pieces that are not written yet, plus one while it is being encoded."""

    slab: Slab
    buffer: Bytes
    scales: Scales | None = None
    pending: int = 1
    lock: threading.Lock = field(default_factory=threading.Lock)

    def release(self) -> bool:
        """Take one off `pending`; True for the last."""
        with self.lock:
            self.pending -= 1
            return self.pending == 0


def slab_key(slab: Slab) -> tuple[str, int, int]:
    """What the journal calls a slab."""
    return slab.entry.name, slab.offset_bytes, slab.n_bytes


class Walk:
    """One pass over the slabs of a checkpoint, into all sinks.

    Args:
        checkpoint: where slabs are read.
        slabs: those still to do, in order.
        sinks: GGUF tensor -> one sink per output that has it.
        ledger: is told when the last piece of a slab has been written.
        threads: of the encoder.
        report: called from the caller's thread with (slab, share of it that is encoded, payload bytes so far).
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        slabs: Sequence[Slab],
        sinks: Mapping[str, Sequence[Sink]],
        ledger: Ledger,
        *,
        threads: int,
        tuning: Tuning,
        report: Callable[[Slab, float, int], None],
    ) -> None:
        self._checkpoint = checkpoint
        self._slabs = slabs
        self._sinks = sinks
        self._ledger = ledger
        self._threads = threads
        self._tuning = tuning
        self._report = report
        self._stopped = False
        self._failure: BaseException | None = None
        self._encoded_bytes = 0
        self._ready: SimpleQueue[Loaded | None] = SimpleQueue()
        self._writes: SimpleQueue[tuple[Part, Bytes, int, int, Loaded] | None] = SimpleQueue()
        self._free_slabs: SimpleQueue[Bytes | None] = SimpleQueue()
        self._free_chunks: SimpleQueue[Bytes | None] = SimpleQueue()

    def run(self) -> None:
        """Walk. On return every byte is written, though not all of them synced.

        Raises:
            NonFiniteError: with file, tensor and index.
            OutputError, CheckpointError: from the writers and the reader.
            What `stop` was given: after all threads have ended; what they had finished is in the ledger.
        """
        if not self._slabs:
            return
        for _ in range(self._tuning.slab_buffers):
            self._free_slabs.put(np.empty(max(slab.n_bytes for slab in self._slabs), np.uint8))
        widest = max(sink.row_bytes for sinks in self._sinks.values() for sink in sinks)
        for _ in range(self._tuning.chunk_buffers):
            self._free_chunks.put(np.empty(max(self._tuning.chunk_bytes, widest), np.uint8))
        reader = threading.Thread(target=self._guarded, args=(self._read,), name="quantkit-read")
        writers = [
            threading.Thread(target=self._guarded, args=(self._write,), name=f"quantkit-write-{number}")
            for number in range(self._tuning.writers)
        ]
        started: list[threading.Thread] = []
        try:
            for thread in (reader, *writers):
                thread.start()
                started.append(thread)
            self._encode_all()
        except BaseException as error:
            self.stop(error)
            raise
        finally:
            # All are told before any is waited for. Nothing more is read; what is queued is written out.
            self._free_slabs.put(None)
            for _ in writers:
                self._writes.put(None)
            for thread in started:
                thread.join()
        if self._failure is not None:
            raise self._failure

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001  handed to the caller's thread, which raises it
            self.stop(error)

    def stop(self, error: BaseException) -> None:
        """End the walk; `run` raises the first such error. From any thread, and from a signal handler: it takes no
        lock that the interrupted code may hold (the queues are reentrant)."""
        if self._failure is None:
            self._failure = error
        self._stopped = True
        self._ready.put(None)
        self._free_slabs.put(None)
        self._free_chunks.put(None)

    def _read(self) -> None:
        for slab in self._slabs:
            buffer = self._free_slabs.get()
            if buffer is None or self._stopped:
                return
            self._checkpoint.read_into(slab.entry, buffer.data[: slab.n_bytes], slab.offset_bytes, slab.n_bytes)
            self._ready.put(Loaded(slab, buffer, read_scales(self._checkpoint, slab)))

    def _encode_all(self) -> None:
        for _ in range(len(self._slabs)):
            loaded = self._ready.get()
            if loaded is None or self._stopped:
                return
            if not self._encode(loaded):
                return
            self._free_slabs.put(loaded.buffer)
            if loaded.release():
                self._ledger.finished(slab_key(loaded.slab))

    def _encode(self, loaded: Loaded) -> bool:
        """Encode a slab for all sinks; False when the walk was stopped before its end."""
        slab = loaded.slab
        rows_in_all = sum(target.n_rows * len(self._sinks.get(target.tensor, ())) for target in slab.targets)
        rows_done = 0
        for target in slab.targets:
            for sink in self._sinks.get(target.tensor, ()):
                step = max(1, self._tuning.chunk_bytes // sink.row_bytes)
                for first in range(0, target.n_rows, step):
                    n_rows = min(step, target.n_rows - first)
                    chunk = self._free_chunks.get()
                    if chunk is None or self._stopped:
                        return False
                    self._encode_rows(loaded, target, sink, first, n_rows, chunk)
                    rows_done += n_rows
                    self._report(slab, rows_done / rows_in_all, self._encoded_bytes)
        return True

    def _encode_rows(self, loaded: Loaded, target: Target, sink: Sink, first: int, n_rows: int, chunk: Bytes) -> None:
        slab = loaded.slab
        n_bytes = n_rows * sink.row_bytes
        try:
            encode_into(
                chunk[:n_bytes],
                loaded.buffer[: slab.n_bytes],
                format=sink.format,
                dtype=cast(Scalar, slab.entry.dtype.lower()),
                rows=n_rows,
                cols=sink.cols,
                offset_elements=target.offset_elements + first * target.row_stride,
                row_stride=target.row_stride,
                col_stride=target.col_stride,
                importance=None if sink.importance is None else sink.importance[target.expert],
                weighting=sink.weighting,
                scale=row_scales(loaded.scales, target, first, n_rows),
                threads=self._threads,
            )
        except NonFiniteError as error:
            raise located(error, slab, target, first) from error
        with loaded.lock:
            loaded.pending += 1
        self._encoded_bytes += n_bytes
        self._writes.put((sink.part, chunk, n_bytes, sink.place(target.expert, target.row_start + first), loaded))

    def _write(self) -> None:
        while (job := self._writes.get()) is not None:
            part, chunk, n_bytes, offset_bytes, loaded = job
            part.write(chunk.data[:n_bytes], offset_bytes)
            self._ledger.wrote(part, n_bytes)
            self._free_chunks.put(chunk)
            if loaded.release():
                self._ledger.finished(slab_key(loaded.slab))
