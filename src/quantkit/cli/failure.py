"""The one place where an exception becomes a message, perhaps JSON, and an exit code."""

from __future__ import annotations

import errno
import json
import os
import shlex
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import click

from quantkit.errors import OutputError, PlanRefusedError, QuantkitError, UsageError

INTERRUPTED = 130
INTERNAL = 70  # EX_SOFTWARE: not one of quantkit's own codes, since no class of error fits a bug


@dataclass(frozen=True)
class Failure:
    """How a command ended: the class of error, what is wrong, the next step, and the exit code."""

    kind: str
    what: str
    hint: str
    exit_code: int

    def text(self) -> str:
        return "\n".join([f"error: {self.what}", *(f"  {line}" for line in self.hint.splitlines())])

    def as_json(self) -> str:
        fields = {"type": self.kind, "message": self.what, "hint": self.hint, "exit_code": self.exit_code}
        return json.dumps({"error": fields}, ensure_ascii=False)


def describe(exception: BaseException, arguments: Sequence[str] = (), program: str = "quantkit") -> Failure:
    """Say what an exception means to a user who ran `program *arguments`; `program` is quoted for the shell."""
    kind = type(exception).__name__
    if isinstance(exception, QuantkitError):
        return Failure(kind, exception.what, exception.hint, exception.exit_code)
    if isinstance(exception, click.UsageError):
        where = exception.ctx.command_path if exception.ctx else program
        return Failure(UsageError.__name__, exception.format_message(), f"Try: {where} --help", UsageError.exit_code)
    if isinstance(exception, click.ClickException):
        return Failure(kind, exception.format_message(), "", UsageError.exit_code)
    if isinstance(exception, (KeyboardInterrupt, click.Abort)):
        hint = ""
        if arguments[:1] and arguments[0] in ("calibrate", "convert"):
            hint = f"The same command goes on from where it stopped:\n{program} {shlex.join(arguments)}"
        return Failure("Interrupted", "interrupted", hint, INTERRUPTED)
    if isinstance(exception, MemoryError):
        hint = "Close other programs, or use fewer --threads; `quantkit plan` states the peak memory beforehand."
        return Failure(kind, "out of memory", hint, PlanRefusedError.exit_code)
    if isinstance(exception, OSError):
        hint = "Free some space and run the same command again." if exception.errno == errno.ENOSPC else ""
        return Failure(kind, str(exception), hint, OutputError.exit_code)
    hint = "This is a bug in quantkit. Run again with QUANTKIT_DEBUG=1 for the traceback, and report it."
    return Failure(kind, f"internal error: {kind}: {exception}", hint, INTERNAL)


def unprinted(error: OSError, arguments: Sequence[str]) -> Failure:
    """The command did its work, but stdout did not take the result. (A reader that left early is no failure.)"""
    hint = ""
    if "convert" in arguments[:1]:
        hint = "The conversion is complete: its files are in place. Only its summary is lost."
    reason = error.strerror or error
    return Failure(type(error).__name__, f"the output could not be printed: {reason}", hint, OutputError.exit_code)


@contextmanager
def reported(arguments: Sequence[str], program: str = "quantkit") -> Iterator[None]:
    """Report what is raised inside on stderr (and as JSON on stdout if asked for), then exit with its code."""
    try:
        yield
    except (Exception, KeyboardInterrupt) as exception:  # noqa: BLE001 - the outermost frame: nobody else would report it
        if os.environ.get("QUANTKIT_DEBUG", "0") not in ("", "0"):
            traceback.print_exc()
        failure = describe(exception, arguments, program)
        if "--json" in arguments:
            click.echo(failure.as_json())
        click.echo(failure.text(), err=True)
        sys.exit(failure.exit_code)
