"""`quantkit verify`: whether a GGUF is sound, and whether its weights are the checkpoint's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from quantkit.cli.help import Command, Option, json_option
from quantkit.errors import VerificationError

if TYPE_CHECKING:
    from quantkit.cli.output import Step
    from quantkit.drift import Progress
    from quantkit.drift.verification import Verification


@click.command(
    cls=Command,
    examples=(
        "quantkit verify scout-q4_k_m.gguf",
        "quantkit verify scout-q4_k_m.gguf --against Llama-4-Scout-17B-16E-Instruct",
        "quantkit verify maverick-00001-of-00005.gguf --sha256 --json | jq '.files'",
    ),
)
@click.argument("file", type=click.Path(), help="A GGUF, or any of its splits: all of them are read together.")
@click.option(
    "--against",
    type=click.Path(),
    cls=Option,
    group="What to check",
    metavar="REFERENCE",
    help="Checkpoint folder, or GGUF of f32, f16 or bf16, that FILE was made from: compare all weights with it.",
)
@click.option(
    "--sha256", is_flag=True, cls=Option, group="What to check", help="Also hash each file and each tensor's bytes."
)
@click.option(
    "--junit",
    "junit_path",
    type=click.Path(dir_okay=False),
    cls=Option,
    metavar="PATH",
    help="Write the checks as JUnit XML, one test case each.",
)
@click.option(
    "--threads", type=click.IntRange(min=0), default=0, cls=Option, metavar="N", help="0 is one per processor."
)
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    /,
    file: str,
    against: str | None,
    sha256: bool,
    junit_path: str | None,
    threads: int,
    as_json: bool,
) -> None:
    """Check the GGUF FILE: structure, keys and shapes, that all values are finite and nothing is all zero.

    All of the file is read, some rows at a time. What is wrong is named by tensor, expert and place, and ends with exit
    code 7.
    """
    from quantkit.cli import output
    from quantkit.cli.result_file import check_result_file
    from quantkit.drift.junit import write_junit
    from quantkit.drift.verification import verify

    check_result_file(junit_path)
    with output.progress() as report:
        found = verify(file, against, sha256=sha256, threads=threads, progress=lambda one: report(_step(one)))
    if junit_path is not None:
        write_junit(junit_path, found.verdicts(), name="quantkit verify")
    if as_json:
        output.show_json(found.to_json())
    else:
        _show(found)
    if not found.passed:
        ctx.exit(VerificationError.exit_code)


def _step(progress: Progress) -> Step:
    from quantkit.cli.output import Step

    return Step(progress.what, "", "", progress.done, progress.total, None)


def _show(found: Verification) -> None:
    from quantkit.cli import output
    from quantkit.drift.verification import describe

    output.facts(list(describe(found)))
    marks = {True: "passed", False: "failed", None: "not made"}
    output.table(
        ("check", "", "what"), [(one.name, marks[one.passed], one.note) for one in found.checks], title="Checks"
    )
    if found.faults:
        rows = [(one.check, one.severity, f"{one.statement}\n{one.advice}") for one in found.faults]
        output.table(("check", "", "what is wrong, and what to do"), rows, title="Faults")
