"""The safetensors files of a checkpoint: which there are, and one table of their tensors."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from quantkit.checkpoint.document import read_document
from quantkit.checkpoint.download import explain_absence, refuse_unfinished
from quantkit.checkpoint.header import Header, TensorEntry, read_header
from quantkit.errors import CheckpointError

_INDEX = "model.safetensors.index.json"
_NUMBERED = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors")
_OTHER_WEIGHTS = (".bin", ".pth", ".pt", ".ckpt", ".gguf", ".h5", ".msgpack")


def read_shards(root: Path) -> tuple[tuple[Header, ...], dict[str, TensorEntry]]:
    """Headers of all shards in `root`, in the order of their names, and one table of their tensors by shard and place.

    Raises:
        CheckpointError: a shard is missing, unfinished or malformed; index and shards disagree; a tensor occurs twice.
    """
    index = _find_index(root)
    weight_map = _read_index(index) if index else None
    names = sorted(set(weight_map.values())) if weight_map is not None else _unindexed(root)
    _refuse_absent(root, names)
    refuse_unfinished(root, names)
    if index is not None:
        _refuse_strangers(root, names, index)
    headers = tuple(read_header(root / name) for name in names)
    tensors = _merge(headers)
    if index is not None and weight_map is not None:
        _compare(headers, weight_map, index)
    return headers, tensors


def _merge(headers: Sequence[Header]) -> dict[str, TensorEntry]:
    tensors: dict[str, TensorEntry] = {}
    for header in headers:
        for entry in header.entries:
            other = tensors.setdefault(entry.name, entry)
            if other is not entry:
                raise CheckpointError(
                    f"tensor {entry.name!r} is in two shards, {other.file} and {entry.file}",
                    hint="One of them is a leftover of another version; download the checkpoint into an empty folder.",
                )
    return tensors


def _find_index(root: Path) -> Path | None:
    preferred = root / _INDEX
    if preferred.exists() or preferred.is_symlink():
        return preferred
    found = sorted(root.glob("*.safetensors.index.json"))
    if len(found) > 1:
        raise CheckpointError(
            f"{root}: {len(found)} indexes and none called {_INDEX}: {', '.join(path.name for path in found)}",
            hint="Leave only the index of the weights to convert in the folder.",
        )
    return found[0] if found else None


def _read_index(path: Path) -> dict[str, str]:
    if not path.exists():
        what, hint = explain_absence(path)
        raise CheckpointError(f"{path}: {what}", hint=hint)
    weight_map = read_document(path).get("weight_map")
    hint = "The index is damaged; download it again."
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path}: weight_map is missing, empty or not an object", hint=hint)
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or not name or Path(name).name != name or "\\" in name:
            raise CheckpointError(f"{path}: {name!r}, file of tensor {tensor!r}, is not a plain file name", hint=hint)
        if not name.endswith(".safetensors"):
            raise CheckpointError(
                f"{path}: {name!r}, file of tensor {tensor!r}, is not a safetensors file",
                hint="Save the model in safetensors format first.",
            )
    return weight_map


def _unindexed(root: Path) -> list[str]:
    names = sorted(path.name for path in root.glob("*.safetensors"))
    if not names:
        raise _without_weights(root)
    numbered = [match for name in names if (match := _NUMBERED.fullmatch(name))]
    if not numbered:
        return [_single(root, names)]
    series = {(match["stem"], match["count"]) for match in numbered}
    if len(series) > 1 or len(numbered) != len(names):
        raise CheckpointError(
            f"{root}: no {_INDEX}, and these files do not form one series: {', '.join(names[:8])}",
            hint="Leave only the shards of one version in the folder, or restore the index.",
        )
    stem, count = series.pop()
    wanted = [f"{stem}-{number:05d}-of-{count}.safetensors" for number in range(1, int(count) + 1)]
    if surplus := sorted(set(names) - set(wanted)):
        raise CheckpointError(f"{root}: {surplus[0]} numbers itself outside of its own series")
    return wanted


def _single(root: Path, names: list[str]) -> str:
    if len(names) == 1:
        return names[0]
    if "model.safetensors" in names:  # the name that transformers looks for; others are adapters and the like
        return "model.safetensors"
    raise CheckpointError(
        f"{root}: no {_INDEX}, and it cannot be told which of these files make up the model: {', '.join(names[:8])}",
        hint="Restore the index, or leave only the model's files in the folder.",
    )


def _without_weights(root: Path) -> CheckpointError:
    for leftover in sorted(root.rglob("*.incomplete")):
        return CheckpointError(
            f"{root}: no safetensors file, only an unfinished download: {leftover}",
            hint="Finish the download: run the same `hf download` again.",
        )
    unfinished, _ = explain_absence(root / "model.safetensors")
    if unfinished != "missing":
        return CheckpointError(f"{root}: no safetensors file: {unfinished}", hint="Run `hf download` again.")
    others = sorted(path.name for path in root.iterdir() if path.suffix in _OTHER_WEIGHTS)
    if not others:
        return CheckpointError(f"{root}: no safetensors file", hint="Give the folder that holds the model's shards.")
    if others[0].endswith(".gguf"):
        return CheckpointError(
            f"{root}: holds GGUF files ({others[0]}), which are conversion results",
            hint="Give the original safetensors checkpoint.",
        )
    meta = (root / "params.json").exists()
    hint = (
        "This is Meta's original layout: download the Hugging Face version of the model, which has safetensors files."
        if meta
        else "Load it once with transformers and `save_pretrained(FOLDER)`, which writes safetensors files."
    )
    return CheckpointError(f"{root}: only PyTorch weights ({others[0]}), no safetensors file", hint=hint)


def _refuse_absent(root: Path, names: Sequence[str]) -> None:
    absent = [name for name in names if not (root / name).is_file()]
    if not absent:
        return
    if (root / absent[0]).is_dir():
        raise CheckpointError(f"{root / absent[0]}: a folder, where a shard is wanted")
    what, hint = explain_absence(root / absent[0])
    listed = ", ".join(absent[1:6]) + (", …" if len(absent) > 6 else "")
    rest = f" (and so on with {listed})" if listed else ""
    raise CheckpointError(
        f"{root / absent[0]}: {what}; {len(absent)} of {len(names)} shards are not there{rest}", hint=hint
    )


def _refuse_strangers(root: Path, names: Sequence[str], index: Path) -> None:
    """A numbered shard, or model.safetensors, that the index does not name may hold weights of another version."""
    known = set(names)
    for path in sorted(root.glob("*.safetensors")):
        if path.name not in known and (path.name == "model.safetensors" or _NUMBERED.fullmatch(path.name)):
            raise CheckpointError(
                f"{path}: a shard that {index.name} does not name",
                hint="Move it out of the folder if it is a leftover of another version; else restore its index.",
            )


def _compare(headers: Sequence[Header], weight_map: dict[str, str], index: Path) -> None:
    hint = "Index and shards are of different versions; download the checkpoint into an empty folder."
    for header in headers:
        present = {entry.name for entry in header.entries}
        promised = {tensor for tensor, name in weight_map.items() if name == header.file.name}
        if lacking := sorted(promised - present):
            raise CheckpointError(
                f"{header.file}: {_some(lacking)} not in this shard, though {index.name} says so", hint=hint
            )
        if strangers := sorted(present - promised):
            place = weight_map.get(strangers[0])
            why = f"names {place} for it" if place else "does not name it"
            raise CheckpointError(f"{header.file}: {_some(strangers)} in this shard, but {index.name} {why}", hint=hint)


def _some(names: Sequence[str]) -> str:
    rest = f" and {len(names) - 1} more are" if len(names) > 1 else " is"
    return f"tensor {names[0]!r}{rest}"
