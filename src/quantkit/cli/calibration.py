"""Options of a calibration, which `calibrate` and `convert --calibrate` share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from quantkit.cli.help import Option
from quantkit.cli.units import TokenCount

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
            "comes with quantkit: prose, code, dialogue, 19 languages, tool calls and numbers, 620 kB.",
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
        "`imatrix` in place of {type}), and use it. It is kept, for other types with --imatrix.",
    ),
    *text_options(GROUP),
)


def calibration_options(command: Callback) -> Callback:
    """Give `convert` the options of a calibration before it."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
