"""One round after the other through the model, from where an earlier run was stopped."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from quantkit.calibration.collector import file_bytes, statistics_bytes, sums_bytes
from quantkit.calibration.cost import Cost
from quantkit.calibration.savepoint import Point, Savepoint
from quantkit.calibration.self_check import check_layers
from quantkit.calibration.tokens import Ids, TokenSource, tokens_bytes
from quantkit.calibration.watch import Watch
from quantkit.errors import PlanRefusedError, UsageError
from quantkit.kernels.blas import blas_threads
from quantkit.llama4.forward import Blocks, Stream, Weights, estimate, team_size


class Supply:
    """The chunks of one round after the other.

    Attributes:
        n_chunks: handed out until now.
        n_most: of all rounds.
    """

    def __init__(self, source: TokenSource, names: tuple[str, ...], n_first: int | None, n_most: int | None) -> None:
        self._source, self._names, self._n_first = source, names, n_first
        self.n_chunks, self.n_most = 0, n_most or 0

    def take(self) -> Ids:
        """Those of the next round, int64 (n, context); none at the end of the text. UsageError if even the first has
        none."""
        if not self.n_chunks:
            chunks = _first(self._source, self._names, self._n_first)
            self.n_most = self.n_most or len(chunks)
        else:
            chunks = self._source.take(min(self._n_first or self.n_most, self.n_most - self.n_chunks))
        self.n_chunks += len(chunks)
        return chunks


@dataclass
class Walk:
    """Takes rounds through the model from where they stand, each layer noted when it is finished.

    Args:
        max_ram_bytes: of the whole process.
        text_bytes: of the largest text.
        read_bytes: (layer, bytes) of each tensor.
        announce: is told once what is ahead.
    """

    weights: Weights
    watch: Watch
    saved: Savepoint
    max_ram_bytes: int | None
    text_bytes: int
    folder: Path
    threads: int
    read_bytes: list[tuple[int, int]]
    announce: Callable[[Cost], None] | None

    def run(self, chunks: Ids, supply: Supply) -> float:
        """One round; the seconds that it took, those of earlier runs included."""
        saved, point, hp = self.saved, self.saved.point, self.weights.hp
        if point.layer == hp.n_layers:  # nothing is left to compute, nor to be refused for it
            self.watch.begin(len(point.rounds) + 1, chunks.size, point.layer)
            return point.seconds
        beside_bytes = statistics_bytes(hp) + tokens_bytes(hp.vocab_size, chunks.size, self.text_bytes)
        rest_bytes = self._left_beside(beside_bytes)
        self._announce(chunks, supply, beside_bytes, rest_bytes)
        start = time.monotonic() - point.seconds
        if point == Point():
            with blas_threads(1):  # for the plain half of it too
                check_layers(self.weights, chunks, self.threads)
        self.watch.begin(len(point.rounds) + 1, chunks.size, point.layer)
        with Stream(
            self.weights,
            chunks,
            observer=self.watch,
            max_ram_bytes=rest_bytes,
            folder=self.folder,
            threads=self.threads,
            first_layer=point.layer,
            saved=saved.states(hp.hidden_size) if point.layer else None,
        ) as stream:
            while stream.layer < hp.n_layers:
                stream.advance()
                states = stream.states if stream.layer < hp.n_layers else None
                saved.note_layer(self.watch, states, time.monotonic() - start)
                self.watch.tell(stream.layer)
        return time.monotonic() - start

    def _left_beside(self, n_bytes: int) -> int | None:
        """What the stream may take of the memory that is allowed."""
        if self.max_ram_bytes is None:
            return None
        if n_bytes >= self.max_ram_bytes:
            raise PlanRefusedError(
                f"{self.max_ram_bytes:,} bytes of memory are allowed, and statistics, tokenizer and text alone take "
                f"{n_bytes:,}"
            )
        return self.max_ram_bytes - n_bytes

    def _announce(self, chunks: Ids, supply: Supply, beside_bytes: int, rest_bytes: int | None) -> None:
        """Say what is ahead, and refuse it if memory or disk has no room, before anything is read or written for it."""
        hp, point, tell = self.weights.hp, self.saved.point, self.announce
        memory = estimate(self.weights, chunks.shape[0], chunks.shape[1], Blocks(), team_size(self.threads))
        in_memory = memory.keeps_states(rest_bytes)
        states_bytes = 4 * chunks.size * hp.hidden_size
        n_sums = 2 if point.rounds or supply.n_most > supply.n_chunks else 1
        # two copies to go on from, and those that the stream works on
        disk_bytes = 2 * states_bytes + (0 if in_memory else memory.states) + n_sums * sums_bytes(hp) + file_bytes(hp)
        self.saved.check_room(disk_bytes)
        if tell is None:
            return
        self.announce = None
        tell(
            Cost(
                tokens=chunks.size,
                context=chunks.shape[1],
                max_tokens=max(supply.n_most, supply.n_chunks) * chunks.shape[1],
                layers=hp.n_layers,
                read_bytes=sum(n_bytes for layer, n_bytes in self.read_bytes if layer >= point.layer),
                states_bytes=memory.states,
                states_in_memory=in_memory,
                peak_ram_bytes=memory.working + beside_bytes + (memory.states if in_memory else 0),
                disk_bytes=disk_bytes,
                round=len(point.rounds) + 1,
                finished_layers=point.layer,
                finished_tokens=sum(one.tokens for one in point.rounds),
            )
        )


def _first(source: TokenSource, names: tuple[str, ...], n_chunks: int | None) -> Ids:
    chunks = source.take(n_chunks)
    if not len(chunks):
        raise UsageError(
            f"{', '.join(names)}: {source.n_left} tokens do not fill one chunk of {source.context}",
            hint="Give more text, or a shorter --context.",
        )
    return chunks
