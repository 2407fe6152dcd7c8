"""A disk that fills up, before and during the walk."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.convert.process import result_of, run, start, wait_for_lines

from quantkit.convert import Tuning, convert
from quantkit.errors import OutputError

SMALL = {"slab_bytes": 20_000, "chunk_bytes": 8_000, "sync_bytes": 30_000, "sync_seconds": 0.02}


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


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB; the limit is real, but mounting one needs root."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=7m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_file_system(small_disk: Path, tiny: Path, tmp_path: Path) -> None:
    convert(tiny, tmp_path / "whole.gguf", "q8_0")
    out, ballast = small_disk / "out.gguf", small_disk / "ballast"
    settings = {"checkpoint": tiny, "out": out, "types": ["q8_0"], "tuning": SMALL, "without_preallocation": True}
    # The plan sees room; another program takes it meanwhile.
    process = start(**settings, write_seconds=0.01)
    journal = small_disk / "out.gguf.part.journal"
    wait_for_lines(journal, 3)
    with ballast.open("wb") as file:
        try:
            while True:
                file.write(bytes(1 << 16))
                file.flush()
        except OSError:
            pass
    said, err = process.communicate(timeout=60)
    assert process.returncode == 6, err
    assert "no space left" in json.loads(said.splitlines()[-1])["text"]
    assert not out.exists()
    code, said = run(**settings)  # refused by the plan while the disk is full
    assert (code, json.loads(said.splitlines()[-1])["error"]) == (5, "PlanRefusedError")
    ballast.unlink()
    code, said = run(**settings)
    assert code == 0
    assert result_of(said)["resumed_slabs"] > 0
    assert out.read_bytes() == (tmp_path / "whole.gguf").read_bytes()
