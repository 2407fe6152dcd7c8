"""`quantkit drift`: what quantization did to a model, and whether that is too much."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from quantkit.cli.help import Command, Option
from quantkit.cli.units import ByteSize, TokenCount
from quantkit.errors import UsageError

if TYPE_CHECKING:
    from quantkit.cli.output import Step
    from quantkit.drift import Progress
    from quantkit.drift.gate import Need

TEXT = "Text"
WHAT = "What to measure"
RESULTS = "Results"
ARGUMENTS = "quantkit.drift.arguments"  # the command as it was given, for the report


class DriftCommand(Command):
    """`drift` and `compare`: their results hold the command that made them."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[ARGUMENTS] = shlex.join(["quantkit", ctx.info_name or "", *args])
        return super().parse_args(ctx, args)


@click.command(
    cls=DriftCommand,
    examples=(
        "quantkit drift Llama-4-Scout-17B-16E-Instruct scout-q4_k_m.gguf --text prose.txt --tokens 32k",
        "quantkit drift scout-bf16.gguf scout-q4_k_m.gguf scout-q3_k_m.gguf --text prose.txt --report drift.html",
        "quantkit drift scout-bf16.gguf new.gguf --text prose.txt --fail-if 'kld.mean>0.05' --junit drift.xml",
        "quantkit drift scout-bf16.gguf scout-q4_k_m.gguf --weights-only",
        "quantkit drift --kl-base scout-bf16.kld scout-q4_k_m.gguf",
    ),
)
@click.argument("reference", type=click.Path(), help="Checkpoint folder, or GGUF of f32, f16 or bf16.")
@click.argument("quantized", type=click.Path(), nargs=-1, help="GGUF files of the same model.")
@click.option(
    "--text",
    type=click.Path(),
    multiple=True,
    cls=Option,
    group=TEXT,
    metavar="FILE",
    help='A .jsonl with a {"text": ..., "domain": ...} a line, each a document, or plain UTF-8 text. Repeatable. Not '
    "what the files were calibrated on: there they look better than they are.",
)
@click.option(
    "--context",
    type=TokenCount(),
    cls=Option,
    group=TEXT,
    metavar="N",
    help="Tokens of a chunk, each chunk a text of its own; an incomplete last one is dropped. 512 if not given.",
)
@click.option(
    "--tokens", type=TokenCount(), cls=Option, group=TEXT, metavar="N", help="Tokens to read; without it, all."
)
@click.option(
    "--score",
    type=click.Choice(["all", "second-half"]),
    cls=Option,
    group=TEXT,
    help="Which tokens of a chunk count: all that have a next one, which is the default, or its second half, as in "
    "llama-perplexity.",
)
@click.option(
    "--kl-base",
    type=click.Path(dir_okay=False),
    cls=Option,
    group=TEXT,
    metavar="FILE",
    help="Take this file of llama-perplexity --kl-divergence-base, with its tokens, for REFERENCE: all other files are "
    "compared with it, in llama-perplexity's way.",
)
@click.option(
    "--weights-only", is_flag=True, cls=Option, group=WHAT, help="Compare weights alone, which needs no text."
)
@click.option("--no-weights", is_flag=True, cls=Option, group=WHAT, help="Leave out the errors of weights.")
@click.option(
    "--no-local",
    is_flag=True,
    cls=Option,
    group=WHAT,
    help="Leave out what each layer does by itself, which takes an eighth more time.",
)
@click.option(
    "--imatrix",
    type=click.Path(dir_okay=False),
    cls=Option,
    group=WHAT,
    metavar="FILE",
    help="Weight the errors of weights by this importance matrix as well.",
)
@click.option(
    "--write-kl-base",
    type=click.Path(dir_okay=False),
    cls=Option,
    group=RESULTS,
    metavar="FILE",
    help="Write the reference's log-probabilities there, as llama-perplexity --kl-divergence-base does: 0.2 MB for "
    "each token of the text with Llama 4's vocabulary.",
)
@click.option(
    "--json",
    "json_path",
    type=click.Path(dir_okay=False, allow_dash=True),
    cls=Option,
    group=RESULTS,
    metavar="PATH",
    help="Write report.json there; - puts it, and nothing else, on stdout.",
)
@click.option(
    "--report",
    "report_path",
    type=click.Path(dir_okay=False),
    cls=Option,
    group=RESULTS,
    metavar="PATH",
    help="Write everything as one HTML page with figures, which needs no network. Wants the extra 'report'.",
)
@click.option(
    "--fail-if",
    "conditions",
    multiple=True,
    cls=Option,
    group=RESULTS,
    metavar="EXPR",
    help="Exit with code 1 where this holds for any file, such as 'kld.mean>0.05' or 'routing.agreement<0.97'. "
    "Repeatable. An unknown name lists all; docs/drift.md explains them.",
)
@click.option(
    "--junit",
    "junit_path",
    type=click.Path(dir_okay=False),
    cls=Option,
    group=RESULTS,
    metavar="PATH",
    help="Write the conditions as JUnit XML, one test case for each condition and file.",
)
@click.option(
    "--max-ram",
    "max_ram_bytes",
    type=ByteSize(),
    cls=Option,
    metavar="SIZE",
    help="Memory to take, about; hidden states that do not fit in are kept in temporary files.",
)
@click.option(
    "--threads",
    type=click.IntRange(min=0),
    default=0,
    cls=Option,
    metavar="N",
    help="Threads that compute; 0 is one per processor. No number depends on it.",
)
@click.pass_context
def command(
    ctx: click.Context,
    /,
    reference: str,
    quantized: tuple[str, ...],
    json_path: str | None,
    report_path: str | None,
    conditions: tuple[str, ...],
    junit_path: str | None,
    no_weights: bool,
    no_local: bool,
    weights_only: bool,
    text: tuple[str, ...],
    context: int | None,
    tokens: int | None,
    kl_base: str | None,
    **options: Any,
) -> None:
    """Say how far QUANTIZED files are from REFERENCE: next-token probabilities, routing, hidden states and weights.

    Text runs through all models side by side, read from disk a layer and an expert at a time, so they may be far larger
    than memory. Take text of what the model will read, and none that a file was calibrated on.
    """
    from quantkit.cli import drift_summary, output
    from quantkit.cli.result_file import check_result_file
    from quantkit.drift import drift
    from quantkit.drift.gate import judge, parse_condition
    from quantkit.drift.junit import write_junit
    from quantkit.drift.kl_base import is_kl_base
    from quantkit.drift.report import check_installed, write_report
    from quantkit.drift.result import plain
    from quantkit.kernels.atomic_file import atomic_file

    if junit_path is not None and not conditions:
        raise UsageError("--junit has no conditions to tell of", hint="Add --fail-if.")
    if weights_only and no_weights:
        raise UsageError("--weights-only and --no-weights leave nothing to measure")
    reference, quantized = _sides(reference, quantized, kl_base)
    without: dict[Need, str] = {}
    if weights_only:
        without |= dict.fromkeys(("text", "states", "local"), "--weights-only")
    if is_kl_base(reference):
        without |= dict.fromkeys(("weights", "states", "local"), "log-probabilities for reference")
    if no_weights:
        without["weights"] = "--no-weights"
    if no_local:
        without["local"] = "--no-local"
    parsed = [parse_condition(one, without=without) for one in conditions]
    if report_path is not None:
        check_installed()
    for name in (json_path, report_path, junit_path):
        check_result_file(name)
    with output.progress() as report:
        result = drift(
            reference,
            quantized,
            text=text,
            tokens=tokens,
            context=context,
            weights=not no_weights,
            weights_only=weights_only,
            local=not no_local,
            progress=lambda one: report(step(one, len(quantized))),
            **options,
        )
    result = replace(result, command=ctx.meta[ARGUMENTS])
    verdicts = judge(result, parsed)
    content = result.to_json() | {"gate": plain(verdicts)}
    if json_path not in (None, "-"):
        with atomic_file(Path(json_path)) as file:
            file.write(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n")
    if junit_path is not None:
        write_junit(junit_path, verdicts)
    if report_path is not None:
        write_report(report_path, result, verdicts)
    if json_path == "-":
        output.show_json(content)
    else:
        drift_summary.show(result)
    for one in verdicts:
        if one.failed or json_path != "-":
            output.note(one.message, warning=one.failed)
    if any(one.failed for one in verdicts):
        ctx.exit(1)


def _sides(reference: str, quantized: tuple[str, ...], kl_base: str | None) -> tuple[str, tuple[str, ...]]:
    """Reference and candidates: a file of log-probabilities takes the reference's place."""
    if kl_base is not None:
        from quantkit.drift.kl_base import open_kl_base

        open_kl_base(kl_base)  # what is none is refused as such, and not as a model
        return kl_base, (reference, *quantized)
    if not quantized:
        raise UsageError(
            "there is no file to compare with the reference",
            hint="Name QUANTIZED files after REFERENCE, or give --kl-base.",
        )
    return reference, quantized


def step(progress: Progress, n_candidates: int) -> Step:
    """A report, for the terminal."""
    from quantkit.cli.output import Step

    amount = ""
    if progress.what.startswith("layer "):
        amount = f"file {progress.model} of {n_candidates}" if progress.model else "reference"
    left = progress.seconds * (progress.total - progress.done) / progress.done if progress.done else None
    return Step(progress.what, amount, "", progress.done, progress.total, left)
