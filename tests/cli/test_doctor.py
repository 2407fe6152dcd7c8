"""`quantkit doctor` says what a bug report needs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

import quantkit
from quantkit.cli import app
from quantkit.kernels import build_info


def test_json_says_what_is_built_and_what_is_in_use() -> None:
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert result.exit_code == 0
    content = json.loads(result.stdout)
    assert content["schema"] == 1
    assert "scalar" in content["tiers_built"]
    assert content["tier"] in content["tiers_supported"]
    assert content["threads"] >= 1
    assert content["compiler"]
    assert content["version"]
    assert content["blas"]["name"]
    assert all(content["packages"].values()), "a run-time dependency is not installed"


def test_text_shows_all_that_json_has() -> None:
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 0
    for name in build_info():
        assert name.replace("_", " ") in result.stdout


def test_the_tier_that_the_environment_asks_for_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANTKIT_TIER", "scalar")
    content = json.loads(CliRunner().invoke(app, ["doctor", "--json"]).stdout)
    assert content["tier_override"] == "scalar"
    assert content["tier"] == "scalar"


def test_a_plan_takes_the_threads_that_are_reported() -> None:
    checkpoint = Path(__file__).parents[1] / "data" / "tiny-llama4"
    assert (
        quantkit.plan(checkpoint).threads == json.loads(CliRunner().invoke(app, ["doctor", "--json"]).stdout)["threads"]
    )
