"""Memory does not grow with the model: layers of the true shapes, as sparse files of zeros.

A few experts stand for all of them, since experts pass through the same buffers one by one; `tools/memory.py` does
whole layers.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.llama4.checkpoints import MAVERICK, SCOUT, build

PEAK = Path(__file__).parent / "peak.py"
GB = 10**9


def measure(shape: dict[str, Any], types: list[str], folder: Path) -> dict[str, float]:
    """Peak bytes above the interpreter, and the plan's estimate."""
    checkpoint = build(folder / "model", **shape, zeros=True)
    settings = {"checkpoint": str(checkpoint), "out": str(folder / "{type}.gguf"), "types": types, "threads": 2}
    settings["allow_mismatch"] = True  # qk-norm is decided by the true number of experts
    run = subprocess.run([sys.executable, str(PEAK), json.dumps(settings)], capture_output=True, text=True, check=True)
    return dict(json.loads(run.stdout))


# One layer with experts each: Maverick's comes after a dense one.
SHAPES = {
    "scout": SCOUT | {"layers": 1, "experts": 3, "vocab": 1024},
    "maverick": MAVERICK | {"layers": 2, "experts": 3, "vocab": 1024},
}


@pytest.mark.parametrize(("types", "limit"), [(["q4_k_m"], 1.5 * GB), (["q8_0", "q6_k", "q4_0"], 2.0 * GB)])
def test_peak(types: list[str], limit: float, tmp_path: Path) -> None:
    peaks = {}
    for name, shape in SHAPES.items():
        measured = measure(shape, types, tmp_path / name)
        peaks[name] = measured["peak_bytes"]
        assert peaks[name] < limit
        assert peaks[name] < 1.1 * measured["estimate_bytes"]  # what the plan promised
        assert peaks[name] > 2 * 5120 * 16384 * 2  # two expert slabs: the measurement sees them
        shutil.rmtree(tmp_path / name)
    # both alike, though one model is four times the other: their experts have the same size
    assert peaks["maverick"] == pytest.approx(peaks["scout"], rel=0.1)
