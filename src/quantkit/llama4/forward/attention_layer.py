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
        setting, weights, hp = self._setting, self._weights, self._hp
        first, stop = group[0].row, group[-1].row + group[-1].count
        shape = stop - first, hp.n_kv_heads * hp.head_dim
        k, v = setting.scratch.array("k", *shape), setting.scratch.array("v", *shape)
        names = attention_names(self._layer)
        blocks = spans(first, stop, setting.blocks.tokens)
        for block in blocks:
            x = setting.normed(self._states, weights.norm, block)
            here = slice(block.start - first, block.stop - first)
            q = setting.scratch.array("q", len(x), weights.q.n_outputs)
            products = [(weights.k, k[here]), (weights.v, v[here])]
            if len(blocks) == 1:
                products.append((weights.q, q))
            setting.products(x, products, self._watch(block).inputs(names[:3], x))
            self._position(k[here], block)
        for block in blocks:
            if len(blocks) > 1:
                x = setting.normed(self._states, weights.norm, block)
                q = setting.scratch.array("q", len(x), weights.q.n_outputs)
                setting.products(x, [(weights.q, q)])
            self._position(q, block, self._query_scale(block))
            mixed = setting.scratch.array("mixed", *q.shape)
            for piece in group:
                heads = (array.reshape(len(array), -1, hp.head_dim) for array in (q, k, v, mixed))
                self._attend_piece(piece, block, first, *heads)
            y = setting.scratch.array("y", len(q), weights.output.n_outputs)
            setting.products(mixed, [(weights.output, y)], self._watch(block).inputs(names[3:], mixed))
            setting.add(self._states, block, y)

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

    def _position(self, x: Floats, block: slice, scale: Floats | None = None) -> None:
        """RoPE and norm, where the layer has them, of keys or queries (n, heads * head_dim), and `scale`; in place."""
        hp, setting = self._hp, self._setting

        def position(part: slice) -> None:
            heads = x[part].reshape(part.stop - part.start, -1, hp.head_dim)
            if hp.uses_rope[self._layer]:
                for rows, first in setting.positions(slice(block.start + part.start, block.start + part.stop)):
                    rotate(heads[rows], turns(setting.frequency, first, rows.stop - rows.start))
                if hp.use_qk_norm:
                    rms_norm(heads, None, hp.rms_norm_eps)
            if scale is not None:
                heads *= scale[part]

        setting.team.spread(x, position)

    def _query_scale(self, block: slice) -> Floats:
        """What queries are multiplied with, float32 (n, 1, 1)."""
        scale = np.full((block.stop - block.start, 1, 1), self._hp.head_dim**-0.5, np.float32)
        if self._hp.attn_temperature_tuning and not self._hp.uses_rope[self._layer]:
            for part, position in self._setting.positions(block):
                scale[part, 0, 0] *= temperatures(self._hp, position, part.stop - part.start)
        return scale

    def _watch(self, block: slice) -> Watch:
        return Watch(self._setting.observer, self._layer, np.arange(block.start, block.stop))
