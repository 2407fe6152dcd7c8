"""The benchmark of calibration runs, on sizes at which its figures mean nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "bench" / "calibrate.py"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    path = folder / "calibrate.json"
    command = [
        sys.executable, TOOL, "--tiny", "--folder", folder, "--turns", "1", "--threads", "2", "--sizes", "512",
        "--token-sizes", "512", "1024", "--layer-sizes", "1", "2", "--data", path, "--write",
    ]  # fmt: skip
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return path


def test_both_sides_compute_the_same_two_layers(data: Path) -> None:
    records = json.loads(data.read_text())["speed"]["records"]
    sides = {(one["side"], one.get("ubatch")) for one in records}
    assert {("quantkit", None), ("llama.cpp", 512), ("llama.cpp", 2048)} <= sides
    (difference,) = [one["median"] for one in records if one["side"] == "difference of logits"]
    assert 0 < difference < 0.02  # llama.cpp rounds activations to BF16


def test_peaks_are_those_of_the_whole_command(data: Path) -> None:
    records = json.loads(data.read_text())["memory"]["records"]
    cases = {(one["model"], one["router"], one["side"]): one["peak_bytes"] for one in records}
    assert len(cases) == 4
    for (model, router, side), peak in cases.items():
        if side == "stream":
            assert 20e6 < peak < cases[model, router, "command"]  # which has a tokenizer and a self-check too


def test_the_document_has_every_part(data: Path) -> None:
    text = data.with_suffix(".md").read_text()
    titles = [line for line in text.splitlines() if line.startswith("## ")]
    assert titles == [
        "## Against llama.cpp", "## Cost by tokens", "## Cost by layers", "## Memory", "## Whole models, by arithmetic",
    ]  # fmt: skip
    assert all(len(line) <= 120 for line in text.splitlines() if not line.startswith("|"))
    for model in ("Scout", "Maverick"):
        assert f"| {model} | 16 such cores |" in text


def test_the_arithmetic_is_that_of_the_released_models(data: Path) -> None:
    """So the model cards: 109 and 400 billion weights, of which a token meets 17 billion. Embedding and output matrix
    are 1.03 billion each, and are not in here."""
    text = " ".join(data.with_suffix(".md").read_text().split())
    assert "211 GB for Scout, 797 GB for Maverick" in text
    assert "30.5 GFLOP a token for Scout, 30.5 GFLOP a token for Maverick" in text
