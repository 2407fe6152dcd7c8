"""Under --max-ram hidden states lie in a file, and the process stays below what was allowed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.llama4 import checkpoints

from quantkit.calibration.tokens import tokens_bytes

PEAK = Path(__file__).parent / "peak.py"
N_TOKENS = 16384


def test_hidden_states_in_a_file_are_not_in_memory(tmp_path: Path) -> None:
    """Wide states and thin layers: 67 MB of states are most of what the process takes beyond its libraries."""
    folder = checkpoints.build(
        tmp_path / "model", layers=1, experts=2, hidden=1024, expert_width=128, heads=2, kv_heads=1
    )

    def run(tokens: int, max_ram_bytes: int | None = None) -> dict[str, Any]:
        settings = {"checkpoint": str(folder), "out": str(tmp_path / "out.gguf"), "tokens": tokens, "force": True}
        settings |= {"threads": 2, "max_ram_bytes": max_ram_bytes}
        done = subprocess.run([sys.executable, PEAK, json.dumps(settings)], capture_output=True, text=True, check=True)
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    in_memory = run(N_TOKENS)
    states = in_memory["states_bytes"]
    assert states == N_TOKENS * 1024 * 4
    limit = in_memory["peak_ram_bytes"] - states
    in_file, short = run(N_TOKENS, limit), run(1024, limit)
    assert (in_memory["states_in_memory"], in_file["states_in_memory"]) == (True, False)
    assert in_file["peak_bytes"] < limit
    assert in_memory["peak_bytes"] - in_file["peak_bytes"] > 0.8 * states  # the measurement sees them
    # both fill a block of 960 tokens. What more tokens add are themselves, and 4 MiB of states at a time on their way
    # into the files of a resumption; as much again for the allocator
    assert in_file["peak_bytes"] - short["peak_bytes"] < 2 * (tokens_bytes(0, N_TOKENS, 0) + (4 << 20))
