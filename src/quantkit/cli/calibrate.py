"""`quantkit calibrate`: statistics of each expert's own inputs, for `convert --imatrix` and llama-quantize."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from quantkit.cli.calibration import text_options
from quantkit.cli.coverage import coverage_json, show_coverage
from quantkit.cli.help import Command, Option, json_option
from quantkit.cli.options import checkpoint_argument
from quantkit.cli.units import ByteSize, TokenCount, bytes_text, seconds_text

if TYPE_CHECKING:
    from quantkit.calibration import Calibration, Cost

WHAT = "What to write"
TEXT = "Text"
TOP_UP = "More tokens for experts that are short of them"
_text_option, _tokens_option = text_options(TEXT)
NAMED = 12  # of the short experts; --json has all

ENDINGS = {
    "floor": "every expert has its tokens",
    "max-tokens": "all the tokens that were allowed are spent",
    "text": "the text is at its end",
    "stalled": "the last round added under 5 % to every short expert",
}


@click.command(
    cls=Command,
    examples=(
        "quantkit calibrate Llama-4-Scout-17B-16E-Instruct -o scout.imatrix.gguf --tokens 128k",
        "quantkit calibrate Llama-4-Scout-17B-16E-Instruct -o scout.imatrix.gguf --text prose.txt --text code.jsonl",
        "quantkit calibrate Llama-4-Maverick-17B-128E-Instruct -o maverick.imatrix.gguf --text all.txt --tokens 256k "
        "--min-tokens-per-expert 500 --max-ram 16G",
    ),
)
@checkpoint_argument
@click.option(
    "-o", "--output", "out", type=click.Path(), required=True, cls=Option, group=WHAT, help="The file to write."
)
@click.option(
    "--format",
    type=click.Choice(["gguf", "dat"]),
    default="gguf",
    cls=Option,
    group=WHAT,
    help="llama.cpp's GGUF, or its older .dat, which has no counts by expert.",
)
@click.option("--force", is_flag=True, cls=Option, group=WHAT, help="Overwrite OUTPUT if it exists.")
@_text_option
@click.option(
    "--context",
    type=TokenCount(),
    default=512,
    cls=Option,
    group=TEXT,
    metavar="N",
    help="Tokens of a chunk, each chunk a text of its own; an incomplete last one is dropped.",
)
@_tokens_option
@click.option(
    "--parse-special",
    is_flag=True,
    cls=Option,
    group=TEXT,
    help="Read <|eot|> and the like in the text as the tokens that they name.",
)
@click.option(
    "--min-tokens-per-expert",
    type=click.IntRange(min=0),
    default=0,
    cls=Option,
    group=TOP_UP,
    metavar="N",
    help="While an expert has seen fewer, walk through the model again, with as many new tokens as --tokens says.",
)
@click.option(
    "--max-tokens",
    type=TokenCount(),
    cls=Option,
    group=TOP_UP,
    metavar="N",
    show_default="4 × --tokens",
    help="Tokens of all rounds together; with --min-tokens-per-expert.",
)
@click.option(
    "--max-ram",
    "max_ram_bytes",
    type=ByteSize(),
    cls=Option,
    metavar="SIZE",
    help="Memory of the process, about, tokenizer and text included; hidden states that do not fit in are kept in a "
    "file beside OUTPUT.",
)
@click.option(
    "--threads",
    type=click.IntRange(min=0),
    default=0,
    cls=Option,
    metavar="N",
    help="Threads that compute; 0 is one per processor. The result does not depend on it.",
)
@json_option
def command(checkpoint: str, out: str, as_json: bool, **options: Any) -> None:
    """Run text through CHECKPOINT, a Hugging Face folder of a Llama 4 model, and write an importance matrix.

    The model is read from disk a layer and an expert at a time, so it may be far larger than memory. Every expert gets
    statistics of the tokens that the router sends to it, and of no others. At the end stands how many that were.
    docs/calibration.md explains sums, rounds and the file.

    When it is interrupted or killed, the same command goes on after the last layer that was finished, from files
    OUTPUT.part.*, to the same bytes. --threads and --max-ram may differ then.
    """
    from quantkit.calibration import calibrate
    from quantkit.cli import output
    from quantkit.gguf import coverage

    options["text"] = options["text"] or None
    with output.progress() as report:
        result = calibrate(checkpoint, out, announce=announce, progress=report, **options)
    layers = coverage(result.imatrix)
    if as_json:
        output.show_json(_report(result) | {"layers": coverage_json(layers)})
    else:
        _show(result)
        if layers:
            show_coverage(layers)
    warn_of_short(result, options["min_tokens_per_expert"])


def warn_of_short(result: Calibration, floor: int) -> None:
    """Name on stderr the experts that stayed short of tokens, and say why they did."""
    from quantkit.cli import output

    if not result.short:
        return
    named = ", ".join(f"{one.layer}/{one.expert} ({one.tokens:,})" for one in result.short[:NAMED])
    more = f" and {len(result.short) - NAMED} more" if len(result.short) > NAMED else ""
    output.note(
        f"{len(result.short)} experts stay short of {floor:,} tokens, since {ENDINGS[result.ending]}: "
        f"layer/expert {named}{more}",
        warning=True,
    )


def announce(cost: Cost) -> None:
    """Say on stderr what a calibration will take."""
    from quantkit.cli import output

    place = "in memory" if cost.states_in_memory else "in a file"
    text = (
        f"{cost.tokens:,} tokens through {cost.layers - cost.finished_layers} layers: reads "
        f"{bytes_text(cost.read_bytes)}, hidden states {bytes_text(cost.states_bytes)} {place}, about "
        f"{bytes_text(cost.peak_ram_bytes)} of memory and {bytes_text(cost.disk_bytes)} on disk until it is done"
    )
    ahead = cost.max_tokens - cost.finished_tokens
    if cost.round > 1 or cost.finished_layers:
        done = f"{cost.finished_layers} of {cost.layers} layers finished"
        text = f"goes on where it was stopped, in round {cost.round} with {done}: {text}"
        if ahead > cost.tokens:
            text += f"; then {-(-ahead // cost.tokens) - 1} more rounds at most, if experts stay short of tokens"
    elif ahead > cost.tokens:
        text += f"; {-(-ahead // cost.tokens)} times that at most, {ahead:,} tokens, if experts stay short of tokens"
    output.note(text)


def _report(result: Calibration) -> dict[str, Any]:
    return {
        "schema": 1,
        "file": str(result.path),
        "datasets": list(result.imatrix.datasets),
        "tokens": result.tokens,
        "chunk_count": result.imatrix.chunk_count,
        "chunk_size": result.imatrix.chunk_size,
        "tensors": len(result.imatrix.entries),
        "ending": result.ending,
        "rounds": [vars(one) for one in result.rounds],
        "short": [vars(one) for one in result.short],
    }


def _show(result: Calibration) -> None:
    from quantkit.cli import output

    seconds = sum(one.seconds for one in result.rounds)
    rounds = f" in {len(result.rounds)} rounds" if len(result.rounds) > 1 else ""
    output.facts(
        [
            ("file", result.path),
            ("texts", ", ".join(result.imatrix.datasets)),
            ("tokens", f"{result.tokens:,} in chunks of {result.imatrix.chunk_size:,}{rounds}"),
            ("tensors", f"{len(result.imatrix.entries):,}"),
            ("time", f"{seconds_text(seconds)}, {result.tokens / max(seconds, 1e-9):,.0f} tokens/s"),
        ]
    )
