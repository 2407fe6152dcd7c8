"""From what the user typed to the folder that holds one checkpoint, also inside a Hugging Face cache."""

from __future__ import annotations

import os
from pathlib import Path

from quantkit.errors import CheckpointError

_CACHE_PREFIX = "models--"


def resolve_folder(path: str | os.PathLike[str]) -> Path:
    """The folder with config.json and the shards.

    A Hugging Face cache folder (`models--org--name`) resolves to its snapshot when it holds exactly one.

    Raises:
        CheckpointError: not a folder, or a folder that holds several checkpoints, or none.
    """
    if "://" in os.fspath(path):
        raise CheckpointError(
            f"{os.fspath(path)}: remote checkpoints are not read",
            hint="Download it with `hf download ORG/MODEL --local-dir FOLDER` and give the folder.",
        )
    root = Path(path)
    _refuse_undecodable(root)
    if root.is_symlink() and not root.exists():
        raise CheckpointError(f"{root}: broken symlink: {root.readlink()} is not there")
    if not root.exists():
        raise CheckpointError(f"{root}: no such folder", hint="Give the folder that holds config.json and the shards.")
    if not root.is_dir():
        raise CheckpointError(
            f"{root}: a file, where a checkpoint folder is wanted",
            hint=f"Give the folder that holds config.json and the shards, perhaps {root.parent}.",
        )
    if root.name.startswith(_CACHE_PREFIX) or (root / "snapshots").is_dir():
        return _snapshot(root)
    cached = sorted(child.name for child in _children(root) if child.name.startswith(_CACHE_PREFIX))
    if cached:
        raise CheckpointError(
            f"{root}: a Hugging Face cache with {len(cached)} models, not one checkpoint",
            hint=f"Give one of its folders: {', '.join(cached[:5])}{', …' if len(cached) > 5 else ''}.",
        )
    return root


def _refuse_undecodable(root: Path) -> None:
    """The model may be named after its folder, and GGUF holds text as UTF-8."""
    name = root.absolute().name
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise CheckpointError(
            f"{os.fsencode(root)!r}: the name of the folder is not UTF-8, and the model is named after it",
            hint="Rename the folder, or give a symlink to it with another name.",
        ) from error


def _snapshot(repo: Path) -> Path:
    if (repo / "config.json").exists():
        return repo
    snapshots = sorted(child for child in _children(repo / "snapshots") if child.is_dir())
    if not snapshots:
        raise CheckpointError(
            f"{repo}: a Hugging Face cache folder without a snapshot",
            hint="The download has not begun or was removed; run `hf download` for this model.",
        )
    if len(snapshots) == 1:
        return snapshots[0]
    names = _references(repo)
    listed = ", ".join(f"{child} ({names[child.name]})" if child.name in names else str(child) for child in snapshots)
    raise CheckpointError(
        f"{repo}: holds {len(snapshots)} snapshots, which may differ", hint=f"Give one of them: {listed}."
    )


def _references(repo: Path) -> dict[str, str]:
    """Commit -> the branches and tags that point at it."""
    found: dict[str, str] = {}
    refs = repo / "refs"
    for file in sorted(refs.rglob("*")) if refs.is_dir() else []:
        if file.is_file():
            commit, name = file.read_text(encoding="utf-8", errors="replace").strip(), file.relative_to(refs).as_posix()
            found[commit] = f"{found[commit]}, {name}" if commit in found else name
    return found


def _children(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be listed: {error.strerror or error}") from error
