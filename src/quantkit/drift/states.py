"""How far hidden states, and what experts add to them, lie from the reference's."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quantkit.llama4.forward.floats import Floats

_PIECE = 1 << 16  # elements at a time: copies in float64 stay in cache


@dataclass(frozen=True)
class StateError:
    """The error e = candidate - reference over some tokens.

    Args:
        relative_error: root of (sum of e² / sum of reference²); infinite where only the reference is zero.
        cosine: of the angle between both, the mean over tokens.
        sqnr_db: signal to quantization noise, -20 log10(relative error); infinite where there is no error.
        tokens: how many.
    """

    relative_error: float
    cosine: float
    sqnr_db: float
    tokens: int


class StateErrorSums:
    """Collects pairs of states, in float64."""

    def __init__(self) -> None:
        self._noise = self._signal = self._cosines = 0.0
        self._n = 0

    def add(self, reference: Floats, candidate: Floats) -> None:
        """float32 (n, hidden) both."""
        step = max(1, _PIECE // max(1, reference.shape[1]))
        for first in range(0, len(reference), step):
            wanted = reference[first : first + step].astype(np.float64)
            found = candidate[first : first + step].astype(np.float64)
            squares, others = _dots(wanted, wanted), _dots(found, found)
            with np.errstate(invalid="ignore", divide="ignore"):
                cosines = _dots(wanted, found) / np.sqrt(squares * others)
            alone = (squares == 0) | (others == 0)
            cosines[alone] = squares[alone] == others[alone]
            found -= wanted
            self._noise += float(_dots(found, found).sum())
            self._signal += float(squares.sum())
            self._cosines += float(np.clip(cosines, -1, 1).sum())
            self._n += len(wanted)

    def figures(self) -> StateError | None:
        """None where there were no tokens."""
        if not self._n:
            return None
        relative = math.sqrt(self._noise / self._signal) if self._signal else math.inf if self._noise else 0.0
        return StateError(relative, self._cosines / self._n, decibels(relative), self._n)


def decibels(relative: float) -> float:
    """-20 log10 of a relative error."""
    return -20 * math.log10(relative) if 0 < relative < math.inf else -math.inf if relative else math.inf


def _dots(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    found: npt.NDArray[np.float64] = np.einsum("ij,ij->i", a, b)
    return found
