"""How far a comparison is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """A report after each layer of each model, and some times a second while weights or logits are compared.

    Args:
        what: is in work: "layer 3", "logits", or a tensor's name.
        model: which computed last; 0 is the reference, and all models while weights or logits are compared.
        layer: how many of its layers are done; 0 while weights are compared.
        done, total: tokens times layers of all models, logits counting as one layer; or weights.
        seconds: since this part began.
    """

    what: str
    model: int
    layer: int
    done: int
    total: int
    seconds: float
