"""A disk that fills up, before and during the walk."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.convert.process import run
from tests.convert.small_disk import SMALL

from quantkit.convert import Tuning, convert
from quantkit.errors import OutputError

ROOT = Path(__file__).parents[2]


def test_no_room_for_the_whole_file(tiny: Path, tmp_path: Path) -> None:
    """The limit on file size strikes at preallocation: nothing is left behind."""
    out = tmp_path / "out.gguf"
    code, said = run(checkpoint=tiny, out=out, types=["q8_0"], max_file_bytes=1 << 20)
    failure = json.loads(said.splitlines()[-1])
    assert (code, failure["error"]) == (6, "OutputError")
    assert "bytes are still needed" in failure["text"]
    assert not list(tmp_path.iterdir())
    convert(tiny, out, "q8_0")


def test_full_in_the_midst(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without preallocation the disk fills late; what was written is kept, and the same command goes on."""
    convert(tiny, tmp_path / "whole.gguf", "q8_0")
    pwrite, room = os.pwrite, [2_000_000]
    out, journal = tmp_path / "out.gguf", tmp_path / "out.gguf.part.journal"

    def filling(fd: int, data: Any, offset: int) -> int:
        if not os.path.samestat(os.fstat(fd), journal.stat()):  # that one took its room at the beginning
            room[0] -= len(data)
            if room[0] < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(fd, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", filling)
        with pytest.raises(OutputError, match=r"no space left: [\d,]+ of its [\d,]+ bytes are still needed") as caught:
            convert(tiny, out, "q8_0", tuning=Tuning(**SMALL))
    assert "same command" in caught.value.hint
    assert not out.exists()
    result = convert(tiny, out, "q8_0", tuning=Tuning(**SMALL))
    assert result.resumed_slabs > 0
    assert out.read_bytes() == (tmp_path / "whole.gguf").read_bytes()


def own_mounts(folder: Path) -> list[str]:
    """The command that gives what follows it mounts of its own: as root, or as root of a user namespace."""
    refusals = []
    for prefix in (["unshare", "--mount"], ["unshare", "--map-root-user", "--mount"]):
        try:
            tried = subprocess.run([*prefix, "mount", "-t", "tmpfs", "tmpfs", folder], capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip("there is no `unshare` here, so no small file system can be had")
        if tried.returncode == 0:
            return prefix
        refusals.append(tried.stderr.strip())
    pytest.skip(f"neither root nor user namespaces, so no small file system can be had: {refusals}")


def test_a_full_file_system(tiny: Path, tmp_path: Path) -> None:
    """As `test_full_in_the_midst`, but the kernel says that the disk is full."""
    convert(tiny, tmp_path / "whole.gguf", "q8_0")
    folder = tmp_path / "disk"
    folder.mkdir()
    command = [*own_mounts(folder), sys.executable, "-m", "tests.convert.small_disk", tiny, folder]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr
