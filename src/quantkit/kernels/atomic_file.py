"""A file that appears under its name only when it is whole and on the disk."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from quantkit.errors import OutputError


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Write beside `path`, sync, and rename over it. After an error, or a kill, `path` is what it was before.

    Raises:
        OutputError: writing failed; what was written so far has been deleted.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        try:
            with part.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
    except OSError as error:
        raise OutputError(
            f"{path}: writing failed: {error.strerror or error}", hint="See to the cause and write it again."
        ) from error


def write_array(file: BinaryIO, array: npt.NDArray[Any]) -> None:
    """Append the elements in C order; rows that lie apart are brought together a matrix at a time."""
    for part in array if array.ndim > 2 and not array.flags.c_contiguous else [array]:
        file.write(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)


def sync_folder(folder: Path) -> None:
    """Make renames and deletions in `folder` durable, where the system lets a folder be synced."""
    with contextlib.suppress(OSError):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
