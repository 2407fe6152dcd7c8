"""Starting the runner, and reading what it said."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RUNNER = Path(__file__).parent / "runner.py"


def start(**settings: Any) -> subprocess.Popen[str]:
    """A conversion in a process of its own; `settings` are those of `convert` and of the runner."""
    plain = {name: str(value) if isinstance(value, Path) else value for name, value in settings.items()}
    return subprocess.Popen(
        [sys.executable, str(RUNNER), json.dumps(plain)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run(**settings: Any) -> tuple[int, str]:
    """Exit code and output."""
    process = start(**settings)
    out, err = process.communicate(timeout=120)
    assert "Traceback" not in err, err
    return process.returncode, out


def result_of(out: str) -> dict[str, Any]:
    """The result that a conversion printed at its end."""
    return dict(json.loads(out.partition("done ")[2]))


def written_lines(journal: Path) -> list[bytes]:
    """What follows them is room for more."""
    return journal.read_bytes().rstrip(b"\n").split(b"\n")


def wait_for_lines(journal: Path, count: int) -> None:
    """Until a journal has so many: some slabs are finished then."""
    deadline = time.monotonic() + 30
    while not journal.exists() or len(written_lines(journal)) < count:
        assert time.monotonic() < deadline, "nothing was finished within 30 seconds"
        time.sleep(0.005)
