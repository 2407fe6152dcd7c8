"""`quantkit imatrix export`: an importance matrix for llama-quantize."""

from __future__ import annotations

import click

from quantkit.cli.help import Command, Option, json_option
from quantkit.cli.imatrix import check_new

WHAT = "What to write"


@click.command(
    cls=Command,
    examples=(
        "quantkit imatrix export scout.imatrix.gguf --output for-llama-quantize.gguf --shrunk",
        "quantkit imatrix export scout.imatrix.gguf --output scout.imatrix.dat --format dat",
    ),
)
@click.argument("file", type=click.Path(), help="An importance matrix with raw sums, GGUF.")
@click.option(
    "-o", "--output", "out", type=click.Path(), required=True, cls=Option, group=WHAT, help="The file to write."
)
@click.option(
    "--shrunk",
    is_flag=True,
    cls=Option,
    group=WHAT,
    help="Estimates in place of sums: experts with few tokens are drawn toward the layer's pooled statistics, and "
    "those without any get these, as in convert. The file is marked, and merge refuses it.",
)
@click.option(
    "--format",
    "kind",
    type=click.Choice(["gguf", "dat"]),
    default="gguf",
    cls=Option,
    group=WHAT,
    help="dat is the format of before 2025: means, without counts by expert.",
)
@click.option("--force", is_flag=True, cls=Option, group=WHAT, help="Overwrite OUTPUT if it exists.")
@json_option
def command(file: str, out: str, shrunk: bool, kind: str, force: bool, as_json: bool) -> None:
    """Write the importance matrix FILE for llama-quantize, which reads both formats as they are.

    llama-quantize believes an expert's own statistics whether it saw one token or 100,000, and puts ones where it saw
    none. With --shrunk it gets what `quantkit convert --imatrix FILE` computes: the credibility estimate of Bühlmann
    and Straub, which weighs an expert's own data by its tokens against the scatter between the layer's experts.
    """
    from quantkit.cli import output
    from quantkit.cli.imatrix_show import report, show
    from quantkit.gguf import read_imatrix, write_imatrix

    path = check_new(out, force=force)
    raw = read_imatrix(file, inputs=True)
    imatrix = raw.as_shrunk() if shrunk else raw
    write_imatrix(path, imatrix, legacy=kind == "dat")
    left_out = [name for name, entry in raw.entries.items() if not entry.saw_any]
    if left_out and (shrunk or kind == "dat"):
        more = f" and {len(left_out) - 1} more" if len(left_out) > 1 else ""
        output.note(f"left out, since they saw no token: {left_out[0]}{more}", warning=True)
    written = read_imatrix(path)
    if as_json:
        output.show_json(report(written))
        return
    show(written)
