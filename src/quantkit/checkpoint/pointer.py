"""Files that stand in for content which is somewhere else: Git-LFS and Xet pointers, saved web pages."""

from __future__ import annotations

from pathlib import Path

from quantkit.errors import CheckpointError

_POINTERS = (
    (b"version https://git-lfs.github.com/spec/", "a Git-LFS pointer", "Run `git lfs pull` in the folder, or"),
    (b"version https://hawser.github.com/spec/", "a Git-LFS pointer", "Run `git lfs pull` in the folder, or"),
    (b"# xet version ", "a Xet pointer", "Install git-xet and check the files out again, or"),
)
_PAGES = (b"<!doctype html", b"<html")
# Longest prefix above, with room for leading white space.
HEAD_BYTES = 64


def refuse_pointer(head: bytes, path: Path) -> None:
    """Raise CheckpointError where the first bytes of a file (64 are enough) say that its content is not here."""
    start = head[:HEAD_BYTES].lstrip()
    for prefix, noun, advice in _POINTERS:
        if start.startswith(prefix):
            raise CheckpointError(
                f"{path}: this is {noun}, not the file itself",
                hint=f"{advice} download the checkpoint with `hf download`.",
            )
    if start.lower().startswith(_PAGES):
        raise CheckpointError(
            f"{path}: this is a web page, not the file itself",
            hint="The download was answered with a page (a login or an error?); download the file again.",
        )
