"""Keys that the peer does not have, and what cannot become a key."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFValueType
from tests.llama4.checkpoints import TINY, build

from quantkit.checkpoint import open_checkpoint
from quantkit.errors import CheckpointError, QuantkitError, UnsupportedModelError
from quantkit.llama4 import Hyperparameters, provenance, text_model


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY, tmp_path / "model"))


def keys(checkpoint: Path) -> dict[str, Any]:
    cp = open_checkpoint(checkpoint)
    return {field.key: field.value for field in text_model(cp, Hyperparameters.from_checkpoint(cp)).metadata}


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def test_end_of_turn_and_of_message_have_their_ids() -> None:
    found = keys(TINY)
    tokens = found["tokenizer.ggml.tokens"]
    assert tokens[found["tokenizer.ggml.eot_token_id"]] == "<|eot|>"
    assert tokens[found["tokenizer.ggml.eom_token_id"]] == "<|eom|>"


def test_provenance_says_what_from_what_and_what_is_off() -> None:
    cp = open_checkpoint(TINY)
    plain = provenance(cp, "q4_k_m")
    assert [field.key for field in plain] == ["quantkit.version", "quantkit.recipe", "quantkit.source_fingerprint"]
    assert [field.value for field in plain[1:]] == ["q4_k_m", cp.fingerprint]
    *_, off = provenance(cp, "q4_k_m", ["a is b", "c is d"])
    assert (off.key, off.value, off.type) == ("quantkit.mismatch", ["a is b", "c is d"], GGUFValueType.ARRAY)


def test_step_that_gives_the_listed_layers_is_written(tmp_path: Path) -> None:
    text = {"moe_layers": [1, 3], "interleave_moe_layer_step": 1}
    checkpoint = build(tmp_path / "model", layers=4, hidden=32, moe_step=2, text_config=text, zeros=True)
    assert keys(checkpoint)["llama4.interleave_moe_layer_step"] == 2


def test_full_attention_everywhere_is_written_as_the_peer_does(tmp_path: Path) -> None:
    text = {"layer_types": ["full_attention"] * 2}
    assert keys(build(tmp_path / "a", layers=2, hidden=32, text_config=text))["llama4.attention.sliding_window"] == 0
    assert "llama4.attention.sliding_window" not in keys(build(tmp_path / "b", layers=2, hidden=32))


def test_holes_in_the_vocabulary_are_filled(tmp_path: Path) -> None:
    found = keys(build(tmp_path / "model", layers=1, hidden=32, vocab=1030, zeros=True))
    assert found["tokenizer.ggml.tokens"][1023:] == [
        "<|reserved_special_token_14|>",
        *(f"[PAD{i}]" for i in range(1024, 1030)),
    ]
    assert found["tokenizer.ggml.token_type"][1024:] == [5] * 6
    assert found["llama4.vocab_size"] == 1030


def test_another_pre_tokenizer_is_refused(copy: Path) -> None:
    path = copy / "tokenizer.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    split = document["pre_tokenizer"]["pretokenizers"][0]
    split["pattern"]["Regex"] = split["pattern"]["Regex"].replace(r"\p{N}{1,3}", r"\p{N}")
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(UnsupportedModelError, match=r"tokenizer\.json: text is split by another regex"):
        keys(copy)


@pytest.mark.parametrize("commit", ["0a1b2c3d" * 5, "a1b2c3d4" * 5, "12345678" * 5])
def test_snapshots_in_the_cache_are_named_after_their_repository(tmp_path: Path, commit: str) -> None:
    """The folder is a commit, which is what the peer takes for a part of the name."""
    snapshot = tmp_path / "models--acme--Tiny-4-Chat-v2" / "snapshots" / commit
    shutil.copytree(TINY, snapshot)
    found = keys(snapshot)
    assert found["general.name"] == "Tiny 4 Chat v2"
    assert found["general.organization"] == "Acme"
    assert not any(commit in str(value).lower() for key, value in found.items() if key.startswith("general."))
    assert (found["general.finetune"], found["general.version"]) == ("Chat", "v2")
    (snapshot / "README.md").write_text("---\nname: Its own\n---\n", encoding="utf-8")
    assert keys(snapshot)["general.name"] == "Its own"


def test_numbers_in_a_model_card_are_text(copy: Path) -> None:
    (copy / "README.md").write_text("---\nversion: 1.5\ntags: [moe, 2025]\n---\n", encoding="utf-8")
    found = keys(copy)
    assert found["general.version"] == "1.5"
    assert found["general.tags"] == ["moe", "2025"]


@pytest.mark.parametrize(
    "card",
    [
        "license: {name: mit}",
        "name: [a, b]",
        "tags: [[a]]",
        "language: [{a: b}]",
        "base_model: [{name: [1]}]",
        "datasets: [{name: {a: b}}]",
        "tags: [a, true]",
        "name: true",
    ],
)
def test_a_model_card_that_cannot_become_keys_is_refused(copy: Path, card: str) -> None:
    (copy / "README.md").write_text(f"---\n{card}\n---\n", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"README\.md"):
        keys(copy)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temperature", "0.6"),
        ("top_p", [0.9]),
        ("top_k", 1.5),
        ("top_k", 2**40),
        ("temperature", True),
        ("min_p", 1e300),
    ],
)
def test_sampling_settings_of_another_type_are_refused(copy: Path, key: str, value: Any) -> None:
    edit(copy / "generation_config.json", **{key: value})
    with pytest.raises(QuantkitError, match=r"generation_config\.json: .*general\.sampling"):
        keys(copy)


def test_templates_whose_names_fall_together(copy: Path) -> None:
    templates = [{"name": name, "template": "x"} for name in ("default", "tool-use", "tool_use")]
    edit(copy / "tokenizer_config.json", chat_template=templates)
    with pytest.raises(CheckpointError, match="tool_use"):
        keys(copy)
