"""What can be watched while a stream computes."""

from __future__ import annotations

from dataclasses import dataclass

from quantkit.llama4.forward.floats import Floats, Ids
from quantkit.llama4.forward.states import States


@dataclass(frozen=True)
class Inputs:
    """What some tokens bring to one or several matrices.

    Args:
        layer: counted from 0.
        tensors: GGUF names of the matrices that are multiplied with `x`.
        x: float32 (n, columns of the matrices), valid and not to be changed during the call.
        tokens: (n,), numbers of the tokens: sequence * context + position. Each token comes once to each matrix, and
            once to each of its experts.
        expert: of `ffn_*_exps`; None for matrices that all tokens see.
        weights: float32 (n,), the router's for this expert; the inputs of gate and up are already multiplied with it.
    """

    layer: int
    tensors: tuple[str, ...]
    x: Floats
    tokens: Ids
    expert: int | None = None
    weights: Floats | None = None


@dataclass(frozen=True)
class Routing:
    """Where the router sends some tokens.

    Args:
        layer: counted from 0.
        tokens: (n,).
        logits: float32 (n, experts).
        experts: (n, experts used), largest logit first.
        weights: float32 (n, experts used), sigmoids of their logits.
    """

    layer: int
    tokens: Ids
    logits: Floats
    experts: Ids
    weights: Floats


@dataclass(frozen=True)
class Outputs:
    """What a unit of a layer adds to the hidden states of some tokens.

    Args:
        layer: counted from 0.
        y: float32 (n, hidden), valid and not to be changed during the call.
        tokens: (n,).
        expert: None for the dense unit and the shared expert, which all tokens see.
    """

    layer: int
    y: Floats
    tokens: Ids
    expert: int | None = None


class Observer:
    """Does nothing; a subclass overrides what it wants to see. Called in a fixed order, one call at a time, from the
    computing thread but for `inputs`."""

    def inputs(self, seen: Inputs) -> None:
        """While each product is computed, from any thread."""

    def attention(self, layer: int, states: States) -> None:
        """Between the halves of each layer, with the hidden states that attention leaves. They may be overwritten: the
        layer goes on with what they are then."""

    def outputs(self, seen: Outputs) -> None:
        """After each dense unit, shared expert and expert, of some tokens."""

    def routing(self, seen: Routing) -> None:
        """Once for each token of a layer with experts, before any expert."""

    def layer(self, layer: int, states: States) -> None:
        """After each layer, with the hidden states that it leaves."""
