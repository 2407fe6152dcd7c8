"""The gated unit that experts, shared experts and dense layers are: down(silu(gate x) * up x)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from quantkit.llama4.forward.floats import Floats
from quantkit.llama4.forward.team import Team
from quantkit.llama4.forward.weights import Matrix

_PIECE = 1 << 18  # elements at a time, which a core's cache holds


@dataclass(frozen=True)
class GatedUnit:
    """Three matrices: gate and up (width, hidden), down (hidden, width)."""

    gate: Matrix
    up: Matrix
    down: Matrix

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        return self.gate, self.up, self.down


def gated(gate: Floats, up: Floats, team: Team) -> Floats:
    """silu(gate) * up, in place of gate."""
    flat, other = gate.reshape(-1), up.reshape(-1)

    def multiply(start: int) -> None:
        piece = flat[start : start + _PIECE]
        with np.errstate(over="ignore"):  # exp of a large number is infinite, and its quotient the right zero
            divisor = np.exp(-piece)
        divisor += 1
        piece /= divisor
        piece *= other[start : start + _PIECE]

    team.run(partial(multiply, start) for start in range(0, flat.size, _PIECE))
    return gate
