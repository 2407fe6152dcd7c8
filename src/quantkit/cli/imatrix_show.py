"""`quantkit imatrix show`: what an importance matrix has seen."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import click

from quantkit.cli.coverage import coverage_json, show_coverage
from quantkit.cli.help import Command, json_option

if TYPE_CHECKING:
    from quantkit.gguf import Imatrix, ImatrixEntry


@click.command(
    cls=Command,
    examples=(
        "quantkit imatrix show scout.imatrix.gguf",
        "quantkit imatrix show scout.imatrix.gguf --json | jq '.layers[] | {layer, unseen}'",
    ),
)
@click.argument("file", type=click.Path(), help="An importance matrix, GGUF or .dat.")
@json_option
def command(file: str, as_json: bool) -> None:
    """Show what the importance matrix FILE has seen: texts, tensors, and tokens by layer and expert.

    The effective sample size is that of the router weights ((Σw)²/Σw²), where the file has them, and else the tokens.
    What convert makes of few tokens: see `quantkit imatrix export --help`.
    """
    from quantkit.cli import output
    from quantkit.gguf import coverage, read_imatrix

    imatrix = read_imatrix(file)
    layers = coverage(imatrix)
    if as_json:
        output.show_json(report(imatrix) | {"layers": coverage_json(layers)})
        return
    show(imatrix)
    if layers:
        show_coverage(layers)
    else:
        output.note("The file has no counts by expert, so that nothing is known about coverage.")


def report(imatrix: Imatrix) -> dict[str, Any]:
    """All but coverage, as JSON-ready values."""
    return {
        "schema": 1,
        "file": str(imatrix.path),
        "format": "dat" if imatrix.legacy else "gguf",
        "shrunk": imatrix.shrunk,
        "datasets": list(imatrix.datasets),
        "chunk_count": imatrix.chunk_count,
        "chunk_size": imatrix.chunk_size,
        "tensors": [_tensor(name, entry, imatrix) for name, entry in imatrix.entries.items()],
    }


def _tensor(name: str, entry: ImatrixEntry, imatrix: Imatrix) -> dict[str, Any]:
    from quantkit.gguf import shrink

    shrinks = len(entry.counts) > 1 and entry.saw_any and not imatrix.shrunk
    prior = shrink(entry.sums, entry.counts, entry.effective_counts).prior_tokens if shrinks else None
    return {
        "name": name,
        "shape": list(entry.sums.shape),
        "counts": [int(count) for count in entry.counts],
        "has_router_weights": entry.router_sums is not None,
        # JSON has no infinity: null says that the experts are alike, or that nothing is shrunk
        "prior_tokens": prior if prior is not None and math.isfinite(prior) else None,
    }


def show(imatrix: Imatrix) -> None:
    """Print what a file says about itself."""
    from quantkit.cli import output

    chunks = f"{imatrix.chunk_count:,}"
    if imatrix.chunk_size:
        chunks += f" of {imatrix.chunk_size:,} tokens: {imatrix.chunk_count * imatrix.chunk_size:,}"
    unseen = sum(not entry.saw_any for entry in imatrix.entries.values())
    facts: list[tuple[str, object]] = [
        ("file", f"{imatrix.path}" + (" (.dat: means, no counts by expert)" if imatrix.legacy else "")),
        ("texts", ", ".join(imatrix.datasets) or "not named"),
        ("chunks", chunks),
        ("tensors", f"{len(imatrix.entries):,}" + (f", {unseen} of them saw no token" if unseen else "")),
    ]
    if imatrix.shrunk:
        facts.append(("values", "shrunk estimates with pseudo-counts, not sums; merge refuses them"))
    output.facts(facts)
