"""Traces of downloads that have not come to their end."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from pathlib import Path

from quantkit.errors import CheckpointError

# Suffixes under which downloaders keep a file, or a control file beside it, until it is whole. aria2 gives the file its
# final name and length at once, full of zeros, so its control file is the only sign.
_SUFFIXES = (".incomplete", ".aria2", ".part", ".crdownload", ".!ut")
_LOCAL = Path(".cache", "huggingface", "download")
_HINT = "Finish the download (run the same `hf download` again), or remove the leftover if the file is whole."


def refuse_unfinished(root: Path, names: Iterable[str]) -> None:
    """Raise CheckpointError if one of the files `names` of the folder `root` is still being downloaded."""
    leftovers = _leftovers(root)
    for name in names:
        for leftover in leftovers:
            if _belongs(leftover.name, name):
                raise CheckpointError(f"{root / name}: unfinished download: {leftover} is still there", hint=_HINT)


def explain_absence(path: Path) -> tuple[str, str]:
    """Why a file that must be there is not: (what is the matter, the next step)."""
    for leftover in _leftovers(path.parent):
        if _belongs(leftover.name, path.name):
            return f"unfinished download: only {leftover} is there", _HINT
    unfinished = _cache_blobs(path.parent)
    if path.is_symlink():
        target = path.readlink()
        if unfinished:
            return f"broken symlink to {target}, and unfinished downloads lie beside it ({unfinished[0].name})", _HINT
        return f"broken symlink: {target} is not there", "Run `hf download` for this model again."
    if unfinished:
        return f"unfinished download: the cache holds {unfinished[0]}", _HINT
    return "missing", "Download the checkpoint again, or copy the missing files into the folder."


def _leftovers(root: Path) -> list[Path]:
    folders = [root, root / _LOCAL]
    return sorted(
        child for folder in folders if folder.is_dir() for child in folder.iterdir() if child.name.endswith(_SUFFIXES)
    )


def _belongs(leftover: str, name: str) -> bool:
    if any(leftover == name + suffix for suffix in _SUFFIXES):
        return True
    # In a local folder huggingface_hub writes HASH.ETAG.incomplete, older versions NAME.ETAG.incomplete.
    digest = hashlib.sha1(f"{name}.metadata".encode(), usedforsecurity=False).digest()
    prefixes = (base64.urlsafe_b64encode(digest).decode(), name)
    return leftover.endswith(".incomplete") and leftover.startswith(tuple(f"{prefix}." for prefix in prefixes))


def _cache_blobs(snapshot: Path) -> list[Path]:
    """Unfinished blobs of a Hugging Face cache that `snapshot` is a snapshot of."""
    if snapshot.parent.name != "snapshots":
        return []
    return sorted((snapshot.parent.parent / "blobs").glob("*.incomplete"))
