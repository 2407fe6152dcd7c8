"""One side of a comparison: a checkpoint folder or a GGUF, and what identifies it."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from quantkit.calibration import Encoder, checkpoint_encoder
from quantkit.checkpoint import open_checkpoint
from quantkit.drift.vocabulary import Vocabulary, checkpoint_vocabulary, gguf_encoder, gguf_vocabulary
from quantkit.errors import CheckpointError, UsageError
from quantkit.gguf import GgufFile, open_gguf
from quantkit.llama4 import Hyperparameters
from quantkit.llama4.forward import Weights, open_weights

_EDGE_BYTES = 4096  # of each tensor, for a fingerprint
_FLOATS = {"f32", "f16", "bf16"}
_HINT = "Drift is measured between files of one model."
# What makes a model another one. The rest, such as RoPE's base, is part of what is measured.
_SHAPE = (
    "n_layers", "hidden_size", "n_heads", "n_kv_heads", "head_dim", "n_experts", "n_experts_used", "expert_width",
    "vocab_size", "moe_layers",
)  # fmt: skip


@dataclass(frozen=True)
class Identity:
    """What a report says of a file.

    Args:
        file: path, of the first split.
        bytes: of all splits, or of a checkpoint's tensors.
        types: how many tensors have each type, the most frequent first.
        fingerprint: SHA-256 over headers (of a checkpoint also its settings) and the ends of each tensor.
    """

    file: str
    bytes: int
    types: dict[str, int]
    fingerprint: str


@dataclass(frozen=True)
class Stored:
    """How a file stores a tensor."""

    type: str
    bytes: int


@dataclass(frozen=True)
class Model:
    """An open model; `weights` is to be closed. `stored` is by GGUF name, and empty for a checkpoint."""

    identity: Identity
    weights: Weights
    vocabulary: Vocabulary
    stored: dict[str, Stored]

    def encoder(self) -> Encoder:
        """Its own tokenizer."""
        if self.weights.source.is_dir():
            with open_checkpoint(self.weights.source) as cp:
                return checkpoint_encoder(cp)
        return gguf_encoder(self.vocabulary)

    def refuse_other(self, other: Model) -> None:
        """UsageError if `other` is a file of another model."""
        mine, theirs = self.weights.hp, other.weights.hp
        names = [*_SHAPE, *(["dense_width"] if len(mine.moe_layers) < mine.n_layers else [])]
        assert set(names) <= {field.name for field in fields(Hyperparameters)}
        for name in names:
            if getattr(mine, name) != getattr(theirs, name):
                values = f"{getattr(mine, name)}, and {getattr(theirs, name)} in {other.identity.file}"
                raise UsageError(f"{name} is {values} in {self.identity.file}"[:1000], hint=_HINT)
        self.vocabulary.refuse_other(other.vocabulary)


def open_model(path: str | os.PathLike[str]) -> Model:
    """A checkpoint folder, or a GGUF (any of its splits).

    Raises:
        UsageError: no such file; a tensor type that nobody decodes.
        CheckpointError, UnsupportedModelError: as `open_weights` and tokenizers.
    """
    path = Path(path)
    if not path.exists():
        raise UsageError(f"{path}: there is no such file or folder")
    if path.is_dir():
        with open_checkpoint(path) as cp:
            entries = cp.tensors.values()
            types = Counter(entry.dtype.lower() for entry in entries)
            identity = Identity(str(path), sum(entry.n_bytes for entry in entries), _ordered(types), cp.fingerprint)
            vocabulary = checkpoint_vocabulary(cp)
    else:
        file = open_gguf(path)
        types = Counter(tensor.type for tensor in file.tensors)
        weights = open_weights(path)  # first: another architecture is more than another tokenizer
        try:
            vocabulary = gguf_vocabulary(file)
            identity = Identity(str(file.files[0]), file.n_bytes, _ordered(types), _fingerprint(file))
        except BaseException:
            weights.close()
            raise
        stored = {tensor.name: Stored(tensor.type, tensor.n_bytes) for tensor in file.tensors}
        return Model(identity, weights, vocabulary, stored)
    return Model(identity, open_weights(path), vocabulary, {})


def names_of(files: Sequence[str]) -> list[str]:
    """Without folders where that is enough to tell them apart."""
    names = [Path(one).name for one in files]
    return names if len(set(names)) == len(names) else list(files)


def refuse_quantized(reference: Model) -> None:
    """UsageError if the reference is itself quantized."""
    if reference.weights.source.is_dir():
        return
    others = [type for type in reference.identity.types if type not in _FLOATS]
    if others:
        raise UsageError(
            f"{reference.identity.file} has tensors of type {', '.join(others)}: it is no reference",
            hint="Give the checkpoint, or a GGUF of f32, f16 or bf16.",
        )


def _ordered(types: Counter[str]) -> dict[str, int]:
    return dict(sorted(types.items(), key=lambda item: (-item[1], item[0])))


def _fingerprint(file: GgufFile) -> str:
    digest = hashlib.sha256()
    try:
        for path in file.files:
            tensors = sorted((one for one in file.tensors if one.file == path), key=lambda one: one.offset_bytes)
            with path.open("rb") as opened:
                digest.update(opened.read(tensors[0].offset_bytes if tensors else path.stat().st_size))
                for tensor in tensors:
                    last = tensor.offset_bytes + max(0, tensor.n_bytes - _EDGE_BYTES)
                    for offset in (tensor.offset_bytes, last):
                        opened.seek(offset)
                        digest.update(opened.read(min(_EDGE_BYTES, tensor.n_bytes)))
    except OSError as error:
        raise CheckpointError(f"{file.files[0]}: cannot be read: {error.strerror or error}") from error
    return digest.hexdigest()
