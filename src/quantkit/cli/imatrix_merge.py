"""`quantkit imatrix merge`: one importance matrix from several."""

from __future__ import annotations

from pathlib import Path

import click

from quantkit.cli.coverage import coverage_json, show_coverage
from quantkit.cli.help import Command, Option, json_option
from quantkit.cli.imatrix import check_new
from quantkit.errors import UsageError

READ, WHAT = "What to read", "What to write"


@click.command(
    cls=Command,
    examples=(
        "quantkit imatrix merge prose.gguf code.gguf --output scout.imatrix.gguf",
        "quantkit imatrix merge scout.imatrix.gguf more.gguf -o scout.imatrix.gguf --force --json",
    ),
)
@click.argument("files", type=click.Path(), nargs=-1, required=True, help="Importance matrices of one model.")
@click.option(
    "-o", "--output", "out", type=click.Path(), required=True, cls=Option, group=WHAT, help="The file to write."
)
@click.option(
    "--chunk-size",
    type=click.IntRange(min=1),
    cls=Option,
    group=READ,
    metavar="N",
    help="Tokens of a chunk of .dat files, which do not say so; 512 if not given.",
)
@click.option("--force", is_flag=True, cls=Option, group=WHAT, help="Overwrite OUTPUT if it exists.")
@json_option
def command(files: tuple[str, ...], out: str, chunk_size: int | None, force: bool, as_json: bool) -> None:
    """Add up FILES, importance matrices of one model over different texts, as if one run had read all of them.

    Sums, tokens, chunks and names of texts are added up. Refused are files of other tensors or shapes, .dat files with
    experts, of which they have no counts, and what `export --shrunk` wrote, which holds estimates in place of sums.
    """
    from quantkit.cli import output
    from quantkit.cli.imatrix_show import report, show
    from quantkit.gguf import coverage, merge_imatrix, read_imatrix, write_imatrix

    path = check_new(out, force=force)
    real = [Path(name).resolve() for name in files]
    twice = next((name for name, place in zip(files, real, strict=True) if real.count(place) > 1), None)
    if twice is not None:
        raise UsageError(f"{twice} is given twice, and would count twice")
    read = [read_imatrix(name, inputs=True) for name in files]
    if chunk_size is not None and not any(one.legacy for one in read):
        raise UsageError("--chunk-size is for .dat files, and there is none", hint="Leave it out.")
    write_imatrix(path, merge_imatrix(read, legacy_chunk_size=chunk_size or 512))
    merged = read_imatrix(path)
    for field, what in (("inputs", "Σx"), ("router_sums", "router weights")):
        having = sum(any(getattr(entry, field) is not None for entry in one.entries.values()) for one in read)
        if 0 < having < len(read):
            output.note(f"{len(read) - having} of {len(read)} files have no {what}, so the sum has none", warning=True)
    layers = coverage(merged)
    if as_json:
        output.show_json(report(merged) | {"layers": coverage_json(layers)})
        return
    show(merged)
    if layers:
        show_coverage(layers)
