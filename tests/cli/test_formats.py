"""`quantkit formats` lists what the machine room and the recipes room have, and agrees with the `gguf` package."""

from __future__ import annotations

import json

import gguf
import pytest
from click.testing import CliRunner

from quantkit.cli import app
from quantkit.cli.formats import PROSE
from quantkit.kernels import FORMATS
from quantkit.recipes import RECIPES


@pytest.fixture(scope="module")
def content() -> dict[str, list[dict[str, object]]]:
    result = CliRunner().invoke(app, ["formats", "--json"])
    assert result.exit_code == 0
    parsed: dict[str, list[dict[str, object]]] = json.loads(result.stdout)
    return parsed


def test_every_format_is_explained() -> None:
    assert set(PROSE) == set(FORMATS)


def test_formats_have_the_sizes_that_gguf_gives_them(content: dict[str, list[dict[str, object]]]) -> None:
    assert {row["name"] for row in content["formats"]} == set(FORMATS)
    for row in content["formats"]:
        block_size, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(row["ggml_type"])]
        assert (row["block_size"], row["block_bytes"]) == (block_size, block_bytes)
        assert row["bits_per_weight"] == block_bytes * 8 / block_size


def test_recipes_have_the_file_types_that_gguf_gives_them(content: dict[str, list[dict[str, object]]]) -> None:
    assert [row["name"] for row in content["recipes"]] == list(RECIPES)
    for row in content["recipes"]:
        assert row["default_type"] in FORMATS
        name = str(row["name"])
        full = {"f32": "ALL_F32"}.get(name, f"MOSTLY_{name.upper()}")
        assert gguf.LlamaFileType[full] == row["file_type"]


def test_the_table_names_each_of_them() -> None:
    result = CliRunner().invoke(app, ["formats"])
    assert result.exit_code == 0
    words = result.stdout.split()
    for name in (*FORMATS, *RECIPES):
        assert name in words
