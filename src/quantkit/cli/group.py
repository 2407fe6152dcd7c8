"""A group of commands that live in modules of their own and are imported on first use."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import click

from quantkit.cli.help import write_examples


class Group(click.Group):
    """Commands by name.

    Args:
        sentences: name -> one sentence of help, in order; they stand here, so that `--help` loads no command.
        module: where a command's module is, "quantkit.cli.{}"; it holds the click command `command`.
        examples: lines to copy.
    """

    def __init__(
        self, *args: Any, sentences: Mapping[str, str], module: str, examples: Sequence[str] = (), **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.sentences, self.module, self.examples = sentences, module, tuple(examples)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.sentences)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.sentences:
            return None
        name = self.module.format(cmd_name)
        command = importlib.import_module(name).command
        if not isinstance(command, click.Command):
            raise TypeError(f"{name}.command is not a click command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(self.sentences.items()))

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_examples(formatter, self.examples)
