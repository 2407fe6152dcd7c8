"""Stopped anywhere, the same command goes on to the same bytes; with anything changed it refuses, and says what."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from tests.convert.process import result_of, run, start, wait_for_lines, written_lines

from quantkit.convert import Tuning, convert, plan
from quantkit.errors import PlanRefusedError, ResumeError

SMALL = {"slab_bytes": 20_000, "chunk_bytes": 8_000, "sync_bytes": 30_000, "sync_seconds": 0.02}
N_KILLS = 20


def interrupt(out: Path, checkpoint: Path, **settings: Any) -> None:
    """Leave a conversion unfinished, with some slabs in its journal."""
    settings = {"types": ["q8_0"], "write_seconds": 0.003, "tuning": SMALL, **settings}
    process = start(checkpoint=checkpoint, out=out, **settings)
    assert process.stdout is not None
    assert process.stdout.readline() == "walking\n"
    journal = out.with_name(out.name.replace("{type}", settings["types"][0]) + ".part.journal")
    wait_for_lines(journal, 3)
    process.kill()
    process.communicate()
    assert not out.exists()


def test_killed_twenty_times(tiny: Path, tmp_path: Path) -> None:
    types = ["q8_0", "bf16"]
    convert(tiny, tmp_path / "whole-{type}.gguf", types, mmproj=tmp_path / "whole-mmproj.gguf")
    whole = {name: (tmp_path / f"whole-{name}.gguf").read_bytes() for name in (*types, "mmproj")}
    settings = {
        "checkpoint": tiny,
        "types": types,
        "out": tmp_path / "killed-{type}.gguf",
        "mmproj": tmp_path / "killed-mmproj.gguf",
        "write_seconds": 0.001,
        "tuning": SMALL,
    }
    chance = random.Random(4)
    kills = resumed = 0
    while kills < N_KILLS:
        process = start(**settings)
        assert process.stdout is not None
        assert process.stdout.readline() == "walking\n"
        time.sleep(chance.uniform(0.0, 0.3))
        process.send_signal(signal.SIGKILL)
        out, err = process.communicate(timeout=60)
        if process.returncode == -signal.SIGKILL:
            kills += 1
        else:
            assert process.returncode == 0, err
            resumed += result_of(out)["resumed_slabs"]
        if not list(tmp_path.glob("killed-*.part*")):  # it was through, perhaps killed on its way out
            check_and_remove(whole, tmp_path)
    code, out = run(**{**settings, "write_seconds": 0.0})
    assert code == 0, out
    resumed += result_of(out)["resumed_slabs"]
    check_and_remove(whole, tmp_path)
    assert resumed > 0


def check_and_remove(whole: dict[str, bytes], folder: Path) -> None:
    for name, content in whole.items():
        path = folder / f"killed-{name}.gguf"
        assert path.read_bytes() == content
        path.unlink()
    assert not list(folder.glob("killed-*"))


@pytest.mark.parametrize("split", [False, True])
def test_killed_between_renames(split: bool, tiny: Path, tmp_path: Path) -> None:
    settings = {"types": ["q8_0"], "split_max_size": "2M"} if split else {"types": ["q8_0", "f16"]}
    convert(tiny, tmp_path / "whole-{type}.gguf", **settings, mmproj=tmp_path / "whole-mmproj.gguf")
    whole = {path.name.removeprefix("whole-"): path.read_bytes() for path in tmp_path.glob("whole-*")}
    out, mmproj = tmp_path / "out-{type}.gguf", tmp_path / "out-mmproj.gguf"
    for count in range(len(whole) + 1):
        code, said = run(checkpoint=tiny, out=out, mmproj=mmproj, die_at_rename=count, **settings)
        assert code == -signal.SIGKILL, said
        assert sum(path.suffix == ".part" for path in tmp_path.glob("out-*")) == len(whole) - count
        result = convert(tiny, out, mmproj=mmproj, **settings)
        assert result.resumed_slabs == result.n_slabs
        assert result.read_bytes == 0
        for name, content in whole.items():
            path = tmp_path / f"out-{name}"
            assert path.read_bytes() == content
            path.unlink()
        assert not list(tmp_path.glob("out-*"))


def test_ctrl_c_keeps_what_was_done(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    settings = {"checkpoint": tiny, "out": out, "types": ["q8_0"], "tuning": SMALL}
    process = start(**settings, write_seconds=0.01)
    assert process.stdout is not None
    assert process.stdout.readline() == "walking\n"
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert not out.exists()
    assert (tmp_path / "out.gguf.part").exists()
    code, said = run(**settings)
    assert code == 0
    assert result_of(said)["resumed_slabs"] > 0
    convert(tiny, tmp_path / "whole.gguf", "q8_0")
    assert out.read_bytes() == (tmp_path / "whole.gguf").read_bytes()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("pause", [0.0, 0.01, 0.03])
def test_impatient_ctrl_c(number: signal.Signals, pause: float, tiny: Path, tmp_path: Path) -> None:
    """Again and again while threads are being waited for: it still ends, cleanly, and goes on from there."""
    out = tmp_path / "out.gguf"
    settings = {"checkpoint": tiny, "out": out, "types": ["q8_0"], "tuning": SMALL}
    process = start(**settings, write_seconds=0.1)
    assert process.stdout is not None
    assert process.stdout.readline() == "walking\n"
    wait_for_lines(tmp_path / "out.gguf.part.journal", 2)
    for _ in range(4):
        if process.poll() is None:
            process.send_signal(number)
        time.sleep(pause)
    try:
        _, err = process.communicate(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    assert process.returncode == 130, err
    assert err == ""
    assert not out.exists()
    result = convert(tiny, out, "q8_0", tuning=Tuning(**SMALL))
    assert result.resumed_slabs > 0


def test_torn_last_line_is_dropped(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    interrupt(out, tiny)
    journal = tmp_path / "out.gguf.part.journal"
    lines = written_lines(journal)
    journal.write_bytes(b"\n".join([*lines, lines[1][:-9]]) + b"\n" * 1000)
    result = convert(tiny, out, "q8_0", tuning=Tuning(**SMALL))
    assert 0 < result.resumed_slabs < result.n_slabs
    assert 0 < result.read_bytes < result.source_bytes
    convert(tiny, tmp_path / "whole.gguf", "q8_0")
    assert out.read_bytes() == (tmp_path / "whole.gguf").read_bytes()


def test_other_cuts_and_threads_resume(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    interrupt(out, tiny)
    convert(tiny, out, "q8_0", threads=1)
    convert(tiny, tmp_path / "whole.gguf", "q8_0")
    assert out.read_bytes() == (tmp_path / "whole.gguf").read_bytes()


def test_changed_settings_are_named(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    interrupt(out, tiny)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    changes: list[tuple[dict[str, Any], str]] = [
        ({"types": "q4_0"}, r'types was \["q8_0"\], is \["q4_0"\]'),
        ({"types": "q8_0", "pure": True}, "pure was false, is true"),
        ({"types": "q8_0", "tensor_types": [("attn_q", "f16")]}, r'tensor types was \[\], is \["attn_q=f16"\]'),
        ({"types": "q8_0", "output_tensor_type": "f16"}, r'tensor types was \[\], is \["output=f16"\]'),
        ({"types": "q8_0", "split_max_size": "100G"}, "split max size was null, is 100000000000"),
        ({"types": "q8_0", "weighting": "magnitude"}, r'weighting was \["plain"\], is \["magnitude"\]'),
        ({"types": "q8_0", "mmproj": tmp_path / "mmproj.gguf"}, 'mmproj type was null, is "f16"'),
    ]
    for options, message in changes:
        for force in (False, True):
            for call in (plan, convert):
                with pytest.raises(ResumeError, match=message) as caught:
                    call(tiny, out, **options, force=force)
                assert "delete" in caught.value.hint
                assert "old settings" in caught.value.hint
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_changed_version_is_named(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out.gguf"
    interrupt(out, tiny)
    monkeypatch.setattr("quantkit.__version__", "9.9.9")
    with pytest.raises(ResumeError, match=r'quantkit version was "[^"]*", is "9\.9\.9"'):
        convert(tiny, out, "q8_0")


def test_changed_source_is_named(own_tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    interrupt(out, own_tiny)
    shard = own_tiny / "model-00002-of-00003.safetensors"
    status = shard.stat()
    os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns + 1000))
    with pytest.raises(ResumeError, match=f"shard {shard.name} was .* modified"):
        convert(own_tiny, out, "q8_0")
    os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns))
    config = own_tiny / "generation_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"temperature": 0.123}))
    with pytest.raises(ResumeError, match="source fingerprint was"):
        convert(own_tiny, out, "q8_0")


def test_part_without_journal_is_refused(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    interrupt(out, tiny)
    (tmp_path / "out.gguf.part.journal").unlink()
    with pytest.raises(ResumeError, match=r"out\.gguf\.part exists, but no journal"):
        convert(tiny, out, "q8_0")


def test_shortened_part_is_refused(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    interrupt(out, tiny)
    os.truncate(tmp_path / "out.gguf.part", 1000)
    with pytest.raises(ResumeError, match="has 1000 bytes instead of"):
        convert(tiny, out, "q8_0")


def test_journal_without_part_starts_over(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    interrupt(out, tiny)
    (tmp_path / "out.gguf.part").unlink()
    result = convert(tiny, out, "f16")
    assert result.resumed_slabs == 0
    convert(tiny, tmp_path / "whole.gguf", "f16")
    assert out.read_bytes() == (tmp_path / "whole.gguf").read_bytes()


def test_two_processes_do_not_share_an_output(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    first = start(checkpoint=tiny, out=out, types=["q8_0"], write_seconds=0.05, tuning=SMALL)
    assert first.stdout is not None
    assert first.stdout.readline() == "walking\n"
    with pytest.raises(PlanRefusedError, match="another process is writing"):
        convert(tiny, out, "q8_0")
    first.kill()
    first.communicate()
    convert(tiny, out, "q8_0")


def test_a_damaged_journal_is_refused(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    interrupt(out, tiny)
    journal = tmp_path / "out.gguf.part.journal"
    lines = written_lines(journal)
    journal.write_bytes(b"\n".join([lines[0], b"rubbish", *lines[1:]]) + b"\n")
    with pytest.raises(ResumeError, match="line 2"):
        convert(tiny, out, "q8_0")


def test_a_journal_that_cannot_be_read_is_refused(tiny: Path, tmp_path: Path) -> None:
    journal = tmp_path / "out.gguf.part.journal"
    journal.mkdir()  # what root may not read either
    with pytest.raises(ResumeError, match=r"out\.gguf\.part\.journal cannot be read: ") as caught:
        convert(tiny, tmp_path / "out.gguf", "q8_0")
    assert "delete" in caught.value.hint


def test_a_finished_file_that_went_away_is_missed(tiny: Path, tmp_path: Path) -> None:
    settings = {"types": ["q8_0", "f16"]}
    code, _ = run(checkpoint=tiny, out=tmp_path / "out-{type}.gguf", die_at_rename=1, **settings)
    assert code == -signal.SIGKILL
    (tmp_path / "out-q8_0.gguf").unlink()
    with pytest.raises(ResumeError, match=r"out-q8_0\.gguf was finished, but it is gone"):
        convert(tiny, tmp_path / "out-{type}.gguf", **settings)
