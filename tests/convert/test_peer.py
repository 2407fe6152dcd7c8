"""Finished files against those of llama.cpp's own converter and then quantizer: keys, names, shapes and types.

Not values: how codes are chosen is where the two differ (tests/kernels hold errors against ggml's).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import gguf
import llama_cpp
import numpy as np
import pytest
from tests import peer
from tests.convert.test_importance import Entries, collected
from tests.gguf.imatrix_file import write_imatrix_dat, write_imatrix_gguf
from tests.llama4.checkpoints import SCOUT_ROPE_SCALING, build
from tests.oracle.llama import quantize

from quantkit.convert import convert
from quantkit.recipes import RECIPES

# Where we differ on purpose, and why. Everything else must be the same, order included.
OURS_ONLY = {
    "tokenizer.ggml.eot_token_id": "the runtime does not know <|eot|> by its text",
    "tokenizer.ggml.eom_token_id": "nor <|eom|>",
    "tokenizer.ggml.add_eos_token": "false is what the runtime takes it for, and says so",
    "quantkit.version": "provenance",
    "quantkit.recipe": "provenance",
    "quantkit.source_fingerprint": "provenance",
}
WITH_IMATRIX = {"quantkit.imatrix_sha256": "provenance"}

Keys = dict[str, tuple[list[gguf.GGUFValueType], Any]]


def keys(reader: gguf.GGUFReader) -> Keys:
    """In file order; the reader's own entries for the file's header left out."""
    return {
        name: (field.types, field.contents()) for name, field in reader.fields.items() if not name.startswith("GGUF.")
    }


def told(notes: dict[str, str | int]) -> Any:
    """Let the quantizer's parameters carry these keys, as its command line hands over what it knows of an imatrix."""
    overrides = (llama_cpp.llama_model_kv_override * (len(notes) + 1))()
    for slot, (key, value) in zip(overrides, notes.items(), strict=False):
        slot.key = key.encode()
        if isinstance(value, int):
            slot.tag, slot.value.val_i64 = llama_cpp.LLAMA_KV_OVERRIDE_TYPE_INT, value
        else:
            slot.tag, slot.value.val_str = llama_cpp.LLAMA_KV_OVERRIDE_TYPE_STR, value.encode()
    params = llama_cpp.llama_model_quantize_default_params()
    params.kv_overrides = overrides
    return mock.patch.object(llama_cpp, "llama_model_quantize_default_params", return_value=params)


def compare(ours: Path, theirs: Path, intended: dict[str, str]) -> None:
    us, them = gguf.GGUFReader(ours), gguf.GGUFReader(theirs)
    mine, others = keys(us), keys(them)
    assert set(mine) - set(others) == set(intended)
    assert [key for key in mine if key not in intended] == list(others)
    for key, value in others.items():
        assert mine[key] == value, key
    assert [tensor.name for tensor in us.tensors] == [tensor.name for tensor in them.tensors]
    for tensor, other in zip(us.tensors, them.tensors, strict=True):
        found = (tensor.tensor_type.name, tensor.shape.tolist(), int(tensor.n_bytes))
        assert found == (other.tensor_type.name, other.shape.tolist(), int(other.n_bytes)), tensor.name


def importance(entries: Entries) -> dict[str, np.ndarray]:
    """What the quantizer's command line hands over: means, ones for an expert that saw nothing."""
    return {
        name: np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], 1.0).astype(np.float32)
        for name, (sums, counts) in entries.items()
    }


def against_peer(checkpoint: Path, folder: Path, recipe: str, entries: Entries | None) -> None:
    raw = peer.convert(checkpoint, folder / "raw.gguf", "bf16")
    notes: dict[str, str | int] = {}
    imatrix = None
    if entries is not None:
        imatrix = write_imatrix_gguf(folder / "model.imatrix", entries)
        # of the two data sets that the file names, their key holds the first
        notes = {
            "quantize.imatrix.file": "model.imatrix",
            "quantize.imatrix.dataset": "wiki.txt",
            "quantize.imatrix.entries_count": len(entries),
            "quantize.imatrix.chunks_count": 7,
        }
    with told(notes):
        theirs = quantize(
            raw,
            folder / "theirs.gguf",
            RECIPES[recipe].ftype,
            importance=None if entries is None else importance(entries),
        )
    convert(checkpoint, folder / "ours.gguf", recipe, imatrix=imatrix)
    compare(folder / "ours.gguf", theirs, OURS_ONLY | (WITH_IMATRIX if imatrix else {}))


@pytest.mark.parametrize("with_imatrix", [False, True], ids=["plain", "imatrix"])
@pytest.mark.parametrize("recipe", ["q4_k_m", "q2_k", "iq4_xs", "mxfp4_moe", "f16"])
def test_quantized_file(recipe: str, with_imatrix: bool, tiny: Path, tmp_path: Path) -> None:
    against_peer(tiny, tmp_path, recipe, collected(tiny) if with_imatrix else None)


SHAPES: list[tuple[str, dict[str, Any]]] = [
    # rows that are no whole super-blocks: fallbacks
    ("q4_k_m", {"layers": 5, "hidden": 96, "expert_width": 160, "experts": 3, "kv_heads": 1, "seed": 1}),
    ("q5_k_m", {"layers": 8, "moe_step": 2, "experts": 16, "heads": 8, "dense_width": 256, "conditional": False}),
    ("iq4_xs", {"layers": 3, "tied": True, "experts": 8, "dtype": "F16", "rope_scaling": SCOUT_ROPE_SCALING}),
    ("q3_k_m", {"layers": 4, "experts": 128, "moe_step": 2, "expert_width": 64, "shard_bytes": 500_000, "seed": 2}),
]


@pytest.mark.parametrize("with_imatrix", [False, True], ids=["plain", "imatrix"])
@pytest.mark.parametrize(("recipe", "shape"), SHAPES, ids=[recipe for recipe, _ in SHAPES])
def test_other_shapes(recipe: str, shape: dict[str, Any], with_imatrix: bool, tmp_path: Path) -> None:
    checkpoint = build(tmp_path / "Random-3B-Instruct", **shape)
    against_peer(checkpoint, tmp_path, recipe, collected(checkpoint) if with_imatrix else None)


def test_an_older_imatrix_gives_the_same_keys(tiny: Path, tmp_path: Path) -> None:
    entries = collected(tiny)
    found = []
    for write in (write_imatrix_gguf, write_imatrix_dat):
        convert(tiny, tmp_path / "out.gguf", "q4_0", imatrix=write(tmp_path / "model.imatrix", entries), force=True)
        found.append(keys(gguf.GGUFReader(tmp_path / "out.gguf")))
        del found[-1]["quantkit.imatrix_sha256"]
    assert found[0] == found[1]
