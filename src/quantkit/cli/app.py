"""The group `quantkit`: loads only the command that is called, and ends with the right exit code."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import click

from quantkit import __version__
from quantkit.cli import failure, streams
from quantkit.cli.group import Group
from quantkit.errors import UsageError

COMMANDS = {
    "convert": "Convert a Llama 4 checkpoint to one or more quantized GGUF files.",
    "plan": "Show what a conversion would write and need, and what the result needs to run.",
    "inspect": "Show header, keys, tensors and types of a GGUF file.",
    "calibrate": "Collect an importance matrix, each expert's from its own tokens, with the model read from disk.",
    "drift": "Measure what quantization did to a model, with intervals, and fail where that is too much.",
    "compare": "Hold two quantized files of a model against each other: which tensors and layers make the difference.",
    "verify": "Check a GGUF file: structure, values, and that its weights are the checkpoint's.",
    "imatrix": "Show, merge and export importance matrices, and which experts they have seen.",
    "formats": "List the formats and recipes, their bits per weight, and when to use them.",
    "doctor": "Report version, compiler, instruction sets, threads and BLAS.",
}
COMPLETE_VARIABLE = "_QUANTKIT_COMPLETE"
EXAMPLES = (
    "quantkit plan Llama-4-Scout-17B-16E-Instruct --type q4_k_m",
    "quantkit convert Llama-4-Scout-17B-16E-Instruct scout-q4_k_m.gguf --type q4_k_m",
    "quantkit inspect scout-q4_k_m.gguf",
)


class Application(Group):
    """The top group."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_epilog(ctx, formatter)
        with formatter.section("Shell completion"):
            formatter.write_text('eval "$(_QUANTKIT_COMPLETE=bash_source quantkit)"  in ~/.bashrc (zsh, fish likewise)')

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run, and turn every way of failing into a message and an exit code (see `quantkit.cli.failure`)."""
        arguments = list(sys.argv[1:] if args is None else args)
        if not standalone_mode:
            return super().main(arguments, prog_name, complete_var, standalone_mode=False, **extra)
        with failure.reported(arguments, prog_name or "quantkit"), _sigterm_interrupts():
            result = super().main(arguments, prog_name, complete_var, standalone_mode=False, **extra)
            # Outside standalone mode click returns the code given to ctx.exit(), and our commands return None.
            sys.exit(result if isinstance(result, int) else 0)


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """While open, SIGTERM ends the command as Ctrl-C does, so that the journal is left whole."""
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield
        return
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous or signal.SIG_DFL)


def _interrupt(signal_number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _print_version(ctx: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    if not wanted or ctx.resilient_parsing:
        return
    click.echo(f"quantkit {__version__}")
    ctx.exit()


@click.group(
    cls=Application,
    sentences=COMMANDS,
    module="quantkit.cli.{}",
    examples=EXAMPLES,
    invoke_without_command=True,
    no_args_is_help=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_print_version,
    help="Print the version and exit.",
)
@click.pass_context
def app(ctx: click.Context) -> None:
    """Convert a Llama 4 checkpoint that is larger than memory to a quantized GGUF that llama.cpp runs.

    Every command takes --help and --json. QUANTKIT_DEBUG=1 shows tracebacks.

    Exit codes: 0 success, 1 a gate of `drift` failed, 2 usage, 3 source unreadable or malformed, 4 unsupported
    model, 5 plan refused (strict, disk, memory, existing output), 6 writing failed, 7 verification failed,
    130 interrupted.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        ctx.exit(UsageError.exit_code)


def _program() -> str:
    """What was typed before the arguments, for lines to copy: `quantkit`, its path, or `python -m quantkit`."""
    script, arguments = sys.argv[0], sys.argv[1:]
    if script == "-c" or Path(script).name == "__main__.py":
        return shlex.join(sys.orig_argv[: len(sys.orig_argv) - len(arguments)])
    return "quantkit" if shutil.which("quantkit") == script else shlex.quote(script)


def main() -> NoReturn:
    """Entry point of the `quantkit` script."""
    stdout = streams.guard()
    try:
        # Completion is installed for the bare name, whatever path the script that installs it was called by.
        app.main(
            prog_name="quantkit" if COMPLETE_VARIABLE in os.environ else _program(), complete_var=COMPLETE_VARIABLE
        )
    except SystemExit as end:
        sys.stdout.flush()
        if not end.code and stdout.lost is not None and not isinstance(stdout.lost, BrokenPipeError):
            unprinted = failure.unprinted(stdout.lost, sys.argv[1:])
            click.echo(unprinted.text(), err=True)
            sys.exit(unprinted.exit_code)
        raise
    raise AssertionError("click returned from standalone mode")
