"""How results and progress look. The only file that knows rich; stdout holds results, stderr holds progress."""

from __future__ import annotations

import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click
from rich import box
from rich.console import Console, RenderableType
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Column, Table
from rich.text import Text

from quantkit.cli.units import bytes_text, seconds_text

if TYPE_CHECKING:
    from quantkit.calibration import Progress as LayerProgress
    from quantkit.convert import Progress

NAME_WIDTH = 44  # of a tensor beside the bar: its end says more than its beginning
_HEAT = ("bold white on red", "bold red", "yellow", "green", "bold green")  # of a heat map's digits, from 0
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
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    for column in columns:
        grid.add_column(column, justify="right" if column in right else "left", no_wrap=column in right)
    for row in rows:
        grid.add_row(*(Text(str(cell)) for cell in row))
    _show(grid)


def facts(rows: Sequence[tuple[str, object]], *, title: str = "") -> None:
    """Print names and values in two columns."""
    heading(title)
    grid = Table.grid(padding=(0, 2))
    for name, value in rows:
        grid.add_row(Text(name, style="bold"), Text(str(value)))
    _show(grid)


def heat_map(rows: Sequence[tuple[str, Sequence[float]]], *, title: str, legend: str) -> None:
    """Print for each number how many digits it has, so that powers of ten stand out: 0 for 0, 1 below 10, 2 below 100.

    Rows that are longer than the terminal is wide go on in lines of their own, sixteen numbers at a time.
    """
    heading(title)
    console().print(Text(legend, style="dim"))
    label = max(len(name) for name, _ in rows)
    longest = max(len(values) for _, values in rows)
    per_line = max(16, (console().width - label - 2) // 17 * 16)  # a blank after each sixteen
    for first in range(0, longest, per_line):
        ruler = "".join(f"{i:<17}" for i in range(first, min(first + per_line, longest), 16))
        _show(Text(f"{'':>{label}}  {ruler.rstrip()}", style="dim"))
        for name, values in rows:
            line = Text(f"{name:>{label}}  ", no_wrap=True)
            for i, value in enumerate(values[first : first + per_line]):
                digits = len(str(int(value))) if value >= 1 else 0
                line.append(" " if i and i % 16 == 0 else "")
                line.append(str(min(digits, 9)), style=_HEAT[min(digits, len(_HEAT) - 1)])
            _show(line)


def _show(renderable: RenderableType) -> None:
    """Print on stdout; where that is no terminal, without the blanks that fill a cell up."""
    target = console()
    with target.capture() as captured:
        target.print(renderable)
    lines = captured.get().splitlines()
    click.echo("\n".join(lines if sys.stdout.isatty() else map(str.rstrip, lines)))


def heading(title: str) -> None:
    """Print a title on a line of its own, if there is one."""
    if title:
        console().print(Text(f"\n{title}", style="bold cyan"))


def note(text: str, *, warning: bool = False) -> None:
    """Print a line on stderr, where it disturbs neither tables nor JSON."""
    console(to_stderr=True).print(Text(f"warning: {text}" if warning else text, style="yellow" if warning else ""))


def line(text: str) -> None:
    """Print one line of result, unwrapped."""
    click.echo(text)


@contextmanager
def progress() -> Iterator[Callable[[Progress | LayerProgress | Step], None]]:
    """Give a function that shows the walk's reports on stderr: a bar on a terminal, a line every 5 s elsewhere."""
    if not sys.stderr.isatty():
        yield PlainProgress()
        return
    with Bar(
        TextColumn("{task.fields[tensor]}", table_column=Column(no_wrap=True, max_width=NAME_WIDTH, min_width=20)),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[amount]}"),
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[remaining]}"),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        yield BarProgress(bar)


class BarProgress:
    """Shows reports as a bar with tensor, bytes, rate and remaining time."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar
        self._task = bar.add_task("", total=None, tensor="reading headers", amount="", rate="", remaining="")

    def __call__(self, report: Progress | LayerProgress | Step) -> None:
        amount, rate, remaining = progress_texts(report)
        completed, total, name = _extent(report)
        self._bar.update(
            self._task,
            total=total,
            completed=completed,
            tensor=name if len(name) <= NAME_WIDTH else f"…{name[1 - NAME_WIDTH :]}",
            amount=amount,
            rate=rate,
            remaining=remaining,
        )


class PlainProgress:
    """Shows reports as lines, the first at once and then one every `interval_seconds`, and the last."""

    def __init__(self, interval_seconds: float = 5.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval = interval_seconds
        self._clock = clock
        self._due = clock()

    def __call__(self, report: Progress | LayerProgress | Step) -> None:
        now = self._clock()
        completed, total, name = _extent(report)
        done = completed >= total
        if self._due == math.inf and not done:  # another round begins
            self._due = now
        if (now < self._due and not done) or self._due == math.inf:
            return
        self._due = math.inf if done else now + self._interval  # after the last report nothing is due any more
        percent = 100 * completed / max(total, 1)
        click.echo("  ".join(filter(None, [f"{percent:5.1f} %", *progress_texts(report), name])), err=True)


@dataclass(frozen=True)
class Step:
    """A report of whatever is not a walk over bytes or a calibration.

    Args:
        name: in work.
        amount, rate: as text; "" for none.
        done, total: in any unit.
    """

    name: str
    amount: str
    rate: str
    done: int
    total: int
    remaining_seconds: float | None


def _extent(report: Progress | LayerProgress | Step) -> tuple[int, int, str]:
    """What is done, of how much, and what is in work."""
    if isinstance(report, Step):
        return report.done, report.total, report.name
    from quantkit.convert import Progress as WalkProgress

    if isinstance(report, WalkProgress):
        return report.done_bytes, report.total_bytes, report.tensor
    return report.done_tokens, report.total_tokens, ""


def progress_texts(report: Progress | LayerProgress | Step) -> tuple[str, str, str]:
    """Amount, rate and remaining time as text; "" where unknown."""
    if isinstance(report, Step):
        seconds = report.remaining_seconds
        return report.amount, report.rate, "" if seconds is None else f"{seconds_text(seconds)} left"
    from quantkit.convert import Progress as WalkProgress

    if isinstance(report, WalkProgress):
        amount = f"{bytes_text(report.done_bytes)} of {bytes_text(report.total_bytes)}"
        rate = f"{bytes_text(report.bytes_per_second)}/s" if report.bytes_per_second else ""
    else:
        amount = f"round {report.round}, layer {report.layer}"
        rate = f"{report.tokens_per_second:,.0f} tokens/s" if report.tokens_per_second else ""
    remaining = "" if report.remaining_seconds is None else f"{seconds_text(report.remaining_seconds)} left"
    return amount, rate, remaining
