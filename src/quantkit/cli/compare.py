"""`quantkit compare`: two quantized files against each other."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from quantkit.cli.drift import ARGUMENTS, DriftCommand, step
from quantkit.cli.help import Option, json_option
from quantkit.cli.units import ByteSize, TokenCount

if TYPE_CHECKING:
    from quantkit.drift.comparison import Comparison

TEXT = "Text"
WORST = 20  # tensors that are shown


@click.command(
    cls=DriftCommand,
    examples=(
        "quantkit compare a.gguf b.gguf --reference Llama-4-Scout-17B-16E-Instruct --text prose.txt",
        "quantkit compare a.gguf b.gguf --reference scout-bf16.gguf --json | jq '.tensors[0]'",
    ),
)
@click.argument("first", type=click.Path(), metavar="A", help="A GGUF of the model.")
@click.argument("second", type=click.Path(), metavar="B", help="Another.")
@click.option(
    "--reference",
    type=click.Path(),
    required=True,
    cls=Option,
    group="What they are measured by",
    metavar="REFERENCE",
    help="Checkpoint folder, or GGUF of f32, f16 or bf16.",
)
@click.option(
    "--text",
    type=click.Path(),
    multiple=True,
    cls=Option,
    group=TEXT,
    metavar="FILE",
    help="As for drift. Without it, weights alone are compared.",
)
@click.option("--context", type=TokenCount(), cls=Option, group=TEXT, metavar="N", help="Tokens of a chunk; 512.")
@click.option(
    "--tokens", type=TokenCount(), cls=Option, group=TEXT, metavar="N", help="Tokens to read; without it, all."
)
@click.option(
    "--score", type=click.Choice(["all", "second-half"]), cls=Option, group=TEXT, help="Which tokens of a chunk count."
)
@click.option(
    "--imatrix",
    type=click.Path(dir_okay=False),
    cls=Option,
    group="What they are measured by",
    metavar="FILE",
    help="Weight the errors of weights by this importance matrix as well.",
)
@click.option(
    "--max-ram",
    "max_ram_bytes",
    type=ByteSize(),
    cls=Option,
    metavar="SIZE",
    help="Memory to take, about, as for drift.",
)
@click.option(
    "--threads", type=click.IntRange(min=0), default=0, cls=Option, metavar="N", help="0 is one per processor."
)
@json_option
@click.pass_context
def command(ctx: click.Context, /, first: str, second: str, reference: str, as_json: bool, **options: Any) -> None:
    """Hold A and B against each other: which tensors differ, which layer (or embedding, or output) loses the most, and
    whether it shows.

    Both run beside REFERENCE over the same tokens, and every figure is of the same tokens in both.
    """
    from quantkit.cli import output
    from quantkit.drift.comparison import compare

    with output.progress() as report:
        found = compare(first, second, reference, progress=lambda one: report(step(one, 2)), **options)
    found = replace(found, drift=replace(found.drift, command=ctx.meta[ARGUMENTS]))
    if as_json:
        output.show_json(found.to_json())
    else:
        _show(found)


def _show(found: Comparison) -> None:
    from quantkit.cli import drift_summary, output

    drift_summary.show_output(found.drift)
    layers = [
        (one.name, *(f"{error:.3%}" for error in one.relative_errors), f"{one.gap:+.2e}", f"{one.share:.0%}")
        for one in found.layers
    ]
    output.table(
        ("", "A", "B", "B² - A²", "share of the gap"), layers, title="What each errs by itself",
        right=("A", "B", "B² - A²", "share of the gap"),
    )  # fmt: skip
    rows = [
        (
            one.name,
            *one.types,
            *(f"{error:.3%}" for error in one.relative_errors),
            f"{one.bytes[1] - one.bytes[0]:+,}",
            {"first": "A", "second": "B", None: "neither"}[one.better],
        )
        for one in found.tensors[:WORST]
    ]
    columns = ("tensor", "A", "B", "error of A", "of B", "bytes B - A", "nearer")
    if rows:
        title = f"Tensors that differ: {len(found.tensors)}, and {found.same} are the same bytes"
        output.table(columns, rows, title=title, right=columns[3:6])
    if len(found.tensors) > WORST:
        output.line(f"and {len(found.tensors) - WORST} more, which --json lists")
    output.line(f"{found.statement}.")
