"""How far a walk is, told while it computes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from quantkit.calibration.collector import Collector
from quantkit.llama4 import Hyperparameters
from quantkit.llama4.forward import Inputs


@dataclass(frozen=True)
class Progress:
    """A report: when a round begins, after each layer, which is on the disk then, and about ten a second, from any
    thread, one call at a time.

    Args:
        round: counted from 1.
        layer: in work; the number of layers at the end.
        done_tokens, total_tokens: tokens times layers, of this round.
        tokens_per_second: tokens through the whole model, by this process's time in the round; 0.0 before there is one.
        remaining_seconds: of this round; None while it cannot be told.
    """

    round: int
    layer: int
    done_tokens: int
    total_tokens: int
    tokens_per_second: float
    remaining_seconds: float | None


class Watch(Collector):
    """A collector that reports. Every token comes once to each attention's output and once to each down matrix."""

    INTERVAL_SECONDS = 0.1

    def __init__(self, hp: Hyperparameters, report: Callable[[Progress], None] | None) -> None:
        super().__init__(hp)
        self._report, self._n_layers = report, hp.n_layers
        self._round = self._total = self._taken_over = self._halves = 0
        self._start = self._told = time.monotonic()

    def begin(self, number: int, n_tokens: int, layer: int = 0) -> None:
        """A round over so many tokens begins, or goes on at `layer`."""
        self._round, self._total = number, n_tokens * self._n_layers
        self._taken_over, self._halves = n_tokens * layer, 0
        self._start = self._told = time.monotonic()
        self.tell(layer)

    def inputs(self, seen: Inputs) -> None:
        super().inputs(seen)
        name = seen.tensors[0]
        if name.endswith((".attn_output.weight", ".ffn_down.weight", ".ffn_down_shexp.weight")):
            self._halves += len(seen.x)
            now = time.monotonic()
            if now - self._told >= self.INTERVAL_SECONDS:
                self._told = now
                self.tell(seen.layer)

    def tell(self, layer: int) -> None:
        """Report now."""
        if self._report is None:
            return
        seconds = time.monotonic() - self._start
        done = self._taken_over + self._halves // 2
        rate = (done - self._taken_over) / max(seconds, 1e-9)
        left = (self._total - done) / rate if rate else None
        self._report(Progress(self._round, layer, done, self._total, rate / self._n_layers, left))
