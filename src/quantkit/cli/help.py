"""What every command's `--help` has beyond click's: options under headings, and examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

GENERAL = "General"


class Option(click.Option):
    """An option that stands under a heading of its own in `--help`."""

    def __init__(self, *args: Any, group: str = GENERAL, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.group = group


class Command(click.Command):
    """A command with examples, whose options are shown by group in the order in which the groups first occur."""

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:
        kwargs.setdefault("context_settings", {"show_default": True})
        super().__init__(*args, **kwargs)
        self.examples = tuple(examples)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                groups.setdefault(getattr(parameter, "group", GENERAL), []).append(record)
        groups[GENERAL] = groups.pop(GENERAL, [])  # last
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl(records)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_examples(formatter, self.examples)


def write_examples(formatter: click.HelpFormatter, examples: Sequence[str]) -> None:
    """Write the section `Examples`, one command a line, never wrapped, so that each can be copied."""
    if not examples:
        return
    with formatter.section("Examples"):
        for example in examples:
            formatter.write(f"{'':>{formatter.current_indent}}$ {example}\n")


json_option = click.option("--json", "as_json", is_flag=True, cls=Option, help="Put JSON, and nothing else, on stdout.")
