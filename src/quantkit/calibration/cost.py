"""What a calibration will take, told before it begins."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """Told before the first round, or before what is left of the round in which an earlier run was stopped.

    Args:
        tokens, context: of the round.
        max_tokens: of all rounds together.
        layers: of the model.
        read_bytes: of the checkpoint's text model, for the round, at most: all of it but what makes logits.
        states_bytes: of the hidden states, and of the sums beside them where a token goes to several experts.
        states_in_memory: else they lie in a file beside the output.
        peak_ram_bytes: about, of the whole process.
        disk_bytes: about, at most, of all files beside the output until it is whole, and of itself.
        round, finished_layers: where an earlier run was stopped, and this one goes on.
        finished_tokens: of the rounds before.
    """

    tokens: int
    context: int
    max_tokens: int
    layers: int
    read_bytes: int
    states_bytes: int
    states_in_memory: bool
    peak_ram_bytes: int
    disk_bytes: int
    round: int = 1
    finished_layers: int = 0
    finished_tokens: int = 0
