"""The gated unit that experts, shared experts and dense layers are: down(silu(gate x) * up x)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from quantkit.llama4.forward.weights import Floats, Matrix

_PIECE = 1 << 17  # elements at a time, which a core's cache holds


@dataclass(frozen=True)
class GatedUnit:
    """Three matrices: gate and up (width, hidden), down (hidden, width)."""

    gate: Matrix
    up: Matrix
    down: Matrix

    def __call__(self, x: Floats, threads: int, see: Callable[[Floats], None]) -> Floats:
        """x (n, hidden) -> (n, hidden); `see` is shown the input of down (n, width)."""
        inner = gated(self.gate.product(x, threads), self.up.product(x, threads))
        see(inner)
        return self.down.product(inner, threads)


def gated(gate: Floats, up: Floats) -> Floats:
    """silu(gate) * up, in place of gate."""
    flat, other = gate.reshape(-1), up.reshape(-1)
    for start in range(0, flat.size, _PIECE):
        piece = flat[start : start + _PIECE]
        with np.errstate(over="ignore"):  # exp of a large number is infinite, and its quotient the right zero
            divisor = np.exp(-piece)
        divisor += 1
        piece /= divisor
        piece *= other[start : start + _PIECE]
    return gate
