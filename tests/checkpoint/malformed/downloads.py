"""Pointers to content that is elsewhere, and downloads that have not ended."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator
from typing import Any

from tests.checkpoint.malformed.kind import INDEX, SHARDS, Draft, Kind

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "ab" * 32 + "\nsize 3546072\n"
XET = "# xet version 0\nfilesize = 3546072\nhash = '" + "ab" * 32 + "'\n"
_COMMIT = "c0ffee" * 6


def kinds() -> Iterator[Kind]:
    yield from _pointers()
    yield from _unfinished()
    yield from _caches()


def _kind(name: str, match: str, spoil: Callable[[Draft], Any], *, stage: Any = "open") -> Kind:
    return Kind(f"download-{name}", stage, "CheckpointError", match, spoil)


def _pointers() -> Iterator[Kind]:
    for file in (*SHARDS[:2], INDEX, "config.json", "generation_config.json", "preprocessor_config.json"):
        yield _kind(
            f"lfs-{file.removesuffix('.json').removesuffix('.safetensors')}",
            f"{file}: this is a Git-LFS pointer",
            lambda draft, file=file: draft.write(file, LFS),
        )
    for file in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"):
        yield _kind(
            f"lfs-{file.partition('.')[0]}",
            f"{file}: this is a Git-LFS pointer",
            lambda draft, file=file: draft.write(file, LFS),
            stage="tokenizer",
        )
    yield _kind("xet-shard", f"{SHARDS[2]}: this is a Xet pointer", lambda draft: draft.write(SHARDS[2], XET))
    yield _kind(
        "web-page-config", "config.json: this is a web page", lambda draft: draft.write("config.json", "<html>")
    )


def _unfinished() -> Iterator[Kind]:
    for suffix in (".incomplete", ".part", ".crdownload"):
        yield _kind(
            f"shard{suffix}",
            f"{SHARDS[1]}: unfinished download: only .*{SHARDS[1]}{suffix}",
            lambda draft, suffix=suffix: draft.rename(SHARDS[1], SHARDS[1] + suffix),
        )
    yield _kind(
        "aria2-beside-shard",
        f"{SHARDS[1]}: unfinished download",
        lambda draft: draft.write(SHARDS[1] + ".aria2", "control"),
    )
    yield _kind(
        "config.incomplete",
        "config.json: unfinished download",
        lambda draft: draft.rename("config.json", "config.json.incomplete"),
    )
    yield _kind(
        "tokenizer.incomplete",
        "tokenizer.json: unfinished download",
        lambda draft: draft.rename("tokenizer.json", "tokenizer.json.incomplete"),
    )

    def local(draft: Draft) -> None:
        digest = hashlib.sha1(f"{SHARDS[0]}.metadata".encode()).digest()
        draft.write(f".cache/huggingface/download/{base64.urlsafe_b64encode(digest).decode()}.etag.incomplete", "")

    yield _kind("local-folder-goes-on", f"{SHARDS[0]}: unfinished download", local)

    def nothing_yet(draft: Draft) -> None:
        draft.remove(INDEX, *SHARDS)
        draft.write(".cache/huggingface/download/abc.etag.incomplete", "")

    yield _kind("local-folder-began", "no safetensors file, only an unfinished download", nothing_yet)
    for name, file in (("shard", SHARDS[1]), ("config", "config.json"), ("index", INDEX)):
        yield _kind(
            f"broken-link-{name}",
            f"{file}: broken symlink",
            lambda draft, file=file: (draft.remove(file), (draft.root / file).symlink_to("nowhere")),
        )


def _cache(draft: Draft, *, snapshots: int) -> None:
    """Put a Hugging Face cache folder of one model into the draft, and open that."""
    repo = draft.root / "models--meta-llama--tiny"
    for number in range(snapshots):
        snapshot = repo / "snapshots" / f"{number}{_COMMIT}"
        snapshot.mkdir(parents=True)
        for file in list(draft.root.iterdir()):
            if file.is_symlink():
                (snapshot / file.name).symlink_to(file.readlink())
    (repo / "snapshots").mkdir(parents=True, exist_ok=True)
    (repo / "blobs").mkdir()
    draft.opened_as = repo


def _caches() -> Iterator[Kind]:
    def blob(draft: Draft) -> None:
        _cache(draft, snapshots=1)
        (draft.opened_as / "snapshots" / f"0{_COMMIT}" / SHARDS[2]).unlink()
        (draft.opened_as / "blobs" / "123.incomplete").touch()

    yield _kind("cache-blob.incomplete", f"{SHARDS[2]}: unfinished download: .*123.incomplete", blob)

    def gone(draft: Draft) -> None:
        _cache(draft, snapshots=1)
        link = draft.opened_as / "snapshots" / f"0{_COMMIT}" / SHARDS[2]
        link.unlink()
        link.symlink_to("../../blobs/gone")

    yield _kind("cache-blob-gone", f"{SHARDS[2]}: broken symlink", gone)
    yield _kind("cache-of-two-snapshots", "holds 2 snapshots", lambda draft: _cache(draft, snapshots=2))
    yield _kind("cache-without-snapshot", "without a snapshot", lambda draft: _cache(draft, snapshots=0))

    def many(draft: Draft) -> None:
        _cache(draft, snapshots=1)
        draft.opened_as = draft.root

    yield _kind("cache-of-models", "a Hugging Face cache with 1 models", many)
    yield _kind("no-folder", "no such folder", lambda draft: setattr(draft, "opened_as", draft.root / "nowhere"))
    yield _kind(
        "file-for-a-folder",
        "config.json: a file, where a checkpoint folder is wanted",
        lambda draft: setattr(draft, "opened_as", draft.root / "config.json"),
    )
