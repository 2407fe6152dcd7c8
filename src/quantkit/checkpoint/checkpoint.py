"""One checkpoint: its settings, the table of its tensors, and reads at positions."""

from __future__ import annotations

import functools
import hashlib
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from quantkit.checkpoint.document import Document, read_bytes, read_document, read_optional
from quantkit.checkpoint.download import explain_absence, refuse_unfinished
from quantkit.checkpoint.folder import resolve_folder
from quantkit.checkpoint.header import TensorEntry
from quantkit.checkpoint.model_card import read_model_card
from quantkit.checkpoint.reader import FileReader
from quantkit.checkpoint.shards import read_shards
from quantkit.checkpoint.tokenizer import SIDE_FILES as TOKENIZER_FILES
from quantkit.checkpoint.tokenizer import Tokenizer, read_tokenizer
from quantkit.errors import CheckpointError

_CONFIG_FILES = ("config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json")
# Everything but the shards that the output depends on.
_SIDE_FILES = (*_CONFIG_FILES, *TOKENIZER_FILES, "README.md")
_EDGE_BYTES = 4096


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Open a checkpoint folder, or a Hugging Face cache folder with one snapshot; reads settings and headers only.

    Raises:
        CheckpointError: anything that is missing, unfinished, damaged or contradicts itself.
    """
    root = resolve_folder(path)
    try:
        return Checkpoint(root)
    except OSError as error:
        raise CheckpointError(f"{error.filename or root}: cannot be read: {error.strerror or error}") from error


class Checkpoint:
    """A checked checkpoint; use `open_checkpoint`. Reads may come from several threads.

    Attributes:
        root: the folder.
        config: config.json.
        generation_config: generation_config.json, {} when absent.
        preprocessor_config: preprocessor_config.json, or what processor_config.json has of it; {} when both are absent.
        tensors: name -> entry, over all shards, by shard and place in it.
        files: the shards, by name.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config = _read_config(root)
        refuse_unfinished(root, _SIDE_FILES)
        self._headers, self.tensors = read_shards(root)
        self.generation_config = read_optional(root / "generation_config.json")
        self.preprocessor_config = _read_preprocessor(root)
        self.files: tuple[Path, ...] = tuple(header.file for header in self._headers)
        self._reader = FileReader()

    def read_into(self, entry: TensorEntry, buffer: memoryview, offset_bytes: int, n_bytes: int) -> None:
        """Fill `buffer[:n_bytes]` with the tensor's bytes from `offset_bytes` on (relative to the tensor).

        Raises:
            CheckpointError: the file ends or fails while it is read.
            ValueError: the range is not within the tensor, or the buffer is too small or read-only.
        """
        if offset_bytes < 0 or n_bytes < 0 or offset_bytes + n_bytes > entry.n_bytes:
            raise ValueError(f"bytes {offset_bytes}..{offset_bytes + n_bytes} are not within {entry.name!r}")
        target = buffer.cast("B")
        if target.readonly or target.nbytes < n_bytes:
            raise ValueError(f"a writable buffer of {n_bytes} bytes is needed")
        try:
            self._reader.read_into(entry.file, target[:n_bytes], entry.offset_bytes + offset_bytes)
        except EOFError as error:
            raise CheckpointError(
                f"{entry.file}: truncated while tensor {entry.name!r} was read: {error}",
                hint="The file has changed since it was opened; wait until it is whole and start again.",
            ) from error
        except OSError as error:
            raise CheckpointError(
                f"{entry.file}: tensor {entry.name!r} cannot be read: {error.strerror or error}"
            ) from error

    def tokenizer(self) -> Tokenizer:
        """The tokenizer as GGUF wants it; see `read_tokenizer` for what is refused."""
        return read_tokenizer(self.root, self.config, self.generation_config)

    def model_card(self) -> Document:
        """The YAML front matter of README.md, {} without."""
        return read_model_card(self.root / "README.md")

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over configs, tokenizer and card, each shard's header, each tensor's first and last 4 KiB.

        Two checkpoints that differ only in the midst of a tensor share it: reading everything would cost a whole pass.
        """
        digest = hashlib.sha256(b"quantkit checkpoint 1\n")
        for path in (self.root / name for name in _SIDE_FILES):
            if path.is_file():
                digest.update(f"{path.name}\n".encode() + hashlib.sha256(read_bytes(path)).digest())
        for path in sorted((self.root / "additional_chat_templates").glob("*.jinja")):
            digest.update(f"{path.name}\n".encode() + hashlib.sha256(read_bytes(path)).digest())
        buffer = memoryview(bytearray(_EDGE_BYTES))
        for header in self._headers:
            digest.update(f"{header.file.name}\n".encode() + header.sha256)
            for entry in header.entries:
                self._digest_edges(digest, entry, buffer)
        return digest.hexdigest()

    def identity(self) -> dict[str, str]:
        """What must not change between a run and its resumption: size and time of each shard, and the fingerprint."""
        stamps = {}
        for file in self.files:
            status = file.stat()
            stamps[f"shard {file.name}"] = f"{status.st_size} bytes, modified {status.st_mtime_ns} ns"
        return stamps | {"source fingerprint": self.fingerprint}

    def _digest_edges(self, digest: hashlib._Hash, entry: TensorEntry, buffer: memoryview) -> None:
        n_bytes = min(_EDGE_BYTES, entry.n_bytes)
        for offset_bytes in (0, entry.n_bytes - n_bytes):
            self.read_into(entry, buffer, offset_bytes, n_bytes)
            digest.update(buffer[:n_bytes])

    def close(self) -> None:
        """Close the shards; a later read opens them again."""
        self._reader.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _read_config(root: Path) -> dict[str, Any]:
    path = root.absolute() / "config.json"  # "config.json: missing" alone would not say where
    if path.is_file():
        return read_document(path)
    if (root / "params.json").exists():
        raise CheckpointError(
            f"{path}: missing, but params.json is there: this is Meta's original layout",
            hint="Download the Hugging Face version of the model, which has config.json and safetensors files.",
        )
    what, hint = explain_absence(path)
    if what == "missing" and not any(root.glob("*.safetensors*")):
        hint = "Is this the folder of a checkpoint? It holds neither config.json nor safetensors files."
    raise CheckpointError(f"{path}: {what}", hint=hint)


def _read_preprocessor(root: Path) -> dict[str, Any]:
    found = read_optional(root / "preprocessor_config.json")
    if found:
        return found
    # what transformers 5 writes
    path = root / "processor_config.json"
    images = read_optional(path).get("image_processor", {})
    if not isinstance(images, dict):
        raise CheckpointError(f"{path}: image_processor is not an object", hint="Download the file again.")
    return images
