"""Every malformed checkpoint, end to end: its class of error, its exit code, its message, and nothing written."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.checkpoint.malformed import KINDS

from quantkit import errors
from quantkit.convert import convert, plan


@pytest.mark.parametrize("name", list(KINDS))
def test_it_is_refused_and_nothing_is_written(name: str, tmp_path: Path) -> None:
    kind = KINDS[name]
    checkpoint = kind.make(tmp_path / "model")
    folder = tmp_path / "out"
    folder.mkdir()
    mmproj = folder / "mmproj.gguf" if kind.vision else None
    with pytest.raises(errors.QuantkitError, match=kind.match) as caught:
        convert(checkpoint, folder / "out.gguf", "q8_0", mmproj=mmproj)
    assert type(caught.value).__name__ == kind.error
    assert caught.value.exit_code == kind.exit_code
    assert list(folder.iterdir()) == []
    if kind.stage != "payload":
        with pytest.raises(errors.QuantkitError, match=kind.match):
            plan(checkpoint, folder / "out.gguf", "q8_0", mmproj=mmproj)


def sample() -> list[str]:
    """Some kinds of each stage, and one of each class of error."""
    names: list[str] = []
    for stage in ("open", "tokenizer", "model", "payload"):
        of_stage = [name for name, kind in KINDS.items() if kind.stage == stage]
        names += of_stage[:: len(of_stage) // 4][:4]
    for error in {kind.error for kind in KINDS.values()} - {KINDS[name].error for name in names}:
        names.append(next(name for name, kind in KINDS.items() if kind.error == error))
    return sorted(names)


@pytest.mark.parametrize("name", sample())
def test_the_process_says_so(name: str, tmp_path: Path) -> None:
    kind = KINDS[name]
    checkpoint = kind.make(tmp_path / "model")
    folder = tmp_path / "out"
    folder.mkdir()
    command = [sys.executable, "-m", "quantkit", "convert", str(checkpoint), str(folder / "out.gguf"), "--type", "q8_0"]
    command += ["--mmproj", str(folder / "mmproj.gguf")] if kind.vision else []
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert run.returncode == kind.exit_code, run.stderr
    assert run.stdout == ""
    # the terminal's width may break the sentence anywhere between words
    assert re.search(kind.match.replace(" ", r"\s+"), run.stderr), run.stderr
    assert str(checkpoint) in re.sub(r"\s+", "", run.stderr)
    assert "Traceback" not in run.stderr
    assert list(folder.iterdir()) == []
