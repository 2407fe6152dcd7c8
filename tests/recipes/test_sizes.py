"""Sizes of Scout and Maverick, computed by others for llama-quantize, come out of our choices."""

from __future__ import annotations

from math import prod

import pytest
from tests.recipes.llama_quantize import Tensors, llama4_tensors

from quantkit.gguf import tensor_bytes
from quantkit.recipes import ModelShape, choose

SCOUT, MAVERICK = ModelShape(48, 40, 8, 16), ModelShape(48, 40, 8, 128)


def released(shape: ModelShape) -> Tensors:
    """All tensors of Scout (every layer has experts, rope_freqs) or Maverick (every other layer)."""
    scout = shape is SCOUT
    return llama4_tensors(
        shape,
        width=5120,
        expert_width=8192,
        dense_width=16384,
        kv_width=1024,
        vocab=202_048,
        step=1 if scout else 2,
        rope_freqs=64 if scout else 0,
    )


def test_tensor_lists_are_those_of_the_releases() -> None:
    vision_weights = {SCOUT: 108_641_793_536, MAVERICK: 401_583_781_376}
    for shape, n_tensors in ((SCOUT, 628), (MAVERICK, 531)):
        tensors = released(shape)
        assert len(tensors) == n_tensors
        text = sum(prod(extents) for name, extents in tensors if name != "rope_freqs.weight")
        assert 0.85e9 < vision_weights[shape] - text < 0.88e9  # the rest is the vision tower


@pytest.mark.parametrize(
    ("recipe", "has_imatrix", "scout_gb", "scout_bits", "maverick_gb", "maverick_bits"),
    [
        ("bf16", False, 215.5, None, 801.5, None),
        ("q8_0", False, 114.5, 8.50, 425.8, 8.50),
        ("q6_k", False, 88.4, 6.56, 328.8, 6.56),
        ("q5_k_m", False, 76.5, 5.68, 284.5, 5.68),
        ("q4_k_m", False, 65.4, 4.85, 242.8, 4.85),
        ("q4_k_s", False, 61.4, 4.56, 227.8, 4.55),
        ("q4_0", False, 60.9, 4.52, 225.7, 4.51),
        ("mxfp4_moe", False, 63.2, 4.69, 220.5, 4.40),
        ("iq4_xs", False, 58.3, None, 215.9, None),
        ("iq4_xs", True, 57.6, None, 213.3, None),
        ("q3_k_m", False, 51.7, 3.84, 191.1, 3.81),
        ("q3_k_s", False, 46.7, 3.47, 172.6, 3.45),
        ("q2_k", False, 39.6, 2.94, 145.6, 2.91),
    ],
)
def test_sizes_of_the_releases(
    recipe: str,
    has_imatrix: bool,
    scout_gb: float,
    scout_bits: float | None,
    maverick_gb: float,
    maverick_bits: float | None,
) -> None:
    for shape, gigabytes, bits in ((SCOUT, scout_gb, scout_bits), (MAVERICK, maverick_gb, maverick_bits)):
        tensors = released(shape)
        choices = choose(recipe, shape, tensors, has_imatrix=has_imatrix)
        assert not any(choice.fell_back for choice in choices)
        n_bytes = sum(tensor_bytes(s, choice.type) for (_, s), choice in zip(tensors, choices, strict=True))
        # Printed to 0.1 GB, some with and some without a header (vocabulary and merges) of about 10 MB.
        assert -0.05e9 <= gigabytes * 1e9 - n_bytes <= 0.05e9 + 0.01e9
        if bits is not None:
            assert f"{n_bytes * 8 / sum(prod(s) for _, s in tensors):.2f}" == f"{bits:.2f}"
