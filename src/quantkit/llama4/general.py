"""The `general.*` keys: names from model card, config.json and folder, by the `gguf` package's own heuristics."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGUFValueType, GGUFWriter

from quantkit.checkpoint import Checkpoint
from quantkit.errors import CheckpointError
from quantkit.gguf import Field
from quantkit.llama4.model import OutputTensor

_INTEGERS = {GGUFValueType.UINT32: (0, 2**32 - 1), GGUFValueType.INT32: (-(2**31), 2**31 - 1)}


def add_general(writer: GGUFWriter, cp: Checkpoint, kind: str, outputs: Sequence[OutputTensor]) -> None:
    """Record `general.*` as llama.cpp's converter would for the same folder.

    Raises:
        CheckpointError: the model card, or generation_config.json, has a value of a type that no key can hold.
    """
    import yaml  # here: only the package's parser of the card raises its errors

    cp.model_card()  # raises for most of what is malformed, before the package's parser sees it
    total, shared, experts, n_experts = _count(outputs)
    try:
        metadata = gguf.Metadata.load(None, cp.root.absolute(), None, total)
        _name_after_repository(metadata, cp.root.absolute(), total)
        if metadata.name is None:
            metadata.name = cp.root.absolute().name
        if metadata.size_label is None:
            metadata.size_label = gguf.size_label(total, shared, experts, n_experts)
        writer.add_type(kind)
        metadata.set_gguf_meta_model(writer)
    except yaml.YAMLError as error:  # a tag or alias that its loader takes and ours does not, or the reverse
        raise CheckpointError(
            f"{cp.root / 'README.md'}: front matter is not plain YAML: {' '.join(str(error).split())}",
            hint="Correct the front matter, or leave README.md out; it only feeds the output's general.* metadata.",
        ) from error
    except (AttributeError, TypeError, ValueError, KeyError) as error:
        # the package takes the card's types on trust
        raise CheckpointError(
            f"{cp.root / 'README.md'}: the model card, or _name_or_path in config.json, has a value of another type "
            f"than metadata can hold ({error})"
        ) from error
    for key, value in writer.kv_data[0].items():
        file = "generation_config.json" if key.startswith("general.sampling.") else "README.md"
        value.value = _checked(cp.root / file, key, value.value, value.type)


def _name_after_repository(metadata: gguf.Metadata, root: Path, total: int) -> None:
    """Give a snapshot in the Hugging Face cache, whose folder is named after a commit, its repository's names."""
    folder = root.parent.parent.name
    if root.parent.name != "snapshots" or not folder.startswith("models--"):
        return
    # which of them the commit has been taken for depends on its letters
    for attribute in ("name", "basename", "finetune", "version", "size_label"):
        if root.name.lower() in str(getattr(metadata, attribute)).lower():
            setattr(metadata, attribute, None)
    repository = folder.removeprefix("models--").replace("--", "/", 1)
    gguf.Metadata.apply_metadata_heuristic(metadata, None, {"_name_or_path": repository}, None, total)


def _count(outputs: Sequence[OutputTensor]) -> tuple[int, int, int, int]:
    """Weights in total, outside of experts, in one expert of each tensor, and the number of experts."""
    counter = GGUFWriter(None, "llama4")
    for output in outputs:
        n_weights = int(np.prod(output.shape, dtype=np.int64))
        counter.add_tensor_info(output.name, output.shape, np.dtype(np.float32), n_weights * 4)
    total, shared, experts, n_experts = counter.get_total_parameter_count()
    return int(total), int(shared), int(experts), int(n_experts)


def _checked(file: Path, key: str, value: Any, type: GGUFValueType) -> Any:
    """The value as it will be written; YAML reads an unquoted version 1.0 as a number, which is text here."""
    if type == GGUFValueType.STRING:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            value = str(value)
        ok = isinstance(value, str)
    elif type == GGUFValueType.ARRAY:
        value = [str(item) if isinstance(item, (int, float)) and not isinstance(item, bool) else item for item in value]
        ok = all(isinstance(item, str) for item in value)
    elif type in _INTEGERS:
        low, high = _INTEGERS[type]
        ok = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
    else:
        ok = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= 3e38
    if not ok:
        raise CheckpointError(
            f"{file}: {value!r} cannot be {key}, which is {type.name.lower()}",
            hint="Correct the file, or take it away.",
        )
    return value


def recorded(writer: GGUFWriter) -> list[Field]:
    """What a writer has been given so far, in order."""
    return [
        Field(key, item.value, item.type, getattr(item, "sub_type", None)) for key, item in writer.kv_data[0].items()
    ]
