"""Coverage of experts as JSON, as a heat map and as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quantkit.gguf import LayerCoverage


def coverage_json(layers: Sequence[LayerCoverage]) -> list[dict[str, Any]]:
    """Each layer's tokens, effective sample sizes and shares by expert, as JSON-ready values."""
    return [
        {
            "layer": layer.layer,
            "unseen": int((layer.tokens == 0).sum()),
            "tokens": [int(count) for count in layer.tokens],
            "effective": layer.effective.tolist(),
            "shares": layer.shares.tolist(),
        }
        for layer in layers
    ]


def show_coverage(layers: Sequence[LayerCoverage]) -> None:
    """Print a heat map of tokens, layer by expert, and a table with a line a layer."""
    import numpy as np

    from quantkit.cli import output

    output.heat_map(
        [(f"layer {layer.layer}", layer.tokens.tolist()) for layer in layers],
        title="Tokens by layer and expert",
        legend="0: none, 1: 1 to 9, 2: 10 to 99, 3: 100 to 999 and so on; the first row counts experts",
    )
    output.table(
        ("layer", "experts", "unseen", "least", "median", "most", "least effective", "largest share"),
        [
            (
                layer.layer,
                len(layer.tokens),
                int((layer.tokens == 0).sum()),
                f"{int(layer.tokens.min()):,}",
                f"{int(np.median(layer.tokens)):,}",
                f"{int(layer.tokens.max()):,}",
                f"{layer.effective.min():,.0f}",
                f"{100 * layer.shares.max():.1f} %",
            )
            for layer in layers
        ],
        title="Tokens by layer",
        right=("layer", "experts", "unseen", "least", "median", "most", "least effective", "largest share"),
    )
