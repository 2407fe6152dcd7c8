"""Under --max-ram hidden states lie in a file, and the process stays below what was allowed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.llama4 import checkpoints
from tests.oracle import o200k

from quantkit.calibration.tokens import tokens_bytes

PEAK = Path(__file__).parent / "peak.py"
N_TOKENS = 16384


def run(checkpoint: Path, tokens: int, max_ram_bytes: int | None = None) -> dict[str, Any]:
    settings = {"checkpoint": str(checkpoint), "out": str(checkpoint.parent / "out.gguf"), "tokens": tokens}
    settings |= {"threads": 2, "max_ram_bytes": max_ram_bytes, "force": True}
    done = subprocess.run([sys.executable, PEAK, json.dumps(settings)], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_hidden_states_in_a_file_are_not_in_memory(tmp_path: Path) -> None:
    """Wide states and thin layers: 67 MB of states are most of what the process takes beyond its libraries."""
    folder = checkpoints.build(
        tmp_path / "model", layers=1, experts=2, hidden=1024, expert_width=128, heads=2, kv_heads=1
    )

    in_memory = run(folder, N_TOKENS)
    states = in_memory["states_bytes"]
    assert states == N_TOKENS * 1024 * 4
    limit = in_memory["peak_ram_bytes"] - states
    in_file, short = run(folder, N_TOKENS, limit), run(folder, 1024, limit)
    assert (in_memory["states_in_memory"], in_file["states_in_memory"]) == (True, False)
    assert in_file["peak_bytes"] < limit
    assert in_memory["peak_bytes"] - in_file["peak_bytes"] > 0.8 * states  # the measurement sees them
    # both fill a block of 960 tokens. What more tokens add are themselves, and 4 MiB of states at a time on their way
    # into the files of a resumption; as much again for the allocator
    assert in_file["peak_bytes"] - short["peak_bytes"] < 2 * (tokens_bytes(0, N_TOKENS, 0) + (4 << 20))


def test_what_a_tokenizer_takes_to_read_is_given_back(tmp_path: Path) -> None:
    """A vocabulary of Llama 4's size; 16 MiB for modules and the text's tokens."""
    found = run(o200k.write_checkpoint(tmp_path / "model"), 1024)
    counted = tokens_bytes(200_000, 1024, 620_000)
    assert found["held_bytes"] - found["before_bytes"] < counted + (16 << 20)
    assert found["peak_bytes"] > found["before_bytes"] + 3 * counted  # the measurement sees what it took
