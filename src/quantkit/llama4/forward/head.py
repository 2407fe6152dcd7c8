"""From hidden states to logits, in pieces that are never together in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from quantkit.llama4.forward.blocks import spans
from quantkit.llama4.forward.floats import Floats
from quantkit.llama4.forward.setting import Setting
from quantkit.llama4.forward.states import States
from quantkit.llama4.forward.weights import Matrix


def logit_blocks(
    setting: Setting, states: States, tokens: slice, n_bytes: int
) -> Iterator[tuple[slice, slice, Floats]]:
    """(tokens, ids, logits): slices of tokens and of the vocabulary, and float32 (tokens, ids).

    The output matrix is read once, some rows at a time, and each time all tokens go by.

    Args:
        tokens: of which logits are wanted, with start and stop.
        n_bytes: of a piece, about.
    """
    name = "token_embd.weight" if setting.hp.tied else "output.weight"
    norm = setting.weights.vector("output_norm.weight")
    step = max(16, n_bytes // (4 * max(setting.hp.hidden_size, setting.blocks.tokens)))
    all_ids = spans(0, setting.hp.vocab_size, step)

    def reading(ids: slice) -> tuple[object, Callable[[], Matrix]]:
        return (name, ids.start), lambda: setting.weights.rows(name, ids.start, ids.stop - ids.start)

    for ids, following in zip(all_ids, [*all_ids[1:], None], strict=True):
        matrix = setting.prefetch.take(*reading(ids))
        if following is not None:
            setting.prefetch.start(*reading(following))
        for part in spans(tokens.start, tokens.stop, setting.blocks.tokens):
            out = np.empty((part.stop - part.start, ids.stop - ids.start), np.float32)
            with setting.team.at_work():
                matrix.product(setting.normed(states, norm, part), out, setting.team)
            yield part, ids, out
