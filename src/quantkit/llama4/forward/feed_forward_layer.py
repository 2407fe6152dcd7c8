"""The second half of a layer: hidden states plus a dense unit, or the shared and the routed experts."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from quantkit.llama4.forward.blocks import spans
from quantkit.llama4.forward.feed_forward import GatedUnit
from quantkit.llama4.forward.floats import Floats, Ids, Rows
from quantkit.llama4.forward.layer_weights import (
    FeedForwardWeights,
    read_attention,
    read_expert,
    router_name,
    unit_names,
)
from quantkit.llama4.forward.observer import Outputs, Routing
from quantkit.llama4.forward.routing import choose, sigmoid
from quantkit.llama4.forward.setting import Setting, Watch
from quantkit.llama4.forward.states import States


class FeedForwardLayer:
    """Adds to the hidden states, and begins to read the next layer's attention."""

    def __init__(self, setting: Setting, layer: int, weights: FeedForwardWeights, states: States) -> None:
        self._setting, self._layer, self._weights, self._states = setting, layer, weights, states

    def run(self) -> None:
        if self._weights.router is None:
            self._dense()
            return
        experts, scales = self._route(self._weights.router)
        n_used = experts.shape[1]
        order = np.argsort(experts.reshape(-1), kind="stable")
        tokens, ids, scale = order // n_used, experts.reshape(-1)[order], scales.reshape(-1)[order]
        if n_used == 1:
            self._one_expert_each(tokens, ids, scale)
        else:
            self._several_experts_each(tokens, ids, scale)

    def _dense(self) -> None:
        self._setting.start(self._layer + 1, read_attention)
        names = unit_names(self._layer, "")
        for block in self._blocks(self._setting.n_tokens):
            x, watch = self._normed(block), self._watch(np.arange(block.start, block.stop))
            self._setting.add(self._states, block, self._unit(self._weights.unit, x, names, watch, "y"))

    def _route(self, router: Floats) -> tuple[Ids, Floats]:
        """Experts and router weights (n, experts used) of all tokens."""
        n, n_used = self._setting.n_tokens, self._setting.hp.n_experts_used
        experts, scales = np.empty((n, n_used), np.int64), np.empty((n, n_used), np.float32)
        for block in self._blocks(n):
            logits: Floats = self._normed(block) @ router.T
            chosen = choose(logits, n_used)
            experts[block] = chosen
            scales[block] = sigmoid(np.take_along_axis(logits, chosen, axis=1))
            tokens = np.arange(block.start, block.stop)
            self._setting.observer.routing(Routing(self._layer, tokens, logits, chosen, scales[block]))
        return experts, scales

    def _one_expert_each(self, tokens: Ids, ids: Ids, scale: Floats) -> None:
        """Tokens by expert, each finished in one go: shared and routed together, so that states change in place."""
        experts = _Experts(self._setting, self._layer, ids)
        for block in self._blocks(len(tokens)):
            rows = tokens[block]
            x = self._normed(rows)
            y = self._shared(x, rows)
            for part, expert, unit in experts.runs(block):
                here = slice(part.start - block.start, part.stop - block.start)
                routed = self._routed(unit, expert, x[here], rows[here], scale[part])
                self._setting.add(self._states, rows[here], y[here], routed)
        experts.done()

    def _several_experts_each(self, tokens: Ids, ids: Ids, scale: Floats) -> None:
        """Routed outputs are added up beside the states, which the experts still to come read."""
        experts = _Experts(self._setting, self._layer, ids)
        total = self._setting.new_states()
        for block in self._blocks(len(tokens)):
            for part, expert, unit in experts.runs(block):
                rows = tokens[part]
                self._setting.add(total, rows, self._routed(unit, expert, self._normed(rows), rows, scale[part]))
        experts.done()
        for block in self._blocks(self._setting.n_tokens):
            y = self._shared(self._normed(block), np.arange(block.start, block.stop))
            self._setting.add(self._states, block, y, total.read(block))
        total.close()

    def _shared(self, x: Floats, tokens: Ids) -> Floats:
        names = [router_name(self._layer), *unit_names(self._layer, "_shexp")]
        return self._unit(self._weights.unit, x, names, self._watch(tokens), "y")

    def _routed(self, unit: GatedUnit, expert: int, x: Floats, tokens: Ids, scale: Floats) -> Floats:
        # before gate and up: silu makes it another number than after them
        scaled = self._setting.scratch.array("routed x", *x.shape)
        self._setting.team.spread(x, lambda part: np.multiply(x[part], scale[part, None], out=scaled[part]))
        watch = self._watch(tokens, expert, scale)
        return self._unit(unit, scaled, unit_names(self._layer, "_exps"), watch, "routed y")

    def _unit(self, unit: GatedUnit, x: Floats, names: list[str], watch: Watch, out: str) -> Floats:
        """The unit of x, in the scratch array `out`; `names` of what multiplies x, and last of its inner values."""
        scratch, n = self._setting.scratch, len(x)
        inner, up = (scratch.array(name, n, unit.gate.n_outputs) for name in ("inner", "up"))
        self._setting.team.run([watch.inputs(names[:-1], x), *unit.inner_tasks(x, inner, up)])
        y = scratch.array(out, n, unit.down.n_outputs)
        self._setting.products(inner, [(unit.down, y)], watch.inputs(names[-1:], inner))
        self._setting.observer.outputs(Outputs(self._layer, y, watch.tokens, watch.expert))
        return y

    def _normed(self, rows: Rows) -> Floats:
        return self._setting.normed(self._states, self._weights.norm, rows)

    def _blocks(self, n: int) -> list[slice]:
        return spans(0, n, self._setting.blocks.tokens)

    def _watch(self, tokens: Ids, expert: int | None = None, weights: Floats | None = None) -> Watch:
        return Watch(self._setting.observer, self._layer, tokens, expert, weights)


class _Experts:
    """The experts of ascending `ids` one after the other; each is read once, while the one before it computes."""

    def __init__(self, setting: Setting, layer: int, ids: Ids) -> None:
        self._setting, self._layer, self._ids = setting, layer, ids
        present = [int(expert) for expert in np.unique(ids)]
        self._following = dict(zip(present, [*present[1:], None], strict=True))
        self._current: tuple[int, GatedUnit] | None = None
        self._start(present[0])

    def runs(self, block: slice) -> Iterator[tuple[slice, int, GatedUnit]]:
        """(places in `ids`, expert, its weights) within a block; blocks come in ascending order."""
        start = block.start
        while start < block.stop:
            expert = int(self._ids[start])
            stop = min(block.stop, int(np.searchsorted(self._ids, expert, side="right")))
            yield slice(start, stop), expert, self._unit(expert)
            start = stop

    def done(self) -> None:
        """No expert is looked at any more."""
        if self._current is not None:
            self._setting.weights.give_back(self._current[1].matrices)
            self._current = None

    def _unit(self, expert: int) -> GatedUnit:
        if self._current is None or self._current[0] != expert:
            self.done()  # before the next but one is begun, so that there are never three
            self._current = (expert, self._setting.prefetch.take(*self._reading(expert)))
            following = self._following[expert]
            if following is None:
                self._setting.start(self._layer + 1, read_attention)
            else:
                self._start(following)
        return self._current[1]

    def _start(self, expert: int) -> None:
        self._setting.prefetch.start(*self._reading(expert))

    def _reading(self, expert: int) -> tuple[object, Callable[[], GatedUnit]]:
        return (self._layer, expert), lambda: read_expert(self._setting.weights, self._layer, expert)
