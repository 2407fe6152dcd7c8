"""`quantkit inspect` says what the `gguf` package reads, of files that either of them wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from click.testing import CliRunner

from quantkit.cli import app

TOKENS = [f"token{i}" for i in range(100)]


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "small.gguf"
    writer = gguf.GGUFWriter(path, "llama4")
    writer.add_uint32("llama4.block_count", 3)
    writer.add_float32("general.sampling.temp", float("nan"))
    writer.add_bool("tokenizer.ggml.add_bos_token", True)
    writer.add_array("tokenizer.ggml.tokens", TOKENS)
    writer.add_string("tokenizer.chat_template", "line\n" * 50)
    writer.add_tensor("norm.weight", np.ones(64, np.float32))
    packed = gguf.quantize(np.ones((6, 64), np.float32), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("blk.0.w", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def inspected(*arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["inspect", *arguments, "--json"])
    assert result.exit_code == 0, result.output

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    content: dict[str, Any] = json.loads(result.stdout, parse_constant=refuse)
    return content


def test_json_holds_what_was_written(written: Path) -> None:
    content = inspected(str(written))
    assert content["files"] == [str(written)]
    assert content["n_bytes"] == written.stat().st_size
    assert content["keys"]["llama4.block_count"] == {"type": "uint32", "value": 3}
    assert content["keys"]["tokenizer.ggml.add_bos_token"] == {"type": "bool", "value": True}
    assert content["keys"]["general.sampling.temp"]["value"] == "nan"
    for read, entry in zip(gguf.GGUFReader(written).tensors, content["tensors"], strict=True):
        assert (read.name, read.tensor_type.name.lower()) == (entry["name"], entry["type"])
        assert list(reversed(read.shape.tolist())) == entry["shape"]
        assert (read.n_bytes, read.data_offset) == (entry["n_bytes"], entry["offset_bytes"])
    assert content["types"]["q8_0"] == {"tensors": 1, "weights": 384, "bytes": 408, "bits_per_weight": 8.5}
    assert content["bits_per_weight"] == (64 * 4 + 408) * 8 / (64 + 384)


def test_long_arrays_are_shortened_unless_all_is_asked_for(written: Path) -> None:
    tokens = inspected(str(written))["keys"]["tokenizer.ggml.tokens"]
    assert (tokens["count"], tokens["item_type"]) == (100, "string")
    assert tokens["value"] == TOKENS[:8]
    assert inspected(str(written), "--full")["keys"]["tokenizer.ggml.tokens"]["value"] == TOKENS

    text = CliRunner().invoke(app, ["inspect", str(written)]).stdout
    assert "string[100]" in text
    assert "'token7', …]" in text
    assert "token8'" not in text
    assert "(250 characters)" in text
    assert "token99" in CliRunner().invoke(app, ["inspect", str(written), "--full"]).stdout


def test_tables_name_every_key_type_and_tensor(written: Path) -> None:
    content = inspected(str(written))
    lines = CliRunner().invoke(app, ["inspect", str(written)]).stdout.splitlines()
    first_words = {line.split()[0] for line in lines if line.split()}
    assert first_words >= {*content["keys"], *content["types"], *(tensor["name"] for tensor in content["tensors"])}


@pytest.mark.parametrize("n_bytes", [0, 3, 20, 200, -200])
def test_a_file_that_is_cut_off_is_refused(written: Path, n_bytes: int) -> None:
    written.write_bytes(written.read_bytes()[:n_bytes])
    result = CliRunner().invoke(app, ["inspect", str(written), "--json"])
    assert result.exit_code == 3
    assert str(written) in json.loads(result.stdout)["error"]["message"]


def test_a_file_that_does_not_exist(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["inspect", str(tmp_path / "none.gguf")])
    assert result.exit_code == 3
    assert "none.gguf" in result.stderr
