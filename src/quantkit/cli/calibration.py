"""`quantkit convert --calibrate`: statistics into a file beside the output, and from that file the conversion."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from quantkit.cli.help import Option
from quantkit.cli.units import TokenCount
from quantkit.errors import PlanRefusedError, UsageError

GROUP = "Calibrate before"
Callback = TypeVar("Callback", bound=Callable[..., Any])


def text_options(group: str) -> tuple[Callable[[Callback], Callback], ...]:
    """--text and --tokens, which `calibrate` and `convert --calibrate` share, under the heading `group`."""
    return (
        click.option(
            "--text",
            type=click.Path(),
            multiple=True,
            cls=Option,
            group=group,
            metavar="FILE",
            help='A .jsonl with a {"text": ...} a line, or plain UTF-8 text. Repeatable. Without it, the text that '
            "comes with quantkit: prose, code, dialogue, 17 languages, tool calls and numbers, 600 kB.",
        ),
        click.option(
            "--tokens", type=TokenCount(), cls=Option, group=group, metavar="N", help="Tokens to read; without it, all."
        ),
    )


_OPTIONS: tuple[Callable[[Callback], Callback], ...] = (
    click.option(
        "--calibrate",
        "calibrates",
        is_flag=True,
        cls=Option,
        group=GROUP,
        help="Collect an importance matrix from text first, as `quantkit calibrate` does, in OUT.imatrix.gguf (with "
        "`imatrix` in place of {type}), and use it. It is kept; give it with --imatrix to go on after an interruption.",
    ),
    *text_options(GROUP),
)


def calibration_options(command: Callback) -> Callback:
    """Give `convert` the options of a calibration before it."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def statistics_path(out: str) -> Path:
    """Where the statistics of a conversion to `out` go: beside it."""
    if "{type}" in out:
        return Path(out.replace("{type}", "imatrix"))
    return Path(out).with_suffix(".imatrix.gguf")


def calibrate_before(
    checkpoint: str, out: str | None, *, text: tuple[str, ...], tokens: int | None, options: dict[str, Any]
) -> Path:
    """Collect statistics for a conversion that is known to be possible; the file that holds them.

    Args:
        options: those of `plan`, which is asked first.

    Raises:
        UsageError: options that do not go together with a calibration.
        PlanRefusedError: the file exists.
        As `plan` and `calibrate`.
    """
    from quantkit.calibration import calibrate
    from quantkit.cli import output
    from quantkit.cli.calibrate import announce
    from quantkit.convert import plan

    if out is None:
        raise UsageError("--calibrate is of no use to an mmproj", hint="Leave away --mmproj-only or --calibrate.")
    if options["imatrix"] is not None:
        raise UsageError("--imatrix and --calibrate are both given", hint="Statistics come from a file or from text.")
    path = statistics_path(out)
    if os.path.lexists(path) and not options["force"]:
        raise PlanRefusedError(
            f"{path} exists",
            hint=f"Give --imatrix {path} instead of --calibrate to use it, or --force to collect it again.",
        )
    plan(checkpoint, out, **options)
    with output.progress() as report:
        calibrate(
            checkpoint,
            path,
            text=text,
            tokens=tokens,
            threads=options["threads"],
            force=options["force"],
            announce=announce,
            progress=report,
        )
    output.note(f"statistics are in {path}; `quantkit imatrix show` tells which experts they cover")
    return path
