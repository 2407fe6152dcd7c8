"""The walk: all tokens go through layer 0, then all through layer 1, with a layer's small weights and one expert in
memory, and the next one on its way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from quantkit.errors import UsageError
from quantkit.llama4.forward.attention_layer import AttentionLayer
from quantkit.llama4.forward.blocks import Blocks, spans
from quantkit.llama4.forward.buffers import Scratch
from quantkit.llama4.forward.feed_forward_layer import FeedForwardLayer
from quantkit.llama4.forward.floats import Floats
from quantkit.llama4.forward.head import logit_blocks
from quantkit.llama4.forward.layer_weights import read_attention, read_feed_forward
from quantkit.llama4.forward.memory import estimate
from quantkit.llama4.forward.observer import Observer
from quantkit.llama4.forward.prefetch import Prefetch
from quantkit.llama4.forward.rotation import frequencies
from quantkit.llama4.forward.setting import Setting
from quantkit.llama4.forward.states import FileStates, MemoryStates, States
from quantkit.llama4.forward.team import Team
from quantkit.llama4.forward.weights import Weights


class Stream:
    """The text model over sequences of equal length, a layer at a time.

    Args:
        weights: from `open_weights`; not closed by the stream. Several streams may share them.
        tokens: whole numbers (sequences, context); sequences do not see each other.
        observer: is told of inputs, routing and layers.
        max_ram_bytes: of the whole process, about (see `estimate`): where hidden states do not fit in as well, they are
            kept in a file, which changes no bit.
        folder: where that file lies; None for the system's folder of temporary files.
        blocks: how much is computed at a time.
        threads: that compute; 0 takes all processors. Results do not depend on it. BLAS has one thread meanwhile.
        first_layer: where to begin, with hidden states from `saved`, which reads rows of them, float32 (n, hidden), as
            `states.read` gave them when `layer` was `first_layer`. The results are those of one walk.

    Attributes:
        layer: the next one to compute.
        states: the hidden states (sequences * context, hidden) that go into it.
        memory: what all this takes.

    Raises:
        UsageError: tokens that are none, or of another shape.
        PlanRefusedError: more memory is needed than is allowed.
        CheckpointError, NonFiniteError: from reading weights.
    """

    def __init__(
        self,
        weights: Weights,
        tokens: Any,
        *,
        observer: Observer | None = None,
        max_ram_bytes: int | None = None,
        folder: Path | None = None,
        blocks: Blocks | None = None,
        threads: int = 0,
        first_layer: int = 0,
        saved: Callable[[slice], Floats] | None = None,
    ) -> None:
        if not 0 <= first_layer <= weights.hp.n_layers or (saved is None) != (first_layer == 0):
            raise UsageError(
                f"a stream cannot begin at layer {first_layer} {'without' if saved is None else 'with'} states"
            )
        self.tokens = _token_ids(tokens, weights.hp.vocab_size)
        self._observer = observer or Observer()
        blocks, team = blocks or Blocks(), Team(threads)
        n_sequences, context = self.tokens.shape
        self.memory = estimate(weights, n_sequences, context, blocks, team.n_threads)
        in_memory = self.memory.keeps_states(max_ram_bytes)

        def new_states() -> States:
            shape = (self.tokens.size, weights.hp.hidden_size)
            return MemoryStates(*shape) if in_memory else FileStates(*shape, folder)

        self._setting = Setting(
            weights=weights,
            n_sequences=n_sequences,
            context=context,
            frequency=frequencies(weights.hp, weights.rope_divisors()),
            observer=self._observer,
            prefetch=Prefetch(),
            blocks=blocks,
            new_states=new_states,
            scratch=Scratch(),
            team=team,
        )
        self.layer = first_layer
        self.states = new_states()
        if saved is None:
            self._embed()
        else:
            for part in spans(0, self.tokens.size, blocks.tokens):
                self.states.write(part, saved(part))

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the reading thread and let go of the hidden states."""
        self._setting.prefetch.close()
        self._setting.team.close()
        self.states.close()

    def run(self) -> None:
        """All layers that are left."""
        while self.layer < self._setting.hp.n_layers:
            self.advance()

    def advance(self) -> None:
        """One layer. After an error the hidden states are those of no layer."""
        layer, setting = self.layer, self._setting
        if layer >= setting.hp.n_layers:
            raise UsageError(f"all {layer} layers are computed")
        with setting.team.at_work():
            attention = setting.take(layer, read_attention)
            setting.start(layer, read_feed_forward)
            AttentionLayer(setting, layer, attention, self.states).run()
            setting.weights.give_back(attention.matrices)
            self._observer.attention(layer, self.states)
            feed_forward = setting.take(layer, read_feed_forward)
            FeedForwardLayer(setting, layer, feed_forward, self.states).run()
            setting.weights.give_back(feed_forward.unit.matrices)
        self.layer += 1
        self._observer.layer(layer, self.states)

    def logit_blocks(
        self, first: int = 0, stop: int | None = None, *, n_bytes: int = 30 << 20
    ) -> Iterator[tuple[slice, slice, Floats]]:
        """Logits of tokens `first` to `stop`, after the last layer, in pieces that are never together in memory.

        The output matrix is read once, some rows at a time, and each time all tokens go by: what needs a whole row of
        logits, as softmax does, is to be kept as a running maximum and sum.

        Args:
            n_bytes: of a piece, about.

        Yields:
            (tokens, ids, logits): slices of tokens and of the vocabulary, and float32 (tokens, ids).
        """
        if self.layer < self._setting.hp.n_layers:
            raise UsageError(f"layer {self.layer} of {self._setting.hp.n_layers} comes first")
        tokens = slice(first, self.tokens.size if stop is None else stop)
        yield from logit_blocks(self._setting, self.states, tokens, n_bytes)

    def logits(self, first: int = 0, stop: int | None = None) -> Floats:
        """All logits (n, vocabulary) of tokens `first` to `stop`, after the last layer: 0.8 MB a token for Llama 4."""
        stop = self.tokens.size if stop is None else stop
        found = np.empty((stop - first, self._setting.hp.vocab_size), np.float32)
        for part, ids, logits in self.logit_blocks(first, stop):
            found[part.start - first : part.stop - first, ids] = logits
        return found

    def _embed(self) -> None:
        flat, weights = self.tokens.reshape(-1), self._setting.weights
        for part in spans(0, flat.size, self._setting.blocks.tokens):
            ids, places = np.unique(flat[part], return_inverse=True)
            found = np.empty((len(ids), weights.hp.hidden_size), np.float32)
            ends = [0, *(np.flatnonzero(np.diff(ids) != 1) + 1).tolist(), len(ids)]
            for start, end in pairwise(ends):
                rows = weights.rows("token_embd.weight", int(ids[start]), end - start)
                found[start:end] = rows.tensor.dequantize(threads=self._setting.team.n_threads)
            self.states.write(part, found[places.reshape(-1)])


def _token_ids(tokens: Any, vocab_size: int) -> npt.NDArray[np.int64]:
    array = np.asarray(tokens)
    if array.ndim != 2 or not array.size or array.dtype.kind not in "iu":
        raise UsageError(f"tokens are {array.dtype} of shape {array.shape}, not whole numbers (sequences, context)")
    if array.min() < 0 or array.max() >= vocab_size:
        raise UsageError(f"tokens from {array.min()} to {array.max()} are not all in a vocabulary of {vocab_size}")
    return array.astype(np.int64)
