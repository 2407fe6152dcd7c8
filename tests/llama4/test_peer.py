"""Keys, tensors and values against llama.cpp's own converter (and its quantizer, which orders the file)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from tests import peer
from tests.llama4.checkpoints import SCOUT_ROPE_SCALING, TINY, build
from tests.llama4.gathering import gather
from tests.oracle.llama import quantize

from quantkit.checkpoint import open_checkpoint
from quantkit.gguf import Field
from quantkit.llama4 import Hyperparameters, Model, text_model, vision_model

# Where we differ on purpose, and why.
OURS_ONLY = {
    "tokenizer.ggml.eot_token_id": "the runtime does not know <|eot|> by its text",
    "tokenizer.ggml.eom_token_id": "nor <|eom|>",
    "tokenizer.ggml.add_eos_token": "false is what the runtime takes it for, and says so",
}
# Appended by the convert room, since they depend on the recipe.
LEFT_TO_CONVERT = ["general.quantization_version", "general.file_type"]


def ours_to_theirs(name: str) -> str:
    """Their name for the vision tower's second norm is one that their own runtime does not read."""
    return name.replace(".ln2.", ".attn_post_norm.")


def keys(fields: list[Field]) -> dict[str, tuple[Any, ...]]:
    """Fields as they read back once written: the writer and reader of the gguf package decide."""
    return {field.key: (field.type, _as_stored(field.value, field.type)) for field in fields}


def _as_stored(value: Any, type: gguf.GGUFValueType) -> Any:
    if isinstance(value, (list, tuple)):
        floats = any(isinstance(item, float) for item in value)
        return np.float32(value).tolist() if floats else list(value)
    return float(np.float32(value)) if type == gguf.GGUFValueType.FLOAT32 else value


def peer_keys(reader: gguf.GGUFReader) -> dict[str, tuple[Any, ...]]:
    return {
        field.name: (field.types[0], field.contents())
        for field in reader.fields.values()
        if not field.name.startswith("GGUF.")
    }


def compare_keys(model: Model, ordered: gguf.GGUFReader, intended: dict[str, str]) -> None:
    """Same keys, types, values and order, as far as they are ours to write."""
    mine, theirs = keys(model.metadata), peer_keys(ordered)
    assert list(theirs)[-2:] == LEFT_TO_CONVERT
    assert set(mine) - set(theirs) == set(intended)
    assert [key for key in mine if key not in intended] == list(theirs)[:-2]
    for key in list(theirs)[:-2]:
        assert mine[key] == theirs[key], key


def compare_tensors(model: Model, outtype: str, ordered: gguf.GGUFReader) -> None:
    """Same names, shapes and types, in the order of llama-quantize."""
    # that order is by name, so a name of ours that differs stands elsewhere
    mine = [ours_to_theirs(output.name) for output in model.outputs]
    theirs = [tensor.name for tensor in ordered.tensors]
    if "v.class_embd" in theirs:
        assert sorted(mine) == theirs
        assert [output.name for output in model.outputs] == sorted(output.name for output in model.outputs)
    else:
        assert mine == theirs
    by_name = {tensor.name: tensor for tensor in ordered.tensors}
    for output in model.outputs:
        tensor = by_name[ours_to_theirs(output.name)]
        assert output.shape == tuple(int(extent) for extent in reversed(tensor.shape)), output.name
        assert (output.keep or outtype).upper() == tensor.tensor_type.name, output.name


def compare_values(arrays: dict[str, np.ndarray], reader: gguf.GGUFReader) -> None:
    """Same bytes, once ours are rounded to the type of theirs."""
    assert len(arrays) == len(reader.tensors)
    theirs = {tensor.name: tensor for tensor in reader.tensors}
    for name, array in arrays.items():
        tensor = theirs[ours_to_theirs(name)]
        if name == "rope_freqs.weight":
            # torch's float32 power is within an ulp of the true one, and so are the factors that are blended from it
            np.testing.assert_array_max_ulp(array, tensor.data, maxulp=4)
            continue
        rounded = gguf.quants.quantize(array, tensor.tensor_type).view(np.uint8)
        np.testing.assert_array_equal(rounded.ravel(), tensor.data.view(np.uint8).ravel(), name)


def compare(checkpoint: Path, folder: Path, outtype: str, *, vision: bool = False, max_slab_bytes: int = 2**20) -> None:
    raw = peer.convert(checkpoint, folder / "peer.gguf", outtype, mmproj=vision)
    ordered = gguf.GGUFReader(quantize(raw, folder / "ordered.gguf", peer.FILE_TYPES[outtype]))
    cp = open_checkpoint(checkpoint)
    hp = Hyperparameters.from_checkpoint(cp)
    model = vision_model(cp, hp, max_slab_bytes, type=outtype) if vision else text_model(cp, hp, max_slab_bytes)
    compare_keys(model, ordered, {} if vision else OURS_ONLY)
    compare_tensors(model, outtype, ordered)
    compare_values(gather(cp, model), gguf.GGUFReader(raw))


@pytest.mark.parametrize("outtype", ["bf16", "f32", "f16"])
@pytest.mark.parametrize("vision", [False, True], ids=["text", "mmproj"])
def test_tiny_checkpoint_becomes_the_peers_file(tmp_path: Path, outtype: str, vision: bool) -> None:
    compare(TINY, tmp_path, outtype, vision=vision)


def random_shape(seed: int) -> dict[str, Any]:
    random = np.random.default_rng(seed)

    def pick(*values: int) -> int:
        return int(random.choice(values))

    kv_heads = pick(1, 2, 3)
    return {
        "layers": pick(1, 2, 3, 5, 8),
        "experts": pick(2, 3, 8, 16),
        "experts_used": pick(1, 2),
        "kv_heads": kv_heads,
        "heads": kv_heads * pick(1, 2, 5),
        "head_dim": pick(16, 32, 48),
        "hidden": pick(32, 64, 96),
        "expert_width": pick(32, 64, 160),
        "dense_width": pick(64, 96),
        "vocab": pick(1024, 1055),
        "moe_step": pick(1, 2, 3),
        "conditional": bool(pick(0, 1)),
        "dtype": str(random.choice(["BF16", "F16", "F32"])),
        "tied": pick(0, 0, 1) == 1,
        "rope_scaling": SCOUT_ROPE_SCALING if pick(0, 1) else None,
        "transformers5": bool(pick(0, 1)),
        "shard_bytes": pick(50_000, 10_000_000),
        "seed": seed,
    }


@pytest.mark.parametrize("seed", range(6))
def test_random_shapes_become_the_peers_files(tmp_path: Path, seed: int) -> None:
    shape = random_shape(seed)
    checkpoint = build(tmp_path / "Random-4x3B-Instruct-v1.2", **shape)
    compare(checkpoint, tmp_path, "f32" if shape["dtype"] == "F32" else "bf16", max_slab_bytes=10_000)


def test_maverick_like_checkpoint_becomes_the_peers_file(tmp_path: Path) -> None:
    small = {"hidden": 32, "heads": 5, "kv_heads": 1, "head_dim": 32, "expert_width": 32, "dense_width": 64}
    checkpoint = build(tmp_path / "maverick", layers=4, experts=128, moe_step=2, **small)
    compare(checkpoint, tmp_path, "bf16")


@pytest.mark.parametrize("seed", range(3))
def test_random_towers_become_the_peers_files(tmp_path: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    heads = int(random.integers(1, 4))
    patch = int(random.choice([4, 14]))
    tower = {
        "layers": int(random.integers(3, 6)),  # the peer's name table needs three
        "heads": heads,
        "hidden": heads * 8 * int(random.integers(1, 5)),
        "patch": patch,
        "image": patch * 2 * int(random.integers(1, 5)),
        "adapter": 32 * int(random.integers(1, 4)),
    }
    checkpoint = build(tmp_path / "tower", layers=1, hidden=64, vision=tower, seed=seed)
    compare(checkpoint, tmp_path, ["bf16", "f16", "f32"][seed], vision=True, max_slab_bytes=1000)


def test_model_card_gives_the_peers_general_keys(tmp_path: Path) -> None:
    checkpoint = build(
        tmp_path / "Llama-4-Tiny-17B-16E-Instruct", layers=1, config={"_name_or_path": "acme/Tiny-4-Chat-v2"}
    )
    card = """---
license: other
license_name: llama4
license_link: https://example.org/license
language: [en, "no", de]
tags: [facebook, meta]
pipeline_tag: image-text-to-text
base_model: [acme/Llama-4-Base-17B, https://huggingface.co/acme/Other-7B-v1]
datasets: [acme/words-1B]
author: A. Writer
version: "3"
description: "one line"
---
# A model
"""
    (checkpoint / "README.md").write_text(card, encoding="utf-8")
    generation = '{"temperature": 0.6, "top_p": 0.9, "top_k": 40, "do_sample": true, "eos_token_id": [1, 2]}'
    (checkpoint / "generation_config.json").write_text(generation, encoding="utf-8")
    compare(checkpoint, tmp_path, "bf16")


@pytest.mark.parametrize(
    ("low", "high", "factor", "original"), [(1.0, 4.0, 8.0, 8192), (1.0, 1.0, 16.0, 8192), (0.5, 3.0, 2.5, 777)]
)
def test_rope_factors_are_the_peers(tmp_path: Path, low: float, high: float, factor: float, original: int) -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }
    checkpoint = build(
        tmp_path / "scaled", layers=1, hidden=32, heads=1, kv_heads=1, head_dim=128, rope_scaling=scaling
    )
    compare(checkpoint, tmp_path, "bf16")


def test_named_chat_templates_are_the_peers(tmp_path: Path) -> None:
    checkpoint = build(tmp_path / "templates", layers=1, hidden=32)
    settings = json.loads((checkpoint / "tokenizer_config.json").read_text(encoding="utf-8"))
    templates = {"default": "{{ messages }}", "tool-use": "{{ tools }}", "rag": "{{ documents }}"}
    settings["chat_template"] = [{"name": name, "template": text} for name, text in templates.items()]
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    reader = gguf.GGUFReader(peer.convert(checkpoint, tmp_path / "peer.gguf", "bf16"))
    theirs = {key: value for key, value in peer_keys(reader).items() if "chat_template" in key}
    cp = open_checkpoint(checkpoint)
    model = text_model(cp, Hyperparameters.from_checkpoint(cp))
    mine = {key: value for key, value in keys(model.metadata).items() if "chat_template" in key}
    # the peer lists the names in the order of a hash set, which changes from run to run
    names = "tokenizer.chat_templates"
    assert mine.pop(names)[1] == sorted(theirs.pop(names)[1]) == ["rag", "tool_use"]
    assert mine == theirs
    assert len(mine) == 3
