"""What a kind of malformed checkpoint is, and the draft that it is made in."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from quantkit.checkpoint import DTYPE_BITS

SOURCE = Path(__file__).parents[2] / "data" / "tiny-llama4"
SHARDS = tuple(f"model-{number:05d}-of-00003.safetensors" for number in (1, 2, 3))
INDEX = "model.safetensors.index.json"

# What the command line promises for each class of error; written down here, so that a class that changes is noticed.
EXIT_CODES = {
    "CheckpointError": 3,
    "NonFiniteError": 3,
    "UnsupportedModelError": 4,
    "PlanRefusedError": 5,
}

Stage = Literal["open", "tokenizer", "model", "payload"]


@dataclass
class Tensor:
    dtype: str
    shape: list[int]
    data: bytes


class Draft:
    """A copy of tiny-llama4 to be spoilt: a folder of symlinks, each of which becomes a file when it is written."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.opened_as = root
        root.mkdir(parents=True)
        for file in SOURCE.iterdir():
            (root / file.name).symlink_to(file)

    def remove(self, *names: str) -> None:
        for name in names:
            (self.root / name).unlink()

    def rename(self, old: str, new: str) -> None:
        (self.root / old).rename(self.root / new)

    def read(self, name: str) -> bytes:
        return (self.root / name).read_bytes()

    def write(self, name: str, data: bytes | str) -> None:
        path = self.root / name
        path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)

    def edit(self, name: str, change: Callable[[Any], Any]) -> None:
        """Change the document of a JSON file; what `change` returns does not matter."""
        document = json.loads(self.read(name))
        change(document)
        self.write(name, json.dumps(document))

    def remake(self, name: str, make: Callable[[Any], Any]) -> None:
        """Write what `make` makes of the document of a JSON file."""
        self.write(name, json.dumps(make(json.loads(self.read(name)))))

    def header(self, shard: str, change: Callable[[Any], Any]) -> None:
        """Change the JSON of a shard's header; the payload stays as it is."""
        text, payload = self._split(shard)
        document = json.loads(text)
        change(document)
        self.raw_header(shard, json.dumps(document).encode(), payload)

    def raw_header(self, shard: str, text: bytes, payload: bytes | None = None) -> None:
        self.write(
            shard, len(text).to_bytes(8, "little") + text + (self._split(shard)[1] if payload is None else payload)
        )

    def header_text(self, shard: str) -> bytes:
        return self._split(shard)[0]

    def _split(self, shard: str) -> tuple[bytes, bytes]:
        data = self.read(shard)
        n_header = int.from_bytes(data[:8], "little")
        return data[8 : 8 + n_header], data[8 + n_header :]

    def tensors(self, shard: str, change: Callable[[dict[str, Tensor]], Any]) -> None:
        """Change the tensors of a shard: header, offsets and index stay sound."""
        text, payload = self._split(shard)
        document = json.loads(text)
        metadata = document.pop("__metadata__", None)
        tensors = {
            name: Tensor(info["dtype"], info["shape"], payload[slice(*info["data_offsets"])])
            for name, info in document.items()
        }
        before = set(tensors)
        change(tensors)
        header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
        at = 0
        for name, tensor in tensors.items():
            assert len(tensor.data) * 8 == math.prod(tensor.shape) * DTYPE_BITS[tensor.dtype]
            end = at + len(tensor.data)
            header[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [at, end]}
            at = end
        self.raw_header(shard, json.dumps(header).encode(), b"".join(tensor.data for tensor in tensors.values()))

        def reindex(index: Any) -> None:
            for name in before - set(tensors):
                del index["weight_map"][name]
            index["weight_map"].update(dict.fromkeys(set(tensors) - before, shard))

        self.edit(INDEX, reindex)

    def tensor(self, name: str, change: Callable[[dict[str, Tensor]], Any]) -> None:
        """`tensors` of the shard that holds `name`."""
        self.tensors(json.loads(self.read(INDEX))["weight_map"][name], change)


@dataclass(frozen=True)
class Kind:
    """One way to spoil a checkpoint.

    Attributes:
        name: unique, for test ids.
        stage: where it is noticed first: "open" (open_checkpoint), "tokenizer" (Checkpoint.tokenizer()), "model"
            (llama4, from headers alone), "payload" (while weights are read).
        error: name of the class of quantkit.errors.
        match: a regex that the message must contain; names the file, tensor or value.
        vision: seen only where the vision tower is converted.
    """

    name: str
    stage: Stage
    error: str
    match: str
    spoil: Callable[[Draft], Any]
    vision: bool = False

    @property
    def exit_code(self) -> int:
        """Of `quantkit convert`."""
        return EXIT_CODES[self.error]

    def make(self, dst: Path) -> Path:
        """Make the checkpoint at `dst`, which must not exist; returns the path to give to quantkit (mostly `dst`)."""
        draft = Draft(dst)
        self.spoil(draft)
        return draft.opened_as
