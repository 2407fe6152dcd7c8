"""What every layer of a stream shares."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from quantkit.llama4.forward.blocks import Blocks
from quantkit.llama4.forward.buffers import Scratch
from quantkit.llama4.forward.floats import Floats, Ids, Rows
from quantkit.llama4.forward.norm import rms_norm
from quantkit.llama4.forward.observer import Inputs, Observer
from quantkit.llama4.forward.prefetch import Prefetch
from quantkit.llama4.forward.states import States, part_of
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
        x = self.scratch.array("x", n, self.hp.hidden_size)

        def read(part: slice) -> None:
            states.read(part_of(rows, part), out=x[part])
            rms_norm(x[part], norm, self.hp.rms_norm_eps)

        self.team.spread(x, read)
        return x

    def add(self, states: States, rows: Rows, y: Floats, *others: Floats) -> None:
        """The sum of y and others, which y holds then, to rows of `states`."""

        def add(part: slice) -> None:
            for other in others:
                y[part] += other[part]
            states.add(part_of(rows, part), y[part])

        self.team.spread(y, add)

    def products(
        self, x: Floats, products: Iterable[tuple[Matrix, Floats]], watch: Callable[[], None] | None = None
    ) -> None:
        """x times some matrices, each into its array; `watch` looks at x meanwhile."""
        pieces = [(matrix, x, out, outputs) for matrix, out in products for outputs in matrix.pieces()]
        pieces.sort(key=lambda piece: piece[3].start - piece[3].stop)  # the largest first
        watching = [] if watch is None else [watch]
        self.team.run([*watching, *(partial(Matrix.multiply, *piece) for piece in pieces)])

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
