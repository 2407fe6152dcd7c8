"""Where a command writes its findings once it has them."""

from __future__ import annotations

import shlex
import tempfile
from pathlib import Path

from quantkit.errors import UsageError


def check_result_file(name: str | None) -> None:
    """UsageError where a file could not be written once hours have passed; click has refused a folder. None and "-",
    which is stdout, are none."""
    if name is None or name == "-":
        return
    path = Path(name)
    folder = path.absolute().parent
    if not folder.is_dir():
        raise UsageError(f"{path}: there is no folder {folder}", hint=f"Create it: mkdir -p {shlex.quote(str(folder))}")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror}", hint="Choose another folder.") from error
