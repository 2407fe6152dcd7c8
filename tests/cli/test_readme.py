"""README says what is so: its commands have the form that users and CI rely on, and its sizes are those of a plan."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.llama4.checkpoints import MAVERICK, SCOUT, build

import quantkit
from quantkit.recipes import RECIPES

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def test_the_first_two_blocks_are_one_command_line_each_in_a_virtual_environment_of_its_own() -> None:
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert [language for language, _ in blocks[:2]] == ["sh", "sh"]
    first, second = (body for _, body in blocks[:2])
    for body, folder in ((first, ".venv"), (second, ".venv-test")):
        assert body.count("\n") == 1
        assert body.startswith(f"python3 -m venv {folder} && {folder}/bin/pip install -q ")
    assert "quantkit convert tests/data/tiny-llama4 " in first
    assert second.rstrip().endswith("-m pytest -n 2")


@pytest.mark.parametrize(("column", "shape"), [(1, SCOUT), (2, MAVERICK)], ids=["scout", "maverick"])
def test_the_sizes_of_recipes_are_those_of_a_plan(column: int, shape: dict[str, int], tmp_path: Path) -> None:
    rows = [
        [cell.strip(" `") for cell in line.strip("|").split("|")] for line in README.splitlines() if line[:3] == "| `"
    ]
    stated = {row[0]: row for row in rows if row[0] in RECIPES}
    assert {name: row[4] for name, row in stated.items()} == {name: RECIPES[name].description for name in RECIPES}
    checkpoint = build(tmp_path / "checkpoint", **shape, zeros=True)
    for output in quantkit.plan(checkpoint, types=["bf16", "q4_k_m", "q3_k_l", "mxfp4_moe"]).outputs:
        assert stated[output.recipe][column] == f"{output.n_bytes / 1e9:.1f}", output.recipe
        if column == 1:
            assert stated[output.recipe][3] == f"{output.bits_per_weight:.2f}", output.recipe
