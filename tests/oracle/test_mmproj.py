"""The mmproj that quantkit writes, in llama.cpp's vision part."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from tests import peer
from tests.oracle.llama import Model
from tests.oracle.mtmd import Vision
from tests.oracle.reference import Reference

import quantkit

TINY = Path(__file__).parents[1] / "data" / "tiny-llama4"
SIDE, WIDTH = 56, 256  # pixels of the tower's image; columns of an embedding
GRID = SIDE // 14 // 2  # tokens on a side: patches of 14 pixels, shuffled 2 by 2


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


def test_a_tensor_left_out_is_noticed(text: Path, image: np.ndarray, features: np.ndarray, tmp_path: Path) -> None:
    """The converter of llama.cpp names a norm so that its runtime passes over it; the test above would see that."""
    mmproj = peer.convert(TINY, tmp_path / "mmproj.gguf", "f32", mmproj=True)
    with Model(text) as model, Vision(mmproj, model) as vision:
        assert vision.n_loaded is not None
        assert vision.n_loaded < len(gguf.GGUFReader(mmproj).tensors)
        assert np.abs(vision.encode(image, WIDTH) - features).max() > 8e-3
