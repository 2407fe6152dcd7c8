"""The benchmark of single rows runs, on sizes at which its figures mean nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "bench" / "single_rows.py"


def test_both_sides_change_places_and_the_document_is_written(tmp_path: Path) -> None:
    data = tmp_path / "single-rows.json"
    command = [
        sys.executable, TOOL, "--formats", "q4_0", "q8_0", "--threads", "1", "2", "--size", "128", "512",
        "--placements", "2", "--turns", "1", "--data", data, "--write",
    ]  # fmt: skip
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    records = json.loads(data.read_text())["records"]
    # whether a peer repacks depends on the processor
    cases = {(one["format"], one["form"], one["peer"], one["threads"]) for one in records}
    assert {("q4_0", "plain", "ggml", 1), ("q4_0", "repacked", "ggml", 2), ("q8_0", "repacked", "ggml", 1)} <= cases
    for one in records:
        rates = np.array(one["rates"])
        assert rates.shape == (2, 2)
        assert (rates > 0).all()
    first = next(one for one in records if (one["format"], one["form"], one["threads"]) == ("q4_0", "plain", 1))
    logs = np.log(np.array(first["rates"]))
    lines = (tmp_path / "single-rows.md").read_text().splitlines()
    line = next(line for line in lines if line.startswith("| q4_0 | 1 | plain | ggml |"))
    assert abs(float(line.split("|")[7]) - np.exp((logs[:, 0] - logs[:, 1]).mean())) < 0.001
