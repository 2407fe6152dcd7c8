"""`quantkit plan`: what it prints is what `convert` then writes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tests.llama4.checkpoints import build

import quantkit
from quantkit.cli import app
from quantkit.cli.units import bytes_text, count_text

TINY = Path(__file__).parents[1] / "data" / "tiny-llama4"


def planned(*arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["plan", str(TINY), "--json", *arguments])
    assert result.exit_code == 0, result.output
    content: dict[str, Any] = json.loads(result.stdout)
    return content


def test_json_adds_up() -> None:
    content = planned("--type", "q4_k_m", "--type", "q8_0")
    assert [output["recipe"] for output in content["outputs"]] == ["q4_k_m", "q8_0"]
    for output in content["outputs"]:
        assert output["tensor_bytes"] == sum(tensor["n_bytes"] for tensor in output["tensors"])
        assert output["tensor_bytes"] == sum(of_type["bytes"] for of_type in output["types"].values())
        assert output["bits_per_weight"] == pytest.approx(output["tensor_bytes"] * 8 / output["n_weights"])
        assert output["n_bytes"] > output["tensor_bytes"]


def test_contexts_and_bandwidth_reach_the_numbers_on_running_it() -> None:
    content = planned("--type", "q8_0", "--context", "1k", "--context", "4096", "--bandwidth", "50")
    small, large = content["outputs"][0]["runtime"]
    assert (small["context"], large["context"]) == (1024, 4096)
    # 4 layers, 2 KV heads of 64, keys and values, 2 bytes each; below 8192 tokens all layers keep the whole context
    assert small["kv_cache_bytes"] == 4 * 2 * 64 * 2 * 2 * 1024
    assert large["kv_cache_bytes"] == 4 * small["kv_cache_bytes"]
    for need in (small, large):
        assert need["tokens_per_second_bound"] == pytest.approx(50e9 / need["bytes_per_token"])


def test_default_contexts_end_at_that_of_the_model() -> None:
    model_context = json.loads((TINY / "config.json").read_text())["text_config"]["max_position_embeddings"]
    contexts = [need["context"] for need in planned("--type", "q8_0")["outputs"][0]["runtime"]]
    assert contexts
    assert max(contexts) <= model_context
    assert len(set(contexts)) == len(contexts)


def test_default_contexts_are_those_of_python_and_of_the_help(tmp_path: Path) -> None:
    checkpoint = build(tmp_path / "checkpoint", text_config={"max_position_embeddings": 1 << 20})
    arguments = ["plan", str(checkpoint), "--type", "q8_0", "--json"]
    stated = json.loads(CliRunner().invoke(app, arguments).stdout)["outputs"][0]["runtime"]
    python = quantkit.plan(checkpoint, types="q8_0").outputs[0].runtime
    assert [need["context"] for need in stated] == [need.context for need in python]
    listed = " ".join(count_text(need.context) for need in python)
    assert f"[default: ({listed})]" in CliRunner().invoke(app, ["plan", "--help"], terminal_width=300).output


def test_the_tables_hold_the_numbers_of_the_json(tmp_path: Path) -> None:
    arguments = ["plan", str(TINY), str(tmp_path / "out.gguf"), "--type", "q4_k_m"]
    content = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    text = CliRunner().invoke(app, arguments).stdout
    output = content["outputs"][0]
    for name, of_type in output["types"].items():
        row = next(line.split() for line in text.splitlines() if line.split()[:1] == [name])
        assert row[1:3] == [str(of_type["tensors"]), f"{of_type['weights']:,}"]
        assert " ".join(row[3:5]) == bytes_text(of_type["bytes"])
    assert f"{output['bits_per_weight']:.3f}" in text
    assert bytes_text(content["peak_ram_bytes"]) in text
    assert bytes_text(content["disk"][0]["needed_bytes"]) in text
    for need in output["runtime"]:
        assert bytes_text(need["kv_cache_bytes"]) in text
        assert f"{need['tokens_per_second_bound']:.1f}" in text


def test_nothing_is_written(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["plan", str(TINY), str(tmp_path / "out.gguf"), "--type", "q4_k_m"])
    assert result.exit_code == 0
    assert list(tmp_path.iterdir()) == []


def test_existing_output_is_refused_as_convert_would(tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    out.write_bytes(b"mine")
    arguments = ["plan", str(TINY), str(out), "--type", "q4_k_m"]
    refused = CliRunner().invoke(app, arguments)
    assert refused.exit_code == 5
    assert "--force" in refused.stderr
    assert CliRunner().invoke(app, [*arguments, "--force"]).exit_code == 0
    assert out.read_bytes() == b"mine"


def test_fallbacks_are_listed_with_their_cost_and_strict_refuses_them() -> None:
    # The vision tower's matrices have rows of 64 and 128: no whole blocks of 256.
    arguments = ["--type", "q4_k_m", "--mmproj", "mm.gguf", "--mmproj-type", "q4_k"]
    mmproj = next(output for output in planned(*arguments)["outputs"] if output["kind"] == "mmproj")
    assert mmproj["fallbacks"]
    for fallback in mmproj["fallbacks"]:
        assert fallback["type"] != fallback["wanted"] == "q4_k"
    assert mmproj["bits_per_weight"] > mmproj["nominal_bits_per_weight"]

    text = CliRunner().invoke(app, ["plan", str(TINY), *arguments]).stdout
    assert f"{len(mmproj['fallbacks'])} tensors" in text
    first = mmproj["fallbacks"][0]
    assert re.sub(r"\.\d+\.", ".N.", first["tensor"]) in text
    assert first["reason"] in text

    strict = CliRunner().invoke(app, ["plan", str(TINY), *arguments, "--strict"])
    assert strict.exit_code == 5
    assert mmproj["fallbacks"][0]["tensor"] in strict.stderr


def test_types_of_single_tensors() -> None:
    content = planned(
        "--type", "q4_k_m", "--tensor-type", "ffn_down_exps=Q8_0", "--token-embedding-type", "f16",
        "--output-tensor-type", "q5_k",
    )  # fmt: skip
    types = {tensor["name"]: tensor["type"] for tensor in content["outputs"][0]["tensors"]}
    assert types["token_embd.weight"] == "f16"
    assert types["output.weight"] == "q5_k"
    assert {name: type for name, type in types.items() if "ffn_down_exps" in name} == dict.fromkeys(
        [f"blk.{layer}.ffn_down_exps.weight" for layer in range(4)], "q8_0"
    )
