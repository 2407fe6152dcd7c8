"""Progress: a bar on a terminal, few lines elsewhere."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from quantkit.cli.output import PlainProgress
from quantkit.convert import Progress

TINY = Path(__file__).parents[1] / "data" / "tiny-llama4"


def report(done: int, tensor: str = "layers.0.q_proj", seconds: float | None = 12.0) -> Progress:
    return Progress(done, 1000, tensor, 50.0, seconds, 0, done // 2)


def test_lines_come_at_the_interval_and_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    show = PlainProgress(interval_seconds=5.0, clock=lambda: now)
    for tenth in range(120):  # 12 seconds
        now = tenth / 10
        show(report(tenth))
    show(report(1000, "", None))
    show(report(1000, "", None))
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert [line.split()[0] for line in lines] == ["0.0", "5.0", "10.0", "100.0"]
    assert lines[1].split("  ")[-1] == "layers.0.q_proj"
    assert "50 B of 1.0 kB" in lines[1]
    assert "50 B/s" in lines[1]
    assert "12.0 s left" in lines[1]


def test_a_bar_is_drawn_on_a_terminal_and_json_stays_clean(tmp_path: Path) -> None:
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "quantkit", "convert", str(TINY), str(tmp_path / "o.gguf"), "--type", "q4_0", "--json"],
        stdout=subprocess.PIPE,
        stderr=follower,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
    )
    os.close(follower)
    assert process.stdout is not None
    stdout = process.stdout.read()
    assert process.wait(timeout=120) == 0
    drawn = os.read(leader, 1 << 16)
    os.close(leader)
    assert stdout.startswith(b"{\n")
    assert stdout.rstrip().endswith(b"}")
    assert b"\x1b[" in drawn
    assert b"MB of " in drawn
