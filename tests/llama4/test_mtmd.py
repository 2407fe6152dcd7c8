"""The mmproj in the hands of the runtime: every tensor is read, and the features are those of the forward pass."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from tests import peer
from tests.llama4 import mtmd
from tests.llama4.checkpoints import TINY
from tests.llama4.gathering import gather
from tests.llama4.vision_forward import Tower, image_features, tanh_gelu

from quantkit.checkpoint import open_checkpoint
from quantkit.llama4 import Hyperparameters, Model, text_model, vision_model


def write(path: Path, architecture: str, model: Model, arrays: dict[str, np.ndarray]) -> Path:
    """A GGUF in float32, by the gguf package alone."""
    writer = gguf.GGUFWriter(path, architecture)
    for field in model.metadata:
        if field.key != "general.architecture":
            writer.add_key_value(field.key, field.value, field.type, field.sub_type)
    for output in model.outputs:
        writer.add_tensor(output.name, arrays[output.name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """tiny-llama4 as two files of ours in float32, the tower's tensors, and an image."""
    folder = tmp_path_factory.mktemp("mtmd")
    cp = open_checkpoint(TINY)
    hp = Hyperparameters.from_checkpoint(cp)
    text, vision = text_model(cp, hp), vision_model(cp, hp, type="f32")
    arrays = gather(cp, vision)
    assert hp.vision is not None
    side = hp.vision.image_size
    image = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    pixels = ((image.astype(np.float32) / 255 - 0.5) / 0.5).transpose(2, 0, 1)
    tower = Tower.from_keys({field.key: field.value for field in vision.metadata})
    features = image_features(arrays, tower, pixels, gelu=tanh_gelu)
    # the runtime leaves out the last swap of axes in the pixel shuffle: the grid of tokens comes transposed
    grid = int(len(features) ** 0.5)
    return {
        "text": write(folder / "text.gguf", "llama4", text, gather(cp, text)),
        "mmproj": write(folder / "mmproj.gguf", "clip", vision, arrays),
        "image": image,
        "expected": features.reshape(grid, grid, -1).transpose(1, 0, 2).reshape(features.shape),
        "n_tensors": len(vision.outputs),
    }


def error(features: np.ndarray, expected: np.ndarray) -> float:
    """Relative, in the Euclidean norm."""
    return float(np.linalg.norm(features - expected) / np.linalg.norm(expected))


def loaded() -> int:
    (count,) = re.findall(r"load_tensors: loaded (\d+) tensors", "".join(mtmd.LOG))
    return int(count)


def test_the_runtime_reads_every_tensor_and_computes_the_same_features(tiny: dict[str, Any]) -> None:
    features = mtmd.encode_tile(tiny["text"], tiny["mmproj"], tiny["image"])
    assert features.shape == tiny["expected"].shape
    assert loaded() == tiny["n_tensors"]
    # its gelu is looked up in a table of float16
    assert error(features, tiny["expected"]) < 2e-3


def test_the_peers_file_loses_the_second_norm_in_its_own_runtime(tiny: dict[str, Any], tmp_path: Path) -> None:
    """Why we differ from the peer's names; once this fails, the difference may have become needless."""
    mmproj = peer.convert(TINY, tmp_path / "mmproj.gguf", "f32", mmproj=True)
    features = mtmd.encode_tile(tiny["text"], mmproj, tiny["image"])
    assert loaded() < tiny["n_tensors"]
    assert error(features, tiny["expected"]) > 5e-2
