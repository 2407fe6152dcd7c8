"""The vision tower: image features from GGUF-named tensors against transformers, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.llama4.checkpoints import TINY, build
from tests.llama4.gathering import gather
from tests.llama4.vision_forward import Tower, image_features
from transformers import Llama4ForConditionalGeneration

from quantkit.checkpoint import open_checkpoint
from quantkit.errors import CheckpointError, UnsupportedModelError
from quantkit.llama4 import Hyperparameters, Model, vision_mismatches, vision_model


def vision(checkpoint: Path, **options: Any) -> tuple[Model, dict[str, np.ndarray]]:
    cp = open_checkpoint(checkpoint)
    model = vision_model(cp, Hyperparameters.from_checkpoint(cp), **options)
    return model, gather(cp, model)


def reference(checkpoint: Path, pixels: np.ndarray) -> np.ndarray:
    """transformers' image embeddings in float32, in the text model's width."""
    model = Llama4ForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)
    with torch.inference_mode():
        features = model.vision_model(torch.from_numpy(pixels[None])).last_hidden_state
        return model.multi_modal_projector(features)[0].numpy()


@pytest.mark.parametrize(
    "tower", [None, {"layers": 4, "heads": 3, "hidden": 48, "image": 32, "patch": 4, "adapter": 64}]
)
def test_image_features_equal_transformers(tmp_path: Path, tower: dict[str, int] | None) -> None:
    # larger weights than a real start, so that attention and gelu are far from linear
    checkpoint = build(tmp_path / "tower", layers=1, vision=tower, std=0.2, seed=1) if tower else TINY
    model, arrays = vision(checkpoint, max_slab_bytes=4096)
    geometry = Tower.from_keys({field.key: field.value for field in model.metadata})
    size = geometry.image_size
    pixels = np.random.default_rng(0).uniform(-1, 1, (3, size, size)).astype(np.float32)
    mine, theirs = image_features(arrays, geometry, pixels), reference(checkpoint, pixels)
    assert mine.shape == theirs.shape == ((size // geometry.patch_size // 2) ** 2, 256)
    assert np.abs(mine - theirs).max() <= 2e-5 * np.abs(theirs).max()


def test_second_norm_matters_and_has_the_name_that_the_runtime_reads() -> None:
    """The peer's converter names it attn_post_norm, and its runtime then leaves weight and bias out."""
    model, arrays = vision(TINY)
    assert "v.blk.0.ln2.weight" in arrays
    assert not any("attn_post_norm" in name for name in arrays)
    geometry = Tower.from_keys({field.key: field.value for field in model.metadata})
    pixels = np.random.default_rng(0).uniform(-1, 1, (3, geometry.image_size, geometry.image_size)).astype(np.float32)
    plain = {
        name: np.ones_like(array) * name.endswith("weight") if ".ln2." in name else array
        for name, array in arrays.items()
    }
    whole = image_features(arrays, geometry, pixels)
    assert np.abs(image_features(plain, geometry, pixels) - whole).max() > 1e-3 * np.abs(whole).max()


@pytest.mark.parametrize(("type", "patch"), [("f16", "f16"), ("bf16", "f32"), ("f32", "f32"), ("q8_0", "f32")])
def test_kept_types(type: str, patch: str) -> None:
    model, _ = vision(TINY, type=type)
    kept = {output.name: output.keep for output in model.outputs}
    assert kept.pop("v.patch_embd.weight") == patch
    chosen = {name for name, keep in kept.items() if keep is None}
    assert {keep for name, keep in kept.items() if name not in chosen} == {"f32"}
    assert all(name.endswith(".weight") and ("attn_" in name or "ffn_" in name or "mm." in name) for name in chosen)
    assert len(chosen) == 3 * 6 + 3


def changed(tmp_path: Path, **changes: Any) -> Path:
    copy = Path(shutil.copytree(TINY, tmp_path / "model"))
    config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    config["vision_config"] |= changes
    (copy / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return copy


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("pixel_shuffle_ratio", 0.3),
        ("pixel_shuffle_ratio", 0),
        ("image_size", 57),
        ("image_size", [56, 28]),
        ("image_size", "56"),
        ("projector_output_dim", 64),
        ("vision_output_dim", 64),
        ("intermediate_size", 128),
        ("num_attention_heads", 5),
        ("hidden_size", None),
        ("norm_eps", -1),
        ("hidden_act", 3),
    ],
)
def test_values_that_do_not_fit_are_refused_by_key(tmp_path: Path, key: str, value: Any) -> None:
    cp = open_checkpoint(changed(tmp_path, **{key: value}))
    with pytest.raises(CheckpointError, match=rf"config\.json: vision_config\.{key} is "):
        Hyperparameters.from_checkpoint(cp)


def test_projector_bias_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="multi_modal_projector_bias"):
        Hyperparameters.from_checkpoint(open_checkpoint(changed(tmp_path, multi_modal_projector_bias=True)))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("rope_theta", 500, "rope_theta is 500"),
        ("hidden_act", "silu", 'hidden_act is "silu"'),
        ("num_channels", 1, "num_channels is 1"),
        ("norm_eps", 1e-6, "norm_eps is 1e-06"),
    ],
)
def test_what_the_runtime_takes_otherwise_is_said(tmp_path: Path, key: str, value: Any, said: str) -> None:
    hp = Hyperparameters.from_checkpoint(open_checkpoint(changed(tmp_path, **{key: value})))
    assert hp.vision is not None
    (sentence,) = vision_mismatches(hp.vision)
    assert said in sentence


def test_square_image_sizes_may_be_pairs(tmp_path: Path) -> None:
    hp = Hyperparameters.from_checkpoint(open_checkpoint(changed(tmp_path, image_size=[56, 56], patch_size=[14, 14])))
    assert hp.vision is not None
    assert (hp.vision.image_size, hp.vision.patch_size, hp.vision.n_patches) == (56, 14, 16)
    assert vision_mismatches(hp.vision) == []


def test_no_tower_no_mmproj(tmp_path: Path) -> None:
    cp = open_checkpoint(build(tmp_path / "text", layers=1, hidden=32, conditional=False))
    with pytest.raises(CheckpointError, match="no vision_config") as caught:
        vision_model(cp, Hyperparameters.from_checkpoint(cp))
    assert "--mmproj" in caught.value.hint


def test_image_settings_are_needed(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(TINY, tmp_path / "model"))
    (copy / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json: image_mean is missing"):
        vision(copy)


def test_image_settings_as_transformers_5_writes_them(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(TINY, tmp_path / "model"))
    settings = json.loads((copy / "preprocessor_config.json").read_text(encoding="utf-8")) | {
        "image_mean": [0.1, 0.2, 0]
    }
    (copy / "preprocessor_config.json").unlink()
    document = {"processor_class": "Llama4Processor", "image_processor": settings}
    (copy / "processor_config.json").write_text(json.dumps(document), encoding="utf-8")
    before = open_checkpoint(copy).fingerprint
    keys = {field.key: field.value for field in vision(copy)[0].metadata}
    assert keys["clip.vision.image_mean"] == [0.1, 0.2, 0.0]
    assert all(type(item) is float for item in keys["clip.vision.image_mean"])  # integers would be stored as such
    document["image_processor"] = settings | {"image_std": [0.5, 0.5]}
    (copy / "processor_config.json").write_text(json.dumps(document), encoding="utf-8")
    assert open_checkpoint(copy).fingerprint != before
    with pytest.raises(CheckpointError, match=r"/processor_config\.json: image_std is \[0\.5, 0\.5\]"):
        vision(copy)
