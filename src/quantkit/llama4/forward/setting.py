"""What every layer of a stream shares."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar

from quantkit.llama4.forward.blocks import Blocks
from quantkit.llama4.forward.buffers import Scratch
from quantkit.llama4.forward.floats import Floats, Ids, Rows
from quantkit.llama4.forward.norm import rms_norm
from quantkit.llama4.forward.observer import Inputs, Observer
from quantkit.llama4.forward.prefetch import Prefetch
from quantkit.llama4.forward.states import States
from quantkit.llama4.forward.team import Team
from quantkit.llama4.forward.weights import Matrix, Weights
from quantkit.llama4.hyperparameters import Hyperparameters

T = TypeVar("T")
Reader = Callable[[Weights, int], T]


@dataclass(frozen=True)
class Setting:
    """The model, the tokens' arrangement, and how to compute.

    Args:
        n_sequences, context: of the tokens; token t is at position t % context of sequence t // context.
        frequency: RoPE's, float32 (head_dim / 2,).
        new_states: makes another array of the size of the hidden states, zeros.
        scratch: arrays of the computing thread.
        team: its threads.
    """

    weights: Weights
    n_sequences: int
    context: int
    frequency: Floats
    observer: Observer
    prefetch: Prefetch
    blocks: Blocks
    new_states: Callable[[], States]
    scratch: Scratch
    team: Team

    @property
    def hp(self) -> Hyperparameters:
        return self.weights.hp

    @property
    def n_tokens(self) -> int:
        return self.n_sequences * self.context

    def start(self, layer: int, read: Reader[object]) -> None:
        """Begin to read what `take` will ask for; nothing for a layer after the last."""
        if layer < self.hp.n_layers:
            self.prefetch.start((layer, read.__name__), lambda: read(self.weights, layer))

    def take(self, layer: int, read: Reader[T]) -> T:
        """What `read` reads of a layer, begun before or not."""
        return self.prefetch.take((layer, read.__name__), lambda: read(self.weights, layer))

    def normed(self, states: States, norm: Floats, rows: Rows) -> Floats:
        """Normed hidden states (n, hidden), which live until they are asked for again."""
        n = rows.stop - rows.start if isinstance(rows, slice) else len(rows)
        x = states.read(rows, out=self.scratch.array("x", n, self.hp.hidden_size))
        return rms_norm(x, norm, self.hp.rms_norm_eps, self.team)

    def products(
        self, x: Floats, matrices: Mapping[str, Matrix], watch: Callable[[], None] | None = None
    ) -> list[Floats]:
        """x times some matrices, in scratch arrays of the names given; `watch` looks at x meanwhile."""
        found = [self.scratch.array(name, len(x), matrix.n_outputs) for name, matrix in matrices.items()]
        tasks = (matrix.tasks(x, out) for matrix, out in zip(matrices.values(), found, strict=True))
        self.team.run([*([watch] if watch else []), *chain.from_iterable(tasks)])
        return found

    def positions(self, block: slice) -> Iterator[tuple[slice, int]]:
        """The parts of a block of tokens that lie in one sequence each, counted from the block's first token, and the
        position of their first token."""
        row = block.start
        while row < block.stop:
            stop = min(block.stop, (row // self.context + 1) * self.context)
            yield slice(row - block.start, stop - block.start), row % self.context
            row = stop


@dataclass(frozen=True)
class Watch:
    """Tells the observer what some tokens of a layer bring to its matrices."""

    observer: Observer
    layer: int
    tokens: Ids
    expert: int | None = None
    weights: Floats | None = None

    def inputs(self, names: list[str], x: Floats) -> Callable[[], None]:
        """Tells of x, which is multiplied with matrices of these names, when it is called."""
        seen = Inputs(self.layer, tuple(names), x, self.tokens, self.expert, self.weights)
        return lambda: self.observer.inputs(seen)
