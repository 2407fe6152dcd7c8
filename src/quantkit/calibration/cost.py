"""What a calibration will take, told before it begins."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """Told before the first round.

    Args:
        tokens, context: of the first round.
        max_tokens: of all rounds together.
        layers: of the model.
        read_bytes: of the checkpoint's text model, for one round.
        states_bytes: of the hidden states.
        states_in_memory: else they lie in a file beside the output.
        peak_ram_bytes: about, of the whole process.
    """

    tokens: int
    context: int
    max_tokens: int
    layers: int
    read_bytes: int
    states_bytes: int
    states_in_memory: bool
    peak_ram_bytes: int
