"""How many tokens each expert of each layer has seen, from the counts of an imatrix."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from quantkit.gguf.imatrix import Float64, Imatrix, ImatrixEntry

_EXPERTS = re.compile(r"blk\.(\d+)\..*_exps\.weight")


@dataclass(frozen=True)
class LayerCoverage:
    """One layer of experts; arrays are float64 (experts,).

    Args:
        layer: number of the block.
        tokens: seen by each expert.
        effective: Kish's effective sample size under the router weights, where the file has these; else `tokens`.
        shares: of the layer's tokens (with k experts a token, of its k choices); 0 if it saw none.
    """

    layer: int
    tokens: Float64
    effective: Float64
    shares: Float64


def coverage(imatrix: Imatrix) -> list[LayerCoverage]:
    """The layers that have experts, in order; [] where the file has no counts by expert (a .dat file).

    Gate, up and down see the same tokens. Should their counts differ, the least counts.
    """
    layers: dict[int, list[ImatrixEntry]] = {}
    for name, entry in imatrix.entries.items():
        match = _EXPERTS.fullmatch(name)
        if match and len(entry.counts) == len(entry.sums) > 1:
            layers.setdefault(int(match[1]), []).append(entry)
    found = []
    for layer, entries in sorted(layers.items()):
        size = min(len(entry.counts) for entry in entries)
        tokens = np.min([entry.counts[:size] for entry in entries], axis=0)
        effective = np.min([entry.effective_counts[:size] for entry in entries], axis=0)
        found.append(LayerCoverage(layer, tokens, effective, tokens / max(tokens.sum(), 1.0)))
    return found
