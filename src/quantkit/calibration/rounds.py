"""Top-up: when experts are short of tokens, which, and whether another round would help."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from quantkit.gguf import Imatrix, coverage

STALLED = 0.05  # a round that adds less than this share to every short expert is the last
Ending = Literal["floor", "max-tokens", "text", "stalled"]


@dataclass(frozen=True)
class ShortExpert:
    """An expert that has seen fewer tokens than was asked for."""

    layer: int
    expert: int
    tokens: int


@dataclass(frozen=True)
class Round:
    """One walk through the model; `short` counts the experts that were short after it."""

    tokens: int
    seconds: float
    short: int


@dataclass(frozen=True)
class Calibration:
    """What `calibrate` did.

    Args:
        path: the file written.
        imatrix: what it holds, in float64.
        rounds: at least one.
        ending: why there was no further round: every expert has its tokens, `max_tokens` are spent, the text is at its
            end, or the last round added under 5 % to every short expert.
        short: the experts that stayed short, by layer.
    """

    path: Path
    imatrix: Imatrix
    rounds: tuple[Round, ...]
    ending: Ending
    short: tuple[ShortExpert, ...]

    @property
    def tokens(self) -> int:
        return sum(one.tokens for one in self.rounds)


def short_experts(imatrix: Imatrix, floor: int) -> tuple[ShortExpert, ...]:
    """Experts with fewer than `floor` tokens."""
    return tuple(
        ShortExpert(layer.layer, expert, int(tokens))
        for layer in coverage(imatrix)
        for expert, tokens in enumerate(layer.tokens)
        if tokens < floor
    )


def has_stalled(before: Sequence[ShortExpert], after: Sequence[ShortExpert]) -> bool:
    """Whether a round added under 5 % to every expert that was short; one that got its first token gained."""
    now = {(expert.layer, expert.expert): expert.tokens for expert in after}
    for expert in before:
        tokens = now.get((expert.layer, expert.expert))
        if tokens is None:  # it has enough
            return False
        if tokens - expert.tokens >= max(STALLED * expert.tokens, 1):
            return False
    return bool(before)
