"""Reading config.json: both spellings, every value checked, and what is not a Llama 4 refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.llama4.checkpoints import SCOUT_ROPE_SCALING, build

from quantkit.checkpoint import open_checkpoint
from quantkit.errors import CheckpointError, UnsupportedModelError
from quantkit.llama4 import Hyperparameters, RopeScaling, mismatches


def read(folder: Path, *, text: dict[str, Any] | None = None, **options: Any) -> Hyperparameters:
    """Hyperparameters of a small checkpoint whose config has been changed."""
    shape = {"layers": 4, "hidden": 32, "heads": 2, "kv_heads": 1, "head_dim": 16, "expert_width": 32, "zeros": True}
    return Hyperparameters.from_checkpoint(
        open_checkpoint(build(folder / "model", **{**shape, **options}, text_config=text))
    )


def test_both_spellings_say_the_same(tmp_path: Path) -> None:
    first_release = {"attn_temperature_tuning": 4, "moe_layers": ...}
    old = read(tmp_path / "old", rope_scaling=SCOUT_ROPE_SCALING, text=first_release)
    new = read(tmp_path / "new", rope_scaling=SCOUT_ROPE_SCALING, transformers5=True)
    assert old == new
    assert old.rope_scaling == RopeScaling(16.0, 1.0, 1.0, 8192)
    assert (old.rope_type, old.rope_theta) == ("llama3", 500000.0)
    assert old.attn_temperature_tuning is True
    assert old.moe_layers == (0, 1, 2, 3)
    assert old.uses_rope == old.is_chunked == (True, True, True, False)


def test_keys_that_older_files_lack_have_transformers_defaults(tmp_path: Path) -> None:
    absent = (
        "moe_layers no_rope_layers use_qk_norm attention_chunk_size attn_temperature_tuning attn_scale floor_scale "
        "rms_norm_eps hidden_act attention_bias num_key_value_heads head_dim rope_theta rope_scaling "
        "num_experts_per_tok"
    )
    hp = read(tmp_path, text=dict.fromkeys(absent.split(), ...), kv_heads=2)
    assert mismatches(hp) == []
    assert (hp.n_kv_heads, hp.head_dim, hp.n_experts_used, hp.rope_theta) == (2, 16, 1, 500000.0)


def test_both_architectures(tmp_path: Path) -> None:
    assert read(tmp_path / "a", conditional=True).conditional
    assert not read(tmp_path / "b", conditional=False).conditional
    # without `architectures` the model type decides
    assert read(tmp_path / "c", config={"architectures": ...}).conditional
    assert not read(tmp_path / "d", conditional=False, config={"architectures": ...}).conditional


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, "architectures is LlamaForCausalLM"),
        ({"architectures": ["Qwen3MoeForCausalLM", "Llama4ForCausalLM"]}, "architectures is Qwen3MoeForCausalLM"),
        ({"architectures": ..., "model_type": "mixtral"}, "model_type is mixtral"),
        ({"architectures": ..., "model_type": ...}, "neither architectures nor model_type"),
    ],
)
def test_other_families_are_refused_by_name(tmp_path: Path, config: dict[str, Any], said: str) -> None:
    with pytest.raises(UnsupportedModelError, match=said):
        read(tmp_path, config=config)


def test_dense_relatives_are_refused_whatever_else_they_lack(tmp_path: Path) -> None:
    text = {"num_local_experts": 0, "interleave_moe_layer_step": 0, "moe_layers": [], "intermediate_size_mlp": ...}
    with pytest.raises(UnsupportedModelError, match=r"num_local_experts is 0.*refuses to load") as caught:
        read(tmp_path, text=text)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    "text", [{"num_local_experts": 1025}, {"attention_bias": True}], ids=["too many experts", "attention bias"]
)
def test_what_the_runtime_has_no_room_for_is_refused(tmp_path: Path, text: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModelError, match=next(iter(text))):
        read(tmp_path, text=text)


WRONG = [
    *[
        (key, value)
        for key in ("hidden_size", "num_hidden_layers", "vocab_size")
        for value in (0, -1, 1.5, "32", True, None, 2**32)
    ],
    *[
        (key, None)
        for key in ("num_attention_heads", "intermediate_size", "intermediate_size_mlp", "max_position_embeddings")
    ],
    ("num_hidden_layers", 513),
    ("num_local_experts", -1),
    ("num_local_experts", None),
    ("num_key_value_heads", 3),
    ("head_dim", 15),
    ("num_experts_per_tok", 5),
    ("num_experts_per_tok", 0),
    ("rms_norm_eps", 0),
    ("rms_norm_eps", "1e-5"),
    ("rope_theta", -1),
    ("rope_theta", 10**400),
    ("rope_scaling", [1]),
    ("moe_layers", [0, -1]),
    ("moe_layers", [0, 1.0]),
    ("moe_layers", "all"),
    ("no_rope_layers", [1, 1, 1]),
    ("no_rope_layers", [1, 1, 1, 2]),
    ("layer_types", ["full_attention"] * 3),
    ("layer_types", ["sliding_attention"] * 4),
    ("layer_types", [1, 2, 3, 4]),
    ("attention_chunk_size", 0),
    ("attention_chunk_size", "8192"),
    ("attn_temperature_tuning", "yes"),
    ("attn_temperature_tuning", 0.5),
    ("floor_scale", 0),
    ("attn_scale", "0.1"),
    ("use_qk_norm", 1),
    ("use_qk_norm", "true"),
    ("hidden_act", 5),
    ("tie_word_embeddings", "no"),
]


@pytest.mark.parametrize(("key", "value"), WRONG, ids=[f"{key}={json.dumps(value)[:20]}" for key, value in WRONG])
def test_wrong_values_are_refused_by_file_and_key(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(CheckpointError, match=rf"config\.json: text_config\.{key} is .*expected") as caught:
        read(tmp_path, text={key: value})
    assert len(caught.value.what) < 400


def test_a_step_of_zero_needs_a_list(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="interleave_moe_layer_step is 0"):
        read(tmp_path, text={"interleave_moe_layer_step": 0, "moe_layers": ...})


@pytest.mark.parametrize("key", ["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"])
def test_llama3_scaling_needs_all_its_values(tmp_path: Path, key: str) -> None:
    scaling = {name: value for name, value in SCOUT_ROPE_SCALING.items() if name != key}
    with pytest.raises(CheckpointError, match=rf"{key} is missing"):
        read(tmp_path, rope_scaling=scaling)


def test_llama3_scaling_with_its_ends_crossed(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"rope_scaling\.high_freq_factor is 0\.5"):
        read(tmp_path, rope_scaling=SCOUT_ROPE_SCALING | {"high_freq_factor": 0.5})


@pytest.mark.parametrize(
    ("listed", "written", "layers", "step"),
    [
        (None, 2, (1, 3), 2),
        ([1, 3], 2, (1, 3), 2),
        ([3, 1, 1], 1, (1, 3), 2),  # the list decides, and the step that gives it is written
        ([2], 1, (2,), 3),
        ([], 1, (), 5),
        ([], 7, (), 7),
        ([0, 1, 2, 3, 4, 5, 47], 1, (0, 1, 2, 3), 1),  # left over from a longer model
        ([0, 3], 2, (0, 3), 2),  # no step gives it: said by `mismatches`
    ],
)
def test_layers_with_experts(
    tmp_path: Path, listed: list[int] | None, written: int, layers: tuple[int, ...], step: int
) -> None:
    text = {"moe_layers": ... if listed is None else listed, "interleave_moe_layer_step": written}
    hp = read(tmp_path, text=text)
    assert (hp.moe_layers, hp.moe_step) == (layers, step)
    assert any("moe_layers" in sentence for sentence in mismatches(hp)) == (layers == (0, 3))


def test_tied_by_the_text_models_own_flag(tmp_path: Path) -> None:
    assert read(tmp_path / "a", text={"tie_word_embeddings": ...}, config={"tie_word_embeddings": True}).tied
    assert not read(tmp_path / "b", text={"tie_word_embeddings": False}, config={"tie_word_embeddings": True}).tied
