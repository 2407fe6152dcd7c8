"""Every malformed checkpoint, end to end: its class of error, its exit code, its message, and nothing written."""

from __future__ import annotations

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
    assert caught.value.exit_code == getattr(errors, kind.error).exit_code
    assert list(folder.iterdir()) == []
    if kind.stage != "payload":
        with pytest.raises(errors.QuantkitError, match=kind.match):
            plan(checkpoint, folder / "out.gguf", "q8_0", mmproj=mmproj)
