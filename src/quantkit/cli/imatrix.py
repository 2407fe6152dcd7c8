"""`quantkit imatrix`: a group of commands over importance matrices; each is in a module of its own."""

from __future__ import annotations

import os
from pathlib import Path

import click

from quantkit.cli.group import Group
from quantkit.errors import PlanRefusedError

COMMANDS = {
    "show": "Show what an importance matrix has seen: tokens by layer and expert.",
    "merge": "Add up importance matrices of one model over different texts.",
    "export": "Write an importance matrix for llama-quantize: as it is, shrunk, or as .dat.",
}
EXAMPLES = (
    "quantkit imatrix show scout.imatrix.gguf",
    "quantkit imatrix merge prose.gguf code.gguf --output scout.imatrix.gguf",
    "quantkit imatrix export scout.imatrix.gguf --output for-llama-quantize.gguf --shrunk",
)


@click.group(
    cls=Group,
    sentences=COMMANDS,
    module="quantkit.cli.imatrix_{}",
    examples=EXAMPLES,
    context_settings={"help_option_names": ["-h", "--help"]},
)
def command() -> None:
    """Work with importance matrices: what llama-imatrix or quantkit has collected about the inputs of each weight.

    Every command takes --help and --json. Files are GGUF, as llama.cpp has them since 2025; the older .dat can be
    shown and written, and merged if it has no experts.
    """


def check_new(path: str, *, force: bool) -> Path:
    """The path of an output, if nothing is there or may be overwritten; else PlanRefusedError."""
    if os.path.lexists(path) and not force:
        raise PlanRefusedError(f"{path} exists", hint="Pass --force to overwrite it, or choose another name.")
    return Path(path)
