"""The benchmark of the kernels runs, on sizes at which its figures mean nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "bench" / "kernels.py"


def test_measures_both_sides_and_writes_the_document(tmp_path: Path) -> None:
    data = tmp_path / "kernels.json"
    command = [
        sys.executable, TOOL, "--only", "matmul", "experts", "encode", "decode", "--formats", "q4_0", "--threads", "1",
        "--rows", "1", "64", "--experts", "4", "--size", "128", "512", "--turns", "1", "--data", data, "--write",
    ]  # fmt: skip
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(data.read_text())
    sides = {label: one["name"] for label, one in found["contenders"].items()}
    for part in ("matmul", "experts", "encode", "decode"):
        names = {sides[one["contender"]] for one in found["records"] if one["part"] == part}
        assert {"quantkit", "ggml"} <= names, (part, names)
    for one in found["records"]:
        assert one["seconds"] > 0
        if one["part"] in ("matmul", "experts"):
            assert 0 <= one["error"] < 0.03
            assert one["limit_seconds"] > 0
    document = (tmp_path / "kernels.md").read_text().replace(" †", "")  # a machine that was slow in between
    assert "| q4_0, 1 row | GB/s |" in document
    assert "| q4_0, 4 experts | GOP/s |" in document
