"""The stream computes what transformers computes in float32, and the perplexity that llama.cpp has."""

from __future__ import annotations

import json
import os
import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import peer
from tests.drift.files import PROSE, TINY
from tests.llama4 import checkpoints
from tests.oracle import drift, llama
from tests.oracle.reference import Reference

import quantkit
from quantkit.calibration import documents, token_source
from quantkit.calibration.text import default_documents
from quantkit.checkpoint import open_checkpoint
from quantkit.llama4.forward import Inputs, Observer, Stream, open_weights
from quantkit.llama4.forward.states import States

CHUNK = 16
# what release files have at 8192 comes within reach of short contexts
SMALL = {"attention_chunk_size": CHUNK, "floor_scale": 8}
SCALING = {**checkpoints.SCOUT_ROPE_SCALING, "original_max_position_embeddings": 24}
# weights this large make attention and routing decided, as they are after training
STRONG = {
    "std": 0.08,
    "layers": 5,
    "hidden": 96,
    "head_dim": 32,
    "expert_width": 64,
    "dense_width": 160,
    "conditional": False,
}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "scout": {"conditional": True, "vision": True, "rope_scaling": SCALING},
    "maverick": {"experts": 8, "moe_step": 2, "text_config": {"use_qk_norm": False}},
    "dense": {"moe_step": 9, "text_config": {"moe_layers": []}},
    "text-only": {"tied": True, "transformers5": True, "rope_scaling": SCALING},
    "two-experts": {"experts": 6, "experts_used": 2, "heads": 6, "kv_heads": 2},
    "blended-rope": {"rope_scaling": {**SCALING, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}},
    "no-temperature": {"text_config": {"attn_temperature_tuning": False}},
    "gaps": {"text_config": {"no_rope_layers": [0, 1, 1, 0, 1]}},
}
RELEASE: dict[str, int] = {"attention_chunk_size": 8192, "floor_scale": 8192}
NEAR: dict[str, int] = {"attention_chunk_size": 128, "floor_scale": 32}
TRAINED = [(300, RELEASE), (100, NEAR), (128, NEAR), (300, NEAR)]
# Seen: 1.5e-6, as the largest error of a token's state by that state's norm.
TOLERANCE = 1e-5


class Layers(Observer):
    """Keeps the hidden states after each layer."""

    def __init__(self) -> None:
        self.states: list[np.ndarray] = []

    def layer(self, layer: int, states: States) -> None:
        assert layer == len(self.states)
        self.states.append(states.read(slice(0, states.shape[0])))


def build(folder: Path, name: str, seed: int = 0) -> Path:
    options = {**STRONG, **CONFIGURATIONS[name]}
    options["text_config"] = {**SMALL, **options.get("text_config", {})}
    return checkpoints.build(folder, seed=seed, **options)


def worst(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest error of a row, by the row's norm."""
    difference = ours.astype(np.float64) - theirs
    return float((np.linalg.norm(difference, axis=1) / np.linalg.norm(theirs, axis=1)).max())


def errors(folder: Path, tokens: np.ndarray) -> tuple[float, float]:
    """The largest of the hidden states after any layer, and of the logits."""
    layers = Layers()
    with Stream(open_weights(folder), tokens, observer=layers) as stream:
        stream.run()
        logits = stream.logits()
    reference = Reference(folder)
    expected = [reference.hidden_states(sequence.tolist()) for sequence in tokens]
    by_layer = [
        worst(ours, np.concatenate(theirs))
        for ours, theirs in zip(layers.states, zip(*expected, strict=True), strict=True)
    ]
    return max(by_layer), worst(logits, np.concatenate([reference.logits(one.tolist()) for one in tokens]))


@pytest.mark.parametrize("context", [CHUNK - 5, CHUNK, 3 * CHUNK + 5])
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_states_and_logits_are_those_of_transformers(name: str, context: int, tmp_path: Path) -> None:
    tokens = np.random.default_rng(context).integers(0, 1000, (2, context))
    assert max(errors(build(tmp_path / name, name, seed=context), tokens)) < TOLERANCE


def trained(folder: Path, checkpoint: Path, **text_config: Any) -> Path:
    """A copy of a checkpoint with other numbers in its config.json."""
    shutil.copytree(checkpoint, folder, copy_function=os.symlink)
    config = json.loads((checkpoint / "config.json").read_text())
    config.get("text_config", config).update(text_config)
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def text_tokens(checkpoint: Path, context: int, n_sequences: int = 2) -> np.ndarray:
    """Of a text that does not change."""
    with open_checkpoint(checkpoint) as cp:
        found = token_source(cp, documents(PROSE), context=context).take(n_sequences)
    assert len(found) == n_sequences
    return found


@pytest.mark.parametrize(("context", "constants"), TRAINED)
def test_states_and_logits_of_the_trained_checkpoint(context: int, constants: dict[str, int], tmp_path: Path) -> None:
    """With the release's constants, and with such that chunks end and temperatures change within the context."""
    folder = trained(tmp_path / "model", TINY, **constants)
    assert max(errors(folder, text_tokens(folder, context))) < TOLERANCE


class Kept(Observer):
    """All inputs by tensor, in the order of the tokens; those of experts as transformers has them, with zeros."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, int | None], dict[int, np.ndarray]] = {}

    def inputs(self, seen: Inputs) -> None:
        for tensor in seen.tensors:
            rows = self.found.setdefault((tensor, seen.expert), {})
            for token, row in zip(seen.tokens.tolist(), seen.x, strict=True):
                assert token not in rows
                rows[token] = row.copy()

    def all(self, tensor: str, n: int, expert: int | None = None) -> np.ndarray:
        rows = self.found[tensor, expert]
        return np.stack([rows.get(token, np.zeros_like(next(iter(rows.values())))) for token in range(n)])


@pytest.mark.parametrize("name", ["scout", "two-experts"])
def test_inputs_of_every_matrix_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    folder = build(tmp_path / name, name)
    tokens = np.random.default_rng(1).integers(0, 1000, (1, 40))
    kept = Kept()
    with Stream(open_weights(folder), tokens, observer=kept) as stream:
        stream.run()
    modules = {
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_gate_inp": "feed_forward.router",
        "ffn_gate_shexp": "feed_forward.shared_expert.gate_proj",
        "ffn_up_shexp": "feed_forward.shared_expert.up_proj",
        "ffn_down_shexp": "feed_forward.shared_expert.down_proj",
        "ffn_exps": "feed_forward.experts",
    }
    layer = 3
    theirs = Reference(folder).inputs(tokens[0].tolist(), [f"layers.{layer}.{module}" for module in modules.values()])
    for ours, module in modules.items():
        expected = theirs[f"layers.{layer}.{module}"]
        if ours != "ffn_exps":
            assert worst(kept.all(f"blk.{layer}.{ours}.weight", 40), expected) < TOLERANCE
            continue
        for expert, routed in enumerate(expected.reshape(-1, 40, expected.shape[-1])):
            chosen = np.flatnonzero(np.abs(routed).max(-1))
            for kind in ("gate", "up"):
                tensor = f"blk.{layer}.ffn_{kind}_exps.weight"
                assert sorted(kept.found.get((tensor, expert), {})) == chosen.tolist()
                if len(chosen):
                    assert worst(kept.all(tensor, 40, expert)[chosen], routed[chosen]) < TOLERANCE


def quantized(path: Path, recipe: str) -> Path:
    quantkit.convert(TINY, path, [recipe], threads=2)
    return path


def test_perplexity_is_that_of_llama_cpp(tmp_path: Path) -> None:
    """On the BF16 file llama.cpp rounds activations to BF16, which is all that lies between the two."""
    path = quantized(tmp_path / "bf16.gguf", "bf16")
    chunks = drift.chunked(path, [document.text for document in islice(default_documents(), 10)], 256, bos=992)
    n = drift.n_scored(256)
    theirs = drift.score(path, chunks, np.zeros((len(chunks), n, 1024), np.float32)).surprise
    with Stream(open_weights(TINY), chunks) as stream:
        stream.run()
        logits = stream.logits().reshape(*chunks.shape, -1)[:, 128:-1]
    own = np.stack([drift.log_softmax(part) for part in logits])
    ours = -np.take_along_axis(own, chunks[:, 129:, None], axis=-1)[..., 0]
    assert ours.shape == theirs.shape
    difference = (ours - theirs).mean(axis=1)
    error = difference.std(ddof=1) / np.sqrt(len(difference))
    assert abs(difference.mean()) < 3 * error + 1e-4, f"{difference.mean():.2e} ± {error:.1e}"
    assert error < 2e-3
    # in float32 there is nothing between them
    with llama.Model(quantized(tmp_path / "f32.gguf", "f32"), n_ctx=256) as model:
        exact = drift.log_softmax(model.logits(chunks[0][:-1], last=n))
    surprise = -np.take_along_axis(exact, chunks[0, 129:, None], axis=-1)[:, 0]
    np.testing.assert_allclose(ours[0], surprise, atol=1e-4)


def test_llama_cpp_s_own_file_gives_the_checkpoint_s_bits(tmp_path: Path) -> None:
    tokens = np.random.default_rng(0).integers(0, 990, (2, 40))
    states = []
    for path in (TINY, peer.convert(TINY, tmp_path / "peer.gguf", "bf16")):
        with Stream(open_weights(path), tokens) as stream:
            stream.run()
            states.append(stream.logits())
    np.testing.assert_array_equal(*states)
