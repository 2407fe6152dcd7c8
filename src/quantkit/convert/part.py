"""An output file while it is unfinished: OUT.part, written at positions by several threads, renamed when whole."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import NoReturn

from quantkit.errors import OutputError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_PREALLOCATION = {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.ENODEV}


def part_path(path: Path) -> Path:
    """OUT -> OUT.part."""
    return path.with_name(path.name + ".part")


class Part:
    """One output file. Positional writes are safe from any thread.

    Args:
        path: final name.
        n_bytes: final size.
    """

    def __init__(self, path: Path, n_bytes: int) -> None:
        self.path = path
        self.part = part_path(path)
        self.n_bytes = n_bytes
        self._fd = -1

    def open(self) -> None:
        """Create OUT.part at its full size, or open the one that an earlier run left.

        Raises:
            OutputError: no room, or no permission. A file that this call created is gone again then.
        """
        created = not self.part.exists()
        try:
            self._fd = os.open(self.part, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o644)
            if os.fstat(self._fd).st_size != self.n_bytes:
                self._allocate()
        except OSError as error:
            self.close()
            if created:
                self.part.unlink(missing_ok=True)
            self._fail(error, resumes=not created)

    def _allocate(self) -> None:
        os.ftruncate(self._fd, 0)
        allocate = getattr(os, "posix_fallocate", None)
        if allocate is not None and self.n_bytes:
            try:
                allocate(self._fd, 0, self.n_bytes)
                return
            except OSError as error:
                if error.errno not in _NO_PREALLOCATION:
                    raise
        os.ftruncate(self._fd, self.n_bytes)

    def write(self, data: memoryview, offset_bytes: int) -> None:
        """Write all of `data` at `offset_bytes`."""
        try:
            while data:
                written = os.pwrite(self._fd, data, offset_bytes)
                data, offset_bytes = data[written:], offset_bytes + written
        except OSError as error:
            self._fail(error, resumes=True)

    def sync(self) -> None:
        """Wait until everything written so far is on the disk."""
        try:
            getattr(os, "fdatasync", os.fsync)(self._fd)
        except OSError as error:
            self._fail(error, resumes=True)

    def publish(self) -> None:
        """Give the file its final name (atomically), if that has not happened yet."""
        try:
            self.close()
            if self.part.exists():
                self.part.replace(self.path)
        except OSError as error:
            self._fail(error, resumes=True)

    def discard(self) -> None:
        """Close and delete."""
        self.close()
        self.part.unlink(missing_ok=True)

    def close(self) -> None:
        """Close; OUT.part stays."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _fail(self, error: OSError, *, resumes: bool) -> NoReturn:
        onward = "run the same command again" + (": it goes on where it stopped." if resumes else ".")
        if error.errno not in _FULL:
            raise OutputError(
                f"{self.part}: writing failed: {error.strerror}", hint=f"See to the cause and {onward}"
            ) from error
        what = "the file may not grow that large" if error.errno == errno.EFBIG else "no space left"
        held = self.part.stat().st_blocks * 512 if self.part.exists() else 0
        needed, free = max(0, self.n_bytes - held), shutil.disk_usage(self.path.parent).free
        raise OutputError(
            f"{self.part}: {what}: {needed:,} of its {self.n_bytes:,} bytes are still needed, {free:,} bytes are free",
            hint=f"Make room (or raise the limit) and {onward}",
        ) from error
