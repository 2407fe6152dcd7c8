"""The mmproj that quantkit writes, in llama.cpp's vision part."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import safetensors.torch
from tests import peer
from tests.llama4.vision_forward import Tower, image_features
from tests.oracle.llama import Model
from tests.oracle.mtmd import Vision
from tests.oracle.reference import Reference

import quantkit

TINY = Path(__file__).parents[1] / "data" / "tiny-llama4"
SIDE, WIDTH = 56, 256  # pixels of the tower's image; columns of an embedding
GRID = SIDE // 14 // 2  # tokens on a side: patches of 14 pixels, shuffled 2 by 2


# Written out here once more, by hand, from the checkpoint's side.
TOWER = {
    "v.class_embd": "class_embedding",
    "v.position_embd.weight": "positional_embedding_vlm",
    "v.patch_embd.weight": "patch_embedding.linear.weight",
    "v.pre_ln": "layernorm_pre",
    "v.post_ln": "layernorm_post",
    "mm.model.mlp.1.weight": "vision_adapter.mlp.fc1.weight",
    "mm.model.mlp.2.weight": "vision_adapter.mlp.fc2.weight",
}
LAYER = {
    "ln1": "input_layernorm",
    "ln2": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_out": "self_attn.o_proj",
    "ffn_up": "mlp.fc1",
    "ffn_down": "mlp.fc2",
}


def checkpoint_name(name: str) -> str:
    """The Hugging Face name of an mmproj tensor; none of them is reordered on the way."""
    if name == "mm.model.fc.weight":
        return "multi_modal_projector.linear_1.weight"
    if name in TOWER:
        return f"vision_model.{TOWER[name]}"
    stem, kind = name.rsplit(".", 1)
    if stem in TOWER:
        return f"vision_model.{TOWER[stem]}.{kind}"
    _, _, layer, part = stem.split(".")
    return f"vision_model.model.layers.{layer}.{LAYER[part]}.{kind}"


def load_tensors(checkpoint: Path) -> dict[str, np.ndarray]:
    """The vision tensors of a checkpoint in float32, by the safetensors package."""
    found = {}
    for shard in sorted(checkpoint.glob("*.safetensors")):
        for name, tensor in safetensors.torch.load_file(shard).items():
            if name.startswith(("vision_model.", "multi_modal_projector.")):
                found[name] = tensor.float().numpy()
    return found


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "f32.gguf"
    quantkit.convert(TINY, path, ["f32"], threads=2)
    return path


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def features(image: np.ndarray) -> np.ndarray:
    """transformers' embeddings of the image, in the order in which the runtime gives them.

    llama.cpp leaves out the pixel shuffle's last exchange of axes, so its tokens run by columns of the image.
    """
    rows = Reference(TINY).image_features(image)
    return rows.reshape(GRID, GRID, WIDTH).transpose(1, 0, 2).reshape(-1, WIDTH)


@pytest.mark.parametrize(("mmproj_type", "tolerance"), [("f32", 1e-3), ("f16", 1e-3), ("bf16", 8e-3), ("q8_0", 8e-3)])
def test_runtime_takes_every_tensor_and_sees_what_transformers_sees(
    mmproj_type: str, tolerance: float, text: Path, image: np.ndarray, features: np.ndarray, tmp_path: Path
) -> None:
    mmproj = tmp_path / "mmproj.gguf"
    quantkit.convert(TINY, None, [], mmproj=mmproj, mmproj_only=True, mmproj_type=mmproj_type, threads=2)
    with Model(text) as model, Vision(mmproj, model) as vision:
        assert vision.n_loaded == len(gguf.GGUFReader(mmproj).tensors)
        assert "unable to find" not in vision.log
        np.testing.assert_allclose(vision.encode(image, WIDTH), features, rtol=0, atol=tolerance)


def test_the_files_own_tensors_give_transformers_features(
    image: np.ndarray, features: np.ndarray, tmp_path: Path
) -> None:
    """Read back, each tensor is the checkpoint's after its named transformation, and a plain forward pass of them all
    sees what transformers sees."""
    mmproj = tmp_path / "mmproj.gguf"
    quantkit.convert(TINY, None, [], mmproj=mmproj, mmproj_only=True, mmproj_type="f32", threads=2)
    file = gguf.GGUFReader(mmproj)
    read = {tensor.name: tensor.data for tensor in file.tensors}
    source = load_tensors(TINY)
    assert len(read) == len(source)
    for name, array in read.items():
        np.testing.assert_array_equal(array, source[checkpoint_name(name)], err_msg=name)
    tower = Tower.from_keys({key: field.contents() for key, field in file.fields.items()})
    pixels = ((image.astype(np.float32) / 255 - 0.5) / 0.5).transpose(2, 0, 1)
    mine = image_features(read, tower, pixels).reshape(GRID, GRID, WIDTH).transpose(1, 0, 2).reshape(-1, WIDTH)
    np.testing.assert_allclose(mine, features, rtol=0, atol=2e-5 * np.abs(features).max())


def test_a_tensor_left_out_is_noticed(text: Path, image: np.ndarray, features: np.ndarray, tmp_path: Path) -> None:
    """The converter of llama.cpp names a norm so that its runtime passes over it; the test above would see that."""
    mmproj = peer.convert(TINY, tmp_path / "mmproj.gguf", "f32", mmproj=True)
    with Model(text) as model, Vision(mmproj, model) as vision:
        assert vision.n_loaded is not None
        assert vision.n_loaded < len(gguf.GGUFReader(mmproj).tensors)
        assert np.abs(vision.encode(image, WIDTH) - features).max() > 8e-3
