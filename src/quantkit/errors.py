"""One exception tree. Each leaf says what went wrong, where, what to do next, and has the exit code of its class."""

from __future__ import annotations


class QuantkitError(Exception):
    """Base of all errors that quantkit raises on purpose.

    Args:
        what: one sentence naming the file, tensor or value at fault.
        hint: the next step for the user, printed on a line of its own.
    """

    exit_code = 3

    def __init__(self, what: str, *, hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.what}\n{self.hint}" if self.hint else self.what


class UsageError(QuantkitError):
    """The caller's arguments do not fit together (exit code 2)."""

    exit_code = 2


class MissingDependencyError(UsageError, ImportError):
    """An optional package is not installed; the hint names the extra that brings it (exit code 2)."""


class CheckpointError(QuantkitError):
    """The source checkpoint, or an imatrix, is unreadable, incomplete or malformed (exit code 3)."""

    exit_code = 3


class NonFiniteError(CheckpointError):
    """A weight is NaN, infinite, or too large for the scale of the chosen format (exit code 3)."""


class UnsupportedModelError(QuantkitError):
    """The checkpoint is sound but is not a model that the runtime computes correctly (exit code 4)."""

    exit_code = 4


class PlanRefusedError(QuantkitError):
    """The plan cannot or must not be carried out: strict fallbacks, disk, memory, existing output (exit code 5)."""

    exit_code = 5


class OutputError(QuantkitError):
    """Writing failed (exit code 6)."""

    exit_code = 6


class ResumeError(PlanRefusedError):
    """A journal beside OUT.part belongs to another source, plan or version (exit code 5)."""


class VerificationError(QuantkitError):
    """What was written does not read back as it should, or a self-check failed (exit code 7)."""

    exit_code = 7
