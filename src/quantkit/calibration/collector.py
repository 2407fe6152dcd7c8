"""Sums over the inputs of every matrix, each expert's apart, while a stream computes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from quantkit.errors import NonFiniteError
from quantkit.gguf import Imatrix, ImatrixEntry
from quantkit.kernels import Moments
from quantkit.llama4 import Hyperparameters
from quantkit.llama4.forward import Inputs, Observer

Doubles = npt.NDArray[np.float64]


class _Sums:
    """Of matrices that take the same inputs: counts, Σx, Σx², and of experts Σw and Σw², all in float64."""

    def __init__(self, moments: Moments, router: Doubles | None) -> None:
        self.moments, self.router = moments, router

    def add(self, seen: Inputs) -> None:
        self.moments.add(seen.x, seen.expert or 0)
        if self.router is not None and seen.weights is not None:
            w = seen.weights.astype(np.float64)
            self.router[:, seen.expert or 0] += w.sum(), np.square(w).sum()

    def entry(self) -> ImatrixEntry:
        found = self.moments
        first, second = (None, None) if self.router is None else self.router
        return ImatrixEntry(found.squares, found.counts.astype(np.float64), found.sums, first, second)


class Collector(Observer):
    """What llama-imatrix collects, for any number of streams over the same model.

    An entry for each matrix of each layer that has been computed, the router included, and none for token embedding and
    output. The inputs of gate and up experts are already multiplied by the router's weight, as the runtime does it.
    Sums are in float64 and added in the stream's order, which does not depend on threads.
    """

    def __init__(self, hp: Hyperparameters) -> None:
        self._n_experts = hp.n_experts
        self._sums: dict[tuple[str, ...], _Sums] = {}

    def inputs(self, seen: Inputs) -> None:
        sums = self._sums.get(seen.tensors)
        if sums is None:
            routed = seen.expert is not None
            n_experts = self._n_experts if routed else 1
            sums = _Sums(Moments(n_experts, seen.x.shape[1]), np.zeros((2, n_experts)) if routed else None)
            self._sums[seen.tensors] = sums
        try:
            sums.add(seen)
        except NonFiniteError as error:
            expert = "" if seen.expert is None else f", expert {seen.expert}"
            error.what = f"the input of {seen.tensors[0]}{expert}: {error.what}"
            raise

    def layer_arrays(self, layer: int) -> dict[str, npt.NDArray[Any]]:
        """The sums of one layer as arrays, without a copy, under names that `restore` knows."""
        prefix, found = f"blk.{layer}.", {}
        for names, sums in self._sums.items():
            if names[0].startswith(prefix):
                router = {} if sums.router is None else {"router": sums.router}
                for name, array in (sums.moments.arrays() | router).items():
                    found[" ".join((*names, name))] = array
        return found

    def restore(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take over what `layer_arrays` gave; layers in ascending order, so that the file written has its order."""
        by_names: dict[tuple[str, ...], dict[str, npt.NDArray[Any]]] = {}
        for key, array in arrays.items():
            *names, name = key.split(" ")
            by_names.setdefault(tuple(names), {})[name] = array
        for tensors, mine in by_names.items():
            router = mine.pop("router", None)
            self._sums[tensors] = _Sums(Moments.from_arrays(mine), router)

    def imatrix(self, datasets: tuple[str, ...], n_chunks: int, context: int) -> Imatrix:
        """What has been seen until now. The arrays are the collector's own: they change when more is added."""
        entries = {}
        for names, sums in self._sums.items():
            entry = sums.entry()
            entries.update(dict.fromkeys(names, entry))
        return Imatrix(entries, datasets, n_chunks, context)


def sums_bytes(hp: Hyperparameters) -> int:
    """What the sums of all layers take, Σx and Σx² in float64."""
    hidden, mixed = hp.hidden_size, hp.n_heads * hp.head_dim
    n_moe = len(hp.moe_layers)
    held = hp.n_layers * (2 * hidden + mixed)
    held += n_moe * (hp.expert_width + hp.n_experts * (hidden + hp.expert_width))
    held += (hp.n_layers - n_moe) * hp.dense_width
    return 16 * held


def file_bytes(hp: Hyperparameters) -> int:
    """What the file takes, which has float32 for each name."""
    hidden, mixed = hp.hidden_size, hp.n_heads * hp.head_dim
    n_moe = len(hp.moe_layers)
    written = hp.n_layers * (3 * hidden + mixed + 3 * hidden)
    written += n_moe * (hp.expert_width + hp.n_experts * (2 * hidden + hp.expert_width))
    written += (hp.n_layers - n_moe) * hp.dense_width
    return 8 * written


def statistics_bytes(hp: Hyperparameters) -> int:
    """Memory that the sums of all layers take, and writing them."""
    return sums_bytes(hp) + file_bytes(hp)
