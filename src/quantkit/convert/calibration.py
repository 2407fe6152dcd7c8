"""Statistics for a conversion, collected just before it: `convert(..., calibrate=...)`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypedDict

from quantkit.calibration import Cost, Progress, calibrate, is_published
from quantkit.convert.request import PathLike
from quantkit.errors import PlanRefusedError, UsageError


class Calibrating(TypedDict, total=False):
    """Arguments of `quantkit.calibrate`, which documents them; without any, all the text that comes with quantkit."""

    text: Iterable[PathLike] | None
    context: int
    tokens: int | None
    min_tokens_per_expert: int
    max_tokens: int | None
    parse_special: bool
    max_ram_bytes: int | None
    announce: Callable[[Cost], None] | None
    progress: Callable[[Progress], None] | None


def statistics_path(checkpoint: PathLike, out: PathLike | None) -> Path:
    """Where the statistics of a conversion to `out` go: beside it."""
    if out is None:
        return Path(f"{Path(checkpoint).resolve().name}-imatrix.gguf")
    if "{type}" in os.fspath(out):
        return Path(os.fspath(out).replace("{type}", "imatrix"))
    return Path(out).with_suffix(".imatrix.gguf")


def refuse_impossible(path: Path, *, imatrix: PathLike | None, mmproj_only: bool, force: bool) -> None:
    """Refuse what would be of no use, before anything is read.

    Raises:
        UsageError: there are statistics already, or nothing that they are for.
        PlanRefusedError: the file exists.
    """
    if mmproj_only:
        raise UsageError("--calibrate is of no use to an mmproj", hint="Leave away --mmproj-only or --calibrate.")
    if imatrix is not None:
        raise UsageError("--imatrix and --calibrate are both given", hint="Statistics come from a file or from text.")
    if os.path.lexists(path) and not force and not is_published(path):
        raise PlanRefusedError(
            f"{path} exists",
            hint=f"Give --imatrix {path} instead of --calibrate to use it, or --force to collect it again.",
        )


def collect(checkpoint: PathLike, path: Path, options: Calibrating, *, threads: int, force: bool) -> None:
    """Write the statistics to `path`, or find that the same call did so before, until `forget(path)`.

    Raises:
        As `calibrate`; UsageError for an option that it does not have.
    """
    unknown = set(options) - set(Calibrating.__annotations__)
    if unknown:
        raise UsageError(
            f"calibrate has no {', '.join(sorted(unknown))}", hint=f"It has {', '.join(Calibrating.__annotations__)}."
        )
    calibrate(checkpoint, path, threads=threads, force=force, keep_journal=True, **options)
