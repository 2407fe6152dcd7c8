"""Shards that are not there, that the index contradicts, or that are no safetensors files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from tests.checkpoint.malformed.kind import INDEX, SHARDS, Draft, Kind

HEAD = "language_model.lm_head.weight"  # in the first shard
NORM = "language_model.model.norm.weight"  # in the last


def kinds() -> Iterator[Kind]:
    yield from _absent()
    yield from _index_files()
    yield from _disagreements()
    yield from _foreign()


def _kind(name: str, match: str, spoil: Callable[[Draft], Any]) -> Kind:
    return Kind(f"shards-{name}", "open", "CheckpointError", match, spoil)


def _absent() -> Iterator[Kind]:
    yield _kind("first-missing", f"{SHARDS[0]}: missing; 1 of 3", lambda draft: draft.remove(SHARDS[0]))
    yield _kind("last-missing", f"{SHARDS[2]}: missing; 1 of 3", lambda draft: draft.remove(SHARDS[2]))
    yield _kind("two-missing", f"{SHARDS[0]}: missing; 2 of 3 .*{SHARDS[1]}", lambda draft: draft.remove(*SHARDS[:2]))
    yield _kind("missing-without-index", f"{SHARDS[1]}: missing; 1 of 3", lambda draft: draft.remove(INDEX, SHARDS[1]))
    yield _kind("all-missing-without-index", "no safetensors file", lambda draft: draft.remove(INDEX, *SHARDS))

    def folder(draft: Draft) -> None:
        draft.remove(SHARDS[1])
        (draft.root / SHARDS[1]).mkdir()

    yield _kind("folder-for-a-shard", f"{SHARDS[1]}: a folder", folder)

    def two_series(draft: Draft) -> None:
        draft.remove(INDEX)
        draft.rename(SHARDS[2], "model-00003-of-00004.safetensors")

    yield _kind("two-series-without-index", "do not form one series", two_series)

    def beyond(draft: Draft) -> None:
        draft.remove(INDEX)
        draft.rename(SHARDS[2], "model-00004-of-00003.safetensors")

    yield _kind("number-beyond-its-series", "00004-of-00003.* outside of its own series", beyond)

    def unnumbered(draft: Draft) -> None:
        draft.remove(INDEX)
        for number, shard in enumerate(SHARDS):
            draft.rename(shard, f"part{number}.safetensors")

    yield _kind("unnumbered-without-index", "cannot be told which", unnumbered)

    def whole_beside(draft: Draft) -> None:
        draft.remove(INDEX)
        draft.write("model.safetensors", draft.read(SHARDS[0]))

    yield _kind("whole-file-beside-a-series", "do not form one series", whole_beside)
    yield _kind(
        "surplus-beside-index",
        "model-00004-of-00004.safetensors: a shard that model.safetensors.index.json does not name",
        lambda draft: draft.write("model-00004-of-00004.safetensors", draft.read(SHARDS[0])),
    )


def _index_files() -> Iterator[Kind]:
    index = re.escape(INDEX)

    def text(name: str, match: str, change: Callable[[str], str]) -> Kind:
        return _kind(
            f"index-{name}", f"{index}: .*{match}", lambda draft: draft.write(INDEX, change(draft.read(INDEX).decode()))
        )

    def value(name: str, match: str, change: Callable[[Any], Any]) -> Kind:
        return _kind(f"index-{name}", f"{index}: .*{match}", lambda draft: draft.remake(INDEX, change))

    yield text("empty", "not valid JSON", lambda text: "")
    yield text("truncated", "not valid JSON", lambda text: text[: len(text) // 2])
    yield text(
        "key-twice", "is given twice", lambda text: text.replace('"weight_map": {', f'"weight_map": {{"{HEAD}": "x",')
    )
    yield value("a-list", "a JSON object was expected", lambda document: [document])
    yield value("without-map", "weight_map is missing", lambda document: {"metadata": document["metadata"]})
    yield value("empty-map", "weight_map is missing, empty", lambda document: {"weight_map": {}})
    yield value("map-is-a-list", "weight_map", lambda document: {"weight_map": list(document["weight_map"])})
    for name, file in (("number", 1), ("above", "../x.safetensors"), ("absolute", "/x.safetensors"), ("nothing", "")):
        yield value(
            f"file-name-{name}",
            "is not a plain file name",
            lambda document, file=file: {"weight_map": document["weight_map"] | {HEAD: file}},
        )
    yield value(
        "names-pytorch-file",
        "'pytorch_model.bin', .*, is not a safetensors file",
        lambda document: {"weight_map": document["weight_map"] | {HEAD: "pytorch_model.bin"}},
    )

    def two(draft: Draft) -> None:
        draft.write("a.safetensors.index.json", draft.read(INDEX))
        draft.rename(INDEX, "b.safetensors.index.json")

    yield _kind("two-indexes", "2 indexes", two)


def _disagreements() -> Iterator[Kind]:
    yield _kind(
        "tensor-only-in-index",
        f"{SHARDS[1]}: tensor 'ghost' is not in this shard",
        lambda draft: draft.edit(INDEX, lambda index: index["weight_map"].update(ghost=SHARDS[1])),
    )
    yield _kind(
        "tensor-not-in-index",
        f"{SHARDS[0]}: tensor '{HEAD}' is in this shard, but {INDEX} does not name it",
        lambda draft: draft.edit(INDEX, lambda index: index["weight_map"].pop(HEAD)),
    )
    yield _kind(
        "tensor-in-another-shard",
        f"tensor '{HEAD}'",
        lambda draft: draft.edit(INDEX, lambda index: index["weight_map"].update({HEAD: SHARDS[2]})),
    )

    def twice(draft: Draft) -> None:
        found: dict[str, Any] = {}
        draft.tensors(SHARDS[2], lambda tensors: found.update({NORM: tensors[NORM]}))
        draft.tensors(SHARDS[0], lambda tensors: tensors.update(found))

    yield _kind("tensor-in-two", f"tensor '{NORM}' is in two shards", twice)

    def swapped(draft: Draft) -> None:
        first, second = draft.read(SHARDS[0]), draft.read(SHARDS[1])
        draft.write(SHARDS[0], second)
        draft.write(SHARDS[1], first)

    yield _kind("two-swapped", f"{SHARDS[0]}: tensor .* not in this shard", swapped)

    def same(draft: Draft) -> None:
        draft.write(SHARDS[1], draft.read(SHARDS[0]))

    yield _kind("one-copied-over-another", "is in two shards", same)


def _foreign() -> Iterator[Kind]:
    def only(*names: str) -> Callable[[Draft], None]:
        def spoil(draft: Draft) -> None:
            draft.remove(INDEX, *SHARDS)
            for name in names:
                draft.write(name, b"PK\x03\x04" + bytes(100))

        return spoil

    yield _kind("only-pytorch-bin", r"only PyTorch weights \(pytorch_model.bin\)", only("pytorch_model.bin"))
    yield _kind(
        "only-numbered-bin",
        "only PyTorch weights",
        only("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin", "pytorch_model.bin.index.json"),
    )
    yield _kind("only-pth", r"only PyTorch weights \(consolidated.00.pth\)", only("consolidated.00.pth", "params.json"))
    yield _kind("only-gguf", r"holds GGUF files \(model.gguf\)", only("model.gguf"))

    def meta(draft: Draft) -> None:
        only("consolidated.00.pth", "params.json")(draft)
        draft.remove("config.json")

    yield _kind("meta-layout", "Meta's original layout", meta)
    for name, data, match in (
        ("pytorch-as-shard", b"PK\x03\x04" + bytes(5000), "a PyTorch .zip. file"),
        ("gguf-as-shard", b"GGUF\x03\0\0\0" + bytes(5000), "a GGUF file"),
        ("web-page-as-shard", b"<!DOCTYPE html><html>login</html>", "a web page"),
        ("zeros-as-shard", bytes(5000), "does not begin with"),
    ):
        yield _kind(name, f"{SHARDS[1]}: .*{match}", lambda draft, data=data: draft.write(SHARDS[1], data))
