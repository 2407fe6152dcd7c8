"""What is noted of each stream while it computes a layer, and how the reference's states come into the candidates'.

Behind the text's chunks stand copies of a few of them, twice. In the reference they are only more of the same. In each
candidate the first copies start every layer from the reference's states, and so leave it with this layer's own error;
the second copies start each half of it from them, so that attention, and each expert, has its error by itself. Copies
stand in the reference too so that products have the same shapes, and a candidate of the same weights the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quantkit.drift.routing import LayerRouting, RouterSums
from quantkit.drift.states import StateError, StateErrorSums
from quantkit.llama4 import Hyperparameters
from quantkit.llama4.forward import Inputs, Observer, Outputs, Routing
from quantkit.llama4.forward.floats import Floats, Ids
from quantkit.llama4.forward.states import States

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Arrangement:
    """Which tokens of a stream are what.

    Args:
        n: tokens of the text.
        context: of a chunk. A chunk's first token is BOS everywhere and so left out of all figures.
        chosen: chunks of which there are copies, ascending.
    """

    n: int
    context: int
    chosen: tuple[int, ...]

    @property
    def whole(self) -> slice:
        """Copies that go through a whole layer."""
        return slice(self.n, self.n + len(self.chosen) * self.context)

    @property
    def halves(self) -> slice:
        """Copies that go through each half of a layer."""
        return slice(self.whole.stop, self.whole.stop + len(self.chosen) * self.context)

    def tokens(self, chunks: Ids) -> Ids:
        """The chunks (n / context, context) with their copies."""
        copies = chunks[list(self.chosen)]
        return np.concatenate([chunks, copies, copies])

    def in_text(self, tokens: Ids) -> Mask:
        """Those of the text that count."""
        mask: Mask = (tokens < self.n) & (tokens % self.context > 0)
        return mask

    def in_halves(self, tokens: Ids) -> Mask:
        mask: Mask = (tokens >= self.halves.start) & (tokens % self.context > 0)
        return mask


@dataclass(frozen=True)
class ExpertDrift:
    """What an expert adds to hidden states, on the reference's inputs.

    Args:
        expert: counted from 0.
        load: share of all tokens that the reference sends there.
        error: of the tokens in the copies that both send there; None where there are none.
    """

    expert: int
    load: float
    error: StateError | None


@dataclass(frozen=True)
class LayerDrift:
    """Hidden states after a layer.

    Args:
        layer: counted from 0.
        error: of the candidate's own states, with what it inherits from the layers before.
        local: of the states that the candidate's layer leaves when it gets the reference's.
        attention, feed_forward: of those that one half leaves when it gets the reference's.
        experts: empty in a dense layer.
        expert_error: the mean of the experts' relative errors, weighted by load; None where no copy has any.
    """

    layer: int
    error: StateError
    local: StateError | None
    attention: StateError | None
    feed_forward: StateError | None
    experts: tuple[ExpertDrift, ...]
    expert_error: float | None


class ReferenceWatch(Observer):
    """Keeps of the layer in work what candidates are compared with."""

    def __init__(self, hp: Hyperparameters, arrangement: Arrangement) -> None:
        self._n_experts, self._arrangement = hp.n_experts, arrangement
        self.logits = np.empty((arrangement.n, hp.n_experts), np.float32)
        self.middle = np.empty((arrangement.halves.stop - arrangement.halves.start, hp.hidden_size), np.float32)
        self.outputs_by_expert: dict[int, list[tuple[Ids, Floats]]] = {}
        self.local: list[RouterSums] = []
        self._router, self._routers = "", list[Floats]()

    def begin(self, router: str, routers: list[Floats]) -> None:
        """Before each layer.

        Args:
            router: its name.
            routers: float32 (experts, hidden): the reference's, and each candidate's; none for a dense layer.
        """
        self.outputs_by_expert.clear()
        self._router, self._routers = router, routers
        self.local = [RouterSums(self._n_experts) for _ in routers[1:]]

    def inputs(self, seen: Inputs) -> None:
        if not self._routers or self._router not in seen.tensors:
            return
        mine = self._arrangement.in_text(seen.tokens)
        if not mine.any():
            return
        # the reference's logits again, since the same product has the same rounding
        reference, *others = (seen.x @ router.T for router in self._routers)
        for sums, logits in zip(self.local, others, strict=True):
            sums.add(reference[mine], logits[mine])

    def routing(self, seen: Routing) -> None:
        mine = seen.tokens < self._arrangement.n
        self.logits[seen.tokens[mine]] = seen.logits[mine]

    def attention(self, layer: int, states: States) -> None:
        if len(self.middle):
            states.read(self._arrangement.halves, out=self.middle)

    def outputs(self, seen: Outputs) -> None:
        if seen.expert is None:
            return
        mine = self._arrangement.in_halves(seen.tokens)
        if mine.any():
            kept = seen.tokens[mine], seen.y[mine]
            self.outputs_by_expert.setdefault(seen.expert, []).append(kept)


class CandidateWatch(Observer):
    """Compares the layer in work with the reference's, which is one layer ahead."""

    def __init__(self, hp: Hyperparameters, arrangement: Arrangement, reference: ReferenceWatch) -> None:
        self._n_experts, self._arrangement, self._reference = hp.n_experts, arrangement, reference
        self.begin()

    def begin(self) -> None:
        """Before each layer."""
        self.router = RouterSums(self._n_experts)
        self.attention_error = StateErrorSums()
        self.experts = [StateErrorSums() for _ in range(self._n_experts)]

    def routing(self, seen: Routing) -> None:
        mine = self._arrangement.in_text(seen.tokens)
        if mine.any():
            self.router.add(self._reference.logits[seen.tokens[mine]], seen.logits[mine])

    def attention(self, layer: int, states: States) -> None:
        rows, wanted = self._arrangement.halves, self._reference.middle
        if not len(wanted):
            return
        counted = self._arrangement.in_halves(np.arange(rows.start, rows.stop))
        self.attention_error.add(wanted[counted], states.read(rows)[counted])
        states.write(rows, wanted)

    def outputs(self, seen: Outputs) -> None:
        if seen.expert is None or seen.expert not in self._reference.outputs_by_expert:
            return
        for tokens, y in self._reference.outputs_by_expert[seen.expert]:
            _, theirs, mine = np.intersect1d(tokens, seen.tokens, assume_unique=True, return_indices=True)
            self.experts[seen.expert].add(y[theirs], seen.y[mine])

    def layer_routing(self, layer: int, local: RouterSums) -> LayerRouting:
        return LayerRouting(layer, local.reference_load, local.figures(), self.router.figures())

    def expert_drifts(self, load: Sequence[float]) -> tuple[tuple[ExpertDrift, ...], float | None]:
        """Of each expert, and the mean weighted by load."""
        drifts = tuple(
            ExpertDrift(expert, share, sums.figures())
            for expert, (share, sums) in enumerate(zip(load, self.experts, strict=True))
        )
        known = [(one.load, one.error.relative_error) for one in drifts if one.error is not None and one.load > 0]
        total = sum(weight for weight, _ in known)
        return drifts, sum(weight * error for weight, error in known) / total if known else None
