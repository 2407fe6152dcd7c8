"""What the runtime hard-codes: each difference is one sentence, and the released models have none."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from tests.llama4.checkpoints import MAVERICK, SCOUT, SCOUT_ROPE_SCALING, TINY, build

from quantkit.checkpoint import open_checkpoint
from quantkit.llama4 import Hyperparameters, mismatches

SMALL = {"hidden": 32, "heads": 2, "kv_heads": 1, "head_dim": 16, "expert_width": 32, "zeros": True}


def found(folder: Path, text: dict[str, Any] | None = None, **options: Any) -> list[str]:
    checkpoint = build(folder / "model", **{**SMALL, "layers": 8, **options}, text_config=text)
    return mismatches(Hyperparameters.from_checkpoint(open_checkpoint(checkpoint)))


@pytest.mark.parametrize("shape", [SCOUT, MAVERICK], ids=["Scout", "Maverick"])
@pytest.mark.parametrize("transformers5", [False, True])
def test_released_shapes_have_none(tmp_path: Path, shape: dict[str, Any], transformers5: bool) -> None:
    scaling = SCOUT_ROPE_SCALING if shape is SCOUT else None
    assert found(tmp_path, **{**shape, "layers": 4, "transformers5": transformers5, "rope_scaling": scaling}) == []


def test_tiny_has_none() -> None:
    assert mismatches(Hyperparameters.from_checkpoint(open_checkpoint(TINY))) == []


EVERY_FOURTH = [1, 1, 1, 0, 1, 1, 1, 0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ({"attention_chunk_size": 4096}, "attention_chunk_size is 4096; the runtime always uses 8192"),
        ({"attention_chunk_size": None}, "attention_chunk_size is null"),
        ({"floor_scale": 4096}, "floor_scale is 4096"),
        ({"attn_scale": 0.2}, "attn_scale is 0.2"),
        ({"attn_temperature_tuning": False}, "attn_temperature_tuning is off"),
        ({"attn_temperature_tuning": 0}, "attn_temperature_tuning is off"),
        ({"use_qk_norm": False}, "use_qk_norm is false; with 4 experts the runtime has it on"),
        ({"hidden_act": "gelu"}, 'hidden_act is "gelu"'),
        ({"moe_layers": [0, 5]}, r"moe_layers is \[0, 5\]"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, 'rope_type is "yarn"'),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, 'rope_type is "linear"'),
        (
            {"layer_types": ["full_attention"] * 4 + ["chunked_attention"] * 4},
            r"layers with full attention are \[0, 1, 2, 3\]; the runtime takes every 4th layer",
        ),
        ({"layer_types": ["full_attention"] * 8}, "all layers have full attention"),
        (
            {"no_rope_layers": [1, 0] * 4, "layer_types": ["chunked_attention", "full_attention"] * 4},
            r"layers without RoPE are \[1, 3, 5, 7\]",
        ),
    ],
)
def test_each_difference_is_said(tmp_path: Path, text: dict[str, Any], said: str) -> None:
    sentences = found(tmp_path, text)
    assert re.search(said, sentences[0])
    # both views of attention differ where the last case changes both
    assert len(sentences) == (2 if "no_rope_layers" in text else 1)


def test_rope_everywhere_makes_the_temperature_irrelevant(tmp_path: Path) -> None:
    kinds = ["full_attention" if layer % 4 == 3 else "chunked_attention" for layer in range(8)]
    text = {"no_rope_layers": [1] * 8, "layer_types": kinds, "attn_temperature_tuning": False, "floor_scale": 1}
    assert found(tmp_path, text) == ["layers without RoPE are none; the runtime takes every 4th layer"]


def test_the_norm_of_queries_and_keys_goes_by_the_number_of_experts(tmp_path: Path) -> None:
    assert found(tmp_path / "a", {"use_qk_norm": False}, experts=128) == []
    (sentence,) = found(tmp_path / "b", {"use_qk_norm": True}, experts=128)
    assert "with 128 experts the runtime has it off" in sentence


def test_an_interval_of_its_own(tmp_path: Path) -> None:
    sentences = found(tmp_path, {"no_rope_layers": [], "no_rope_layer_interval": 2})
    assert "layers without RoPE are [1, 3, 5, 7]" in sentences[0]
