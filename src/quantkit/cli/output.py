"""How results and progress look. The only file that knows rich; stdout holds results, stderr holds progress."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

PIPE_WIDTH = 200  # where there is no terminal nothing is wrapped below this width, so that lines can be grepped


def show_json(value: Any) -> None:
    """Put one JSON document on stdout."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def console(*, to_stderr: bool = False) -> Console:
    """A console whose tables fit the terminal, and are wide and plain where there is none."""
    stream = sys.stderr if to_stderr else sys.stdout
    width = shutil.get_terminal_size().columns if stream.isatty() else PIPE_WIDTH
    return Console(file=stream, width=width, highlight=False, emoji=False, markup=False)


def table(
    columns: Sequence[str], rows: Sequence[Sequence[object]], *, title: str = "", right: Sequence[str] = ()
) -> None:
    """Print rows under a heading; columns named in `right` hold numbers and are flushed right."""
    heading(title)
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for column in columns:
        grid.add_column(column, justify="right" if column in right else "left", no_wrap=column in right)
    for row in rows:
        grid.add_row(*(Text(str(cell)) for cell in row))
    console().print(grid)


def facts(rows: Sequence[tuple[str, object]], *, title: str = "") -> None:
    """Print names and values in two columns."""
    heading(title)
    grid = Table.grid(padding=(0, 2))
    for name, value in rows:
        grid.add_row(Text(name, style="bold"), Text(str(value)))
    console().print(grid)


def heading(title: str) -> None:
    """Print a title on a line of its own, if there is one."""
    if title:
        console().print(Text(f"\n{title}", style="bold cyan"))


def note(text: str, *, warning: bool = False) -> None:
    """Print a line on stderr, where it disturbs neither tables nor JSON."""
    console(to_stderr=True).print(Text(f"warning: {text}" if warning else text, style="yellow" if warning else ""))
