"""A file whose header does not read back as it was written never gets its name."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantkit.convert import convert
from quantkit.errors import VerificationError


def shifted(header: bytes) -> bytes:
    """Another tensor type: the number behind the extents of the first norm."""
    at = header.index(b"blk.0.attn_norm.weight") + len(b"blk.0.attn_norm.weight") + 4 + 8
    assert header[at : at + 4] == bytes(4)  # f32
    return header[:at] + (30).to_bytes(4, "little") + header[at + 4 :]  # bf16


DAMAGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "magic": (lambda header: b"GGUX" + header[4:], "not a GGUF"),
    "a key": (lambda header: header.replace(b"general.name", b"general.nome"), "the header reads back otherwise"),
    "a tensor's name": (lambda header: header.replace(b"blk.1.attn_q.", b"blk.1.attn_r."), r"blk\.1\.attn_q\.weight"),
    "a tensor's type": (shifted, r"blk\.0\.attn_"),
    "zeros": (lambda header: bytes(len(header)), "not a GGUF"),
}


@pytest.mark.parametrize("name", list(DAMAGES))
def test_a_damaged_header_is_seen(name: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damage, message = DAMAGES[name]
    pwrite, out = os.pwrite, tmp_path / "out.gguf"

    def damaging(fd: int, data: Any, offset: int) -> int:
        if bytes(data[:4]) == b"GGUF" and b"blk.0.attn_norm" in bytes(data):  # of the model, not of its mmproj
            spoilt = damage(bytes(data))
            assert len(spoilt) == len(data)
            assert spoilt != bytes(data)
            return pwrite(fd, spoilt, offset)
        return pwrite(fd, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", damaging)
        with pytest.raises(VerificationError, match=message) as caught:
            convert(tiny, out, "q8_0", mmproj=tmp_path / "mmproj.gguf")
    assert caught.value.exit_code == 7
    assert str(tmp_path / "out.gguf.part") in caught.value.what
    assert caught.value.hint
    assert not list(tmp_path.glob("*.gguf"))
    convert(tiny, out, "q8_0", mmproj=tmp_path / "mmproj.gguf")  # the header is written anew
    assert len(list(tmp_path.iterdir())) == 2


def test_a_file_of_another_size_is_seen(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, fsync = tmp_path / "out.gguf", getattr(os, "fdatasync", os.fsync)

    def growing(fd: int) -> None:
        os.ftruncate(fd, os.fstat(fd).st_size + 32)
        fsync(fd)

    monkeypatch.setattr(os, "fdatasync", growing, raising=False)
    with pytest.raises(VerificationError, match=r"out\.gguf\.part has [\d,]+ bytes, and [\d,]+ were written"):
        convert(tiny, out, "q8_0")
    assert not out.exists()
