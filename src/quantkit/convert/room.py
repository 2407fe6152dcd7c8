"""Room for the outputs: folders, existing files, disk, memory."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from quantkit.convert.part import part_path
from quantkit.convert.plan import DiskNeed
from quantkit.errors import PlanRefusedError, UsageError


def check_folders(paths: Sequence[Path]) -> None:
    """Refuse outputs whose folder is missing or read-only, or whose name is a folder's.

    Raises:
        PlanRefusedError, UsageError
    """
    for path in paths:
        if path.is_dir():
            raise UsageError(f"{path} is a folder", hint=f"Name a file in it: {path / 'model.gguf'}")
        folder = path.parent
        if not folder.is_dir():
            why = "is not a folder" if folder.exists() else "does not exist"
            raise PlanRefusedError(f"the output folder {folder} {why}", hint=f"Create it: mkdir -p {folder}")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PlanRefusedError(f"the output folder {folder} is not writable", hint="Choose another folder.")
        if shutil.disk_usage(folder).total == 0:
            raise PlanRefusedError(
                f"the output folder {folder} is on a file system that stores nothing (such as /proc)",
                hint="Choose another folder.",
            )


def check_existing(paths: Sequence[Path], *, force: bool, renames_left: bool) -> None:
    """Refuse to overwrite.

    Args:
        renames_left: an earlier run of this plan was stopped between its renames: files without OUT.part are its own.

    Raises:
        PlanRefusedError: an output exists, without `force`.
    """
    for path in paths:
        ours = renames_left and not part_path(path).exists()
        if os.path.lexists(path) and not force and not ours:
            what = "exists" if path.exists() else f"is a symlink to {path.readlink()}, which is not there"
            raise PlanRefusedError(f"{path} {what}", hint="Pass --force to overwrite it, or choose another name.")


def disk_needs(sizes: Sequence[tuple[Path, int]]) -> tuple[DiskNeed, ...]:
    """Bytes still to be claimed, one entry per file system; what unfinished files hold already is taken off.

    Args:
        sizes: (final path, size); a path that exists whole and has no OUT.part any more is not passed.
    """
    by_device: dict[int, DiskNeed] = {}
    for path, n_bytes in sizes:
        folder = path.parent.absolute()
        part = part_path(path)
        already = min(n_bytes, part.stat().st_blocks * 512) if part.exists() else 0
        device = folder.stat().st_dev
        before = by_device.get(device, DiskNeed(folder, 0, shutil.disk_usage(folder).free))
        by_device[device] = DiskNeed(
            before.folder,
            before.needed_bytes + n_bytes - already,
            before.free_bytes,
            before.already_bytes + already,
        )
    return tuple(by_device.values())


def check_disk(needs: Sequence[DiskNeed]) -> None:
    """Refuse what does not fit.

    Raises:
        PlanRefusedError
    """
    for need in needs:
        if need.needed_bytes > need.free_bytes:
            raise PlanRefusedError(
                f"{need.folder} has {need.free_bytes:,} bytes free, and {need.needed_bytes:,} are needed",
                hint=f"Make room for {need.needed_bytes - need.free_bytes:,} bytes, or write to another disk.",
            )


def available_ram_bytes() -> int | None:
    """Memory to be had now: the smaller of MemAvailable and what the cgroup leaves. None if unknown."""
    found = [value for value in (_meminfo(), _cgroup()) if value is not None]
    if found:
        return min(found)
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None


def check_ram(peak_ram_bytes: int, available: int | None) -> None:
    """Refuse what would be killed.

    Raises:
        PlanRefusedError
    """
    if available is not None and peak_ram_bytes > available:
        raise PlanRefusedError(
            f"the conversion needs about {peak_ram_bytes:,} bytes of memory, and {available:,} are available",
            hint="Close other programs, or convert fewer types at once.",
        )


def _meminfo() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def _cgroup() -> int | None:
    """What cgroup v2 leaves to this process's group; file pages in it can be reclaimed and do not count."""
    root = Path("/sys/fs/cgroup")
    try:
        limit = (root / "memory.max").read_text().strip()
        if limit == "max":
            return None
        used = int((root / "memory.current").read_text())
        pages = dict(line.split() for line in (root / "memory.stat").read_text().splitlines())
        return max(0, int(limit) - used + int(pages.get("file", 0)))
    except (OSError, ValueError):
        return None
