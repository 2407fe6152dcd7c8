"""How much is computed at a time. Results depend on it by rounding only."""

from __future__ import annotations

from dataclasses import dataclass

from quantkit.errors import UsageError
from quantkit.llama4.forward.attention import KEY_BLOCK, QUERY_BLOCK


@dataclass(frozen=True)
class Blocks:
    """Sizes of blocks.

    Args:
        tokens: in a product. More cost memory, fewer cost time, since weights are decoded for each block. The default
            keeps an expert's inner values, 8192 wide, below 32 MiB, which the C library takes from memory it has.
        queries, keys: in attention.
    """

    tokens: int = 960
    queries: int = QUERY_BLOCK
    keys: int = KEY_BLOCK

    def __post_init__(self) -> None:
        if min(self.tokens, self.queries, self.keys) < 1:
            raise UsageError(f"{self} has a size below 1")


@dataclass(frozen=True)
class Piece:
    """Tokens that see each other: a sequence, or one attention chunk of it.

    Args:
        row: the first token's, among all tokens.
        position: the first token's, in its sequence.
        count: how many.
    """

    row: int
    position: int
    count: int


def pieces(n_sequences: int, context: int, chunk: int | None) -> list[Piece]:
    """All pieces in the order of their rows; `chunk` None for whole sequences."""
    length = min(chunk or context, context)
    return [
        Piece(sequence * context + position, position, min(length, context - position))
        for sequence in range(n_sequences)
        for position in range(0, context, length)
    ]


def groups(all_pieces: list[Piece], n_tokens: int) -> list[list[Piece]]:
    """Neighbours of at most `n_tokens` together; a longer piece stands alone."""
    found: list[list[Piece]] = []
    room = 0
    for piece in all_pieces:
        if not found or piece.count > room:
            found.append([])
            room = n_tokens
        found[-1].append(piece)
        room -= piece.count
    return found


def spans(start: int, stop: int, step: int) -> list[slice]:
    """Consecutive slices of at most `step` from `start` to `stop`."""
    return [slice(first, min(stop, first + step)) for first in range(start, stop, step)]
