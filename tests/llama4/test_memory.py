"""A stream's memory on layers of the true shapes is the hidden states and 1.5 GB, as `estimate` says beforehand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.llama4.checkpoints import MAVERICK, SCOUT, build

PEAK = Path(__file__).parent / "peak.py"
# Three experts stand for all: they go through the same buffers one after the other.
SHAPES = {
    "scout": SCOUT | {"layers": 1, "experts": 3, "vocab": 4096},
    "maverick": MAVERICK | {"layers": 2, "experts": 3, "vocab": 4096},
}


@pytest.mark.parametrize("name", SHAPES)
def test_peak(name: str, tmp_path: Path) -> None:
    # embeddings and routers decide where tokens go, so these are random
    folder = build(tmp_path / "model", **SHAPES[name], zeros=r"expert|_proj")
    settings: dict[str, Any] = {"checkpoint": str(folder), "sequences": 1, "context": 24, "threads": 2}
    run = subprocess.run([sys.executable, PEAK, json.dumps(settings)], capture_output=True, text=True, check=True)
    report = json.loads(run.stdout)
    assert report["states"] == 24 * 5120 * 4
    assert report["peak_bytes"] < report["states"] + 1.5e9
    assert report["peak_bytes"] < report["states"] + 1.02 * report["working"]
    assert report["peak_bytes"] > 9 * 5120 * 8192 * 2  # two experts and the shared one: the measurement sees them


def test_peak_does_not_grow_with_the_tokens_of_an_expert(tmp_path: Path) -> None:
    """All tokens go to one expert, 8 blocks of them, and hidden states are small beside what an expert computes."""
    shape = {"layers": 1, "experts": 2, "hidden": 256, "expert_width": 8192, "vocab": 4096}
    folder = build(tmp_path / "model", **shape, zeros=r"router|expert")
    peaks = []
    for sequences in (1, 8):
        settings = {"checkpoint": str(folder), "sequences": sequences, "context": 960, "threads": 2}
        run = subprocess.run([sys.executable, PEAK, json.dumps(settings)], capture_output=True, text=True, check=True)
        peaks.append(json.loads(run.stdout)["peak_bytes"])
    assert peaks[1] - peaks[0] < 7 * 960 * 256 * 4 + (16 << 20)
