"""The first half of a layer: hidden states plus attention."""

from __future__ import annotations

import numpy as np

from quantkit.llama4.forward.attention import attend
from quantkit.llama4.forward.blocks import Piece, groups, pieces, spans
from quantkit.llama4.forward.floats import Floats
from quantkit.llama4.forward.layer_weights import AttentionWeights, attention_names
from quantkit.llama4.forward.norm import rms_norm
from quantkit.llama4.forward.rotation import rotate, temperatures, turns
from quantkit.llama4.forward.setting import Setting, Watch
from quantkit.llama4.forward.states import States


class AttentionLayer:
    """Adds attention to the hidden states, some sequences at a time, or one chunk or sequence that is longer."""

    def __init__(self, setting: Setting, layer: int, weights: AttentionWeights, states: States) -> None:
        self._setting, self._layer, self._weights, self._states = setting, layer, weights, states
        self._hp = setting.hp

    def run(self) -> None:
        setting = self._setting
        chunk = self._hp.attention_chunk_size if self._hp.is_chunked[self._layer] else None
        for group in groups(pieces(setting.n_sequences, setting.context, chunk), setting.blocks.tokens):
            self._attend_group(group)

    def _attend_group(self, group: list[Piece]) -> None:
        """Keys and values of all its tokens first, then queries block by block."""
        setting, weights = self._setting, self._weights
        first, stop = group[0].row, group[-1].row + group[-1].count
        shape = (stop - first, self._hp.n_kv_heads, self._hp.head_dim)
        k, v = setting.scratch.array("k", *shape), setting.scratch.array("v", *shape)
        names = attention_names(self._layer)
        blocks = spans(first, stop, setting.blocks.tokens)
        for block in blocks:
            x = setting.normed(self._states, weights.norm, block)
            watch = self._watch(block).inputs(names[:3], x)
            keys, values = setting.products(x, {"q": weights.k, "y": weights.v}, watch)
            here = slice(block.start - first, block.stop - first)
            k[here] = self._positioned(keys, block)
            v[here] = values.reshape(-1, *shape[1:])
        for block in blocks:
            x = setting.normed(self._states, weights.norm, block)
            (queries,) = setting.products(x, {"q": weights.q})
            q = self._positioned(queries, block)
            q *= self._query_scale(block)
            mixed = setting.scratch.array("mixed", *q.shape)
            for piece in group:
                self._attend_piece(piece, block, first, q, k, v, mixed)
            mixed = mixed.reshape(len(q), -1)
            (y,) = setting.products(mixed, {"y": weights.output}, self._watch(block).inputs(names[3:], mixed))
            self._states.add(block, y)

    def _attend_piece(
        self, piece: Piece, block: slice, first: int, q: Floats, k: Floats, v: Floats, mixed: Floats
    ) -> None:
        """The queries of `piece` that lie in `block`; k and v begin at row `first`, q and mixed at the block's."""
        start, stop = max(piece.row, block.start), min(piece.row + piece.count, block.stop)
        if start >= stop:
            return
        mine = slice(start - block.start, stop - block.start)
        keys = slice(piece.row - first, stop - first)
        sizes = self._setting.blocks
        tasks = attend(q[mine], k[keys], v[keys], start - piece.row, mixed[mine], sizes.queries, sizes.keys)
        self._setting.team.run(tasks)

    def _positioned(self, x: Floats, block: slice) -> Floats:
        """Queries or keys (n, heads * head_dim) with RoPE and norm where the layer has them: (n, heads, head_dim)."""
        heads = x.reshape(len(x), -1, self._hp.head_dim)
        if self._hp.uses_rope[self._layer]:
            for part, position in self._setting.positions(block):
                rotate(heads[part], turns(self._setting.frequency, position, part.stop - part.start))
            if self._hp.use_qk_norm:
                rms_norm(heads, None, self._hp.rms_norm_eps, self._setting.team)
        return heads

    def _query_scale(self, block: slice) -> Floats:
        """What queries are multiplied with, float32 (n, 1, 1)."""
        scale = np.full((block.stop - block.start, 1, 1), self._hp.head_dim**-0.5, np.float32)
        if self._hp.attn_temperature_tuning and not self._hp.uses_rope[self._layer]:
            for part, position in self._setting.positions(block):
                scale[part, 0, 0] *= temperatures(self._hp, position, part.stop - part.start)
        return scale

    def _watch(self, block: slice) -> Watch:
        return Watch(self._setting.observer, self._layer, np.arange(block.start, block.stop))
