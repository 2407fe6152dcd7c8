"""The gated unit that experts, shared experts and dense layers are: down(silu(gate x) * up x)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from quantkit.llama4.forward.blocks import spans
from quantkit.llama4.forward.floats import Floats
from quantkit.llama4.forward.weights import Matrix

_PIECE = 1 << 17  # elements of each array at a time, which a core's cache holds


@dataclass(frozen=True)
class GatedUnit:
    """Three matrices: gate and up (width, hidden), down (hidden, width)."""

    gate: Matrix
    up: Matrix
    down: Matrix

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        return self.gate, self.up, self.down

    def inner_tasks(self, x: Floats, gate: Floats, up: Floats) -> Iterator[Callable[[], object]]:
        """Tasks that together do gate = silu(gate x) * up x, (n, width); `up` is for what lies between."""

        def compute(outputs: slice) -> None:
            self.gate.multiply(x, gate, outputs)
            self.up.multiply(x, up, outputs)
            for rows in spans(0, len(x), max(1, _PIECE // (outputs.stop - outputs.start))):
                gated(gate[rows, outputs], up[rows, outputs])

        return (partial(compute, outputs) for outputs in self.gate.pieces())


def gated(gate: Floats, up: Floats) -> None:
    """silu(gate) * up, in place of gate."""
    with np.errstate(over="ignore"):  # exp of a large number is infinite, and its quotient the right zero
        divisor = np.exp(-gate)
    divisor += 1
    gate /= divisor
    gate *= up
