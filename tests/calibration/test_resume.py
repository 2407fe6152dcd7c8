"""Killed anywhere, the same call goes on to the same bytes; with anything changed it refuses, and says what."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.calibration.process import Process
from tests.llama4 import checkpoints

import quantkit
from quantkit.calibration import Calibration, Cost, Progress
from quantkit.calibration.savepoint import Savepoint
from quantkit.calibration.text import DEFAULT_PATH
from quantkit.checkpoint import open_checkpoint
from quantkit.errors import CheckpointError, NonFiniteError, OutputError, PlanRefusedError, QuantkitError, ResumeError
from quantkit.gguf import read_imatrix
from quantkit.llama4.forward import Stream

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "data" / "tiny-llama4"
N_KILLS = 20
# three rounds
RUN: dict[str, Any] = {
    "checkpoint": TINY,
    "text": [ROOT / "LICENSE"],
    "context": 64,
    "tokens": 512,
    "min_tokens_per_expert": 10**6,
    "max_tokens": 1536,
    "threads": 1,
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two dense layers, one with experts between them."""
    return checkpoints.build(tmp_path_factory.mktemp("small") / "model", layers=3, experts=2, moe_step=2)


class Stopped(Exception):
    """What a report raises to stop a calibration."""


def stop(out: Path, *, round: int = 1, layer: int = 2, error: BaseException | None = None, **changed: Any) -> None:
    """Leave a calibration unfinished, at the beginning of a layer."""
    stopping = error or Stopped()

    class Stopping(Stream):
        def advance(self) -> None:
            if (walk[0], self.layer) == (round, layer):
                raise stopping
            super().advance()

    walk = [0]

    def report(progress: Progress) -> None:
        walk[0] = progress.round

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("quantkit.calibration.walk.Stream", Stopping)
        with pytest.raises(type(stopping)):
            quantkit.calibrate(**{**RUN, "out": out, "progress": report, **changed})
    assert not out.exists()


def small_ram(tmp_path: Path, threads: int) -> int:
    """Just too little for hidden states, which then lie in a file."""
    run = {"out": tmp_path / "cost.gguf", "threads": threads}
    limit = cost_of(**run).peak_ram_bytes - 1
    assert not cost_of(**run, max_ram_bytes=limit).states_in_memory
    assert not names(tmp_path)
    return limit


def cost_of(**changed: Any) -> Cost:
    """What a calibration announces, which then computes nothing."""
    costs: list[Cost] = []

    def stopping(cost: Cost) -> None:
        costs.append(cost)
        raise Stopped

    with pytest.raises(Stopped):
        quantkit.calibrate(**{**RUN, **changed}, announce=stopping)
    return costs[0]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_killed_twenty_times(tmp_path: Path) -> None:
    """Hidden states in memory or in a file, by one, two or three threads, changing from run to run."""
    whole, out = tmp_path / "whole.gguf", tmp_path / "out.gguf"
    limits = {threads: small_ram(tmp_path, threads) for threads in (1, 2, 3)}
    process = Process({**RUN, "out": whole})
    process.wait_for_layers()
    start = time.monotonic()
    assert process.end() == 0
    seconds = time.monotonic() - start
    chance = random.Random(5)
    kills = went_on = 0
    while kills < N_KILLS:
        went_on += (tmp_path / "out.gguf.part.states-1").exists()
        threads = chance.choice([1, 2, 3])
        limit = limits[threads] if kills % 2 else None
        process = Process({**RUN, "out": out, "threads": threads, "max_ram_bytes": limit})
        process.wait_for_layers()
        while kills % 2 and process.is_running() and not (tmp_path / "out.gguf.part.states-1").exists():
            time.sleep(0.001)  # so that however fast or busy the machine is, there is something to go on from
        time.sleep(chance.uniform(0, seconds / 2))
        process.kill()
        code = process.end()
        kills += code == -signal.SIGKILL
        assert code in (0, -signal.SIGKILL)
        if out.exists() and not (tmp_path / "out.gguf.part.journal").exists():
            assert out.read_bytes() == whole.read_bytes()
            out.unlink()
    quantkit.calibrate(**RUN, out=out)
    assert out.read_bytes() == whole.read_bytes()
    assert names(tmp_path) == {"whole.gguf", "out.gguf"}
    assert went_on > N_KILLS // 4


@pytest.mark.parametrize("power_cut", [False, True])
def test_killed_between_any_two_steps(
    power_cut: bool, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quantkit.calibration.walk.check_layers", lambda *_: None)  # for speed, as in the process
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    monkeypatch.setattr(os, "fdatasync", lambda fd: None, raising=False)
    whole, out = tmp_path / "whole.gguf", tmp_path / "out.gguf"
    run = {**RUN, "checkpoint": small, "context": 16, "tokens": 32, "max_tokens": 64}
    first = quantkit.calibrate(**run, out=whole)
    assert len(first.rounds) == 2
    n_steps = 0
    while (code := Process({**run, "out": out}, die_at=n_steps, power_cut=power_cut).end()) != 0:
        assert code == -signal.SIGKILL, n_steps
        if not out.exists() or (tmp_path / "out.gguf.part.journal").exists():
            result = quantkit.calibrate(**run, out=out)
            assert (result.ending, result.short, result.tokens) == (first.ending, first.short, first.tokens)
        assert out.read_bytes() == whole.read_bytes(), n_steps
        assert names(tmp_path) == {"whole.gguf", "out.gguf"}, n_steps
        out.unlink()
        n_steps += 1
    assert n_steps > (10 if power_cut else 40)


def test_it_goes_on_where_it_stopped(tmp_path: Path) -> None:
    whole = quantkit.calibrate(**RUN, out=tmp_path / "whole.gguf")
    out = tmp_path / "out.gguf"
    costs: list[Cost] = []
    reports: list[Progress] = []
    stop(out, round=2, layer=3)
    result = quantkit.calibrate(**RUN, out=out, announce=costs.append, progress=reports.append)
    assert out.read_bytes() == (tmp_path / "whole.gguf").read_bytes()
    assert names(tmp_path) == {"whole.gguf", "out.gguf"}
    (cost,) = costs
    assert (cost.round, cost.finished_layers, cost.finished_tokens, cost.layers) == (2, 3, 512, 4)
    assert (cost.tokens, cost.max_tokens) == (512, 1536)
    first = reports[0]
    assert (first.round, first.layer, first.done_tokens, first.total_tokens) == (2, 3, 3 * 512, 4 * 512)
    assert {report.round for report in reports} == {2, 3}
    assert all(report.done_tokens <= report.total_tokens for report in reports)
    same(result, whole)


def test_less_is_read_after_a_stop(tmp_path: Path) -> None:
    n_bytes = [cost_of(out=tmp_path / "whole.gguf").read_bytes]
    with open_checkpoint(TINY) as cp:
        text = {name: one.n_bytes for name, one in cp.tensors.items() if name.startswith("language_model.model.")}
    assert n_bytes == [sum(text.values()) - text["language_model.model.norm.weight"]]  # and not lm_head
    for layer in (1, 2, 3):
        stop(tmp_path / "out.gguf", layer=layer)
        n_bytes.append(cost_of(out=tmp_path / "out.gguf").read_bytes)
    less = -np.diff(n_bytes)
    assert less[0] > less[1] == less[2] > 0  # the first layer's, with the embedding


def raising(error: BaseException) -> Any:
    def report(_: Progress) -> None:
        raise error

    return report


def same(result: Calibration, whole: Calibration) -> None:
    assert (result.ending, result.short, result.tokens) == (whole.ending, whole.short, whole.tokens)
    assert [(one.tokens, one.short) for one in result.rounds] == [(one.tokens, one.short) for one in whole.rounds]
    assert list(result.imatrix.entries) == list(whole.imatrix.entries)
    for name, entry in whole.imatrix.entries.items():
        assert (result.imatrix.entries[name].sums == entry.sums).all()


def test_changed_settings_are_named(tmp_path: Path) -> None:
    out, other = tmp_path / "out.gguf", tmp_path / "other.txt"
    other.write_bytes((ROOT / "LICENSE").read_bytes() + b"!")
    stop(out)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    changes: list[tuple[dict[str, Any], str]] = [
        ({"context": 32}, "context was 64, is 32"),
        ({"tokens": 1024}, "tokens was 512, is 1024"),
        ({"min_tokens_per_expert": 9}, "min tokens per expert was 1000000, is 9"),
        ({"max_tokens": 1024}, "max tokens was 1536, is 1024"),
        ({"parse_special": True}, "parse special was false, is true"),
        ({"format": "dat"}, 'format was "gguf", is "dat"'),
        ({"text": [other]}, r'text 1 was ".*LICENSE.*", is ".*other'),
        ({"text": [ROOT / "LICENSE", other]}, 'text 2 was null, is ".*other'),
    ]
    for options, message in changes:
        for force in (False, True):
            with pytest.raises(ResumeError, match=message) as caught:
                quantkit.calibrate(**{**RUN, **options}, out=out, force=force)
            assert "old settings" in caught.value.hint
            assert "delete" in caught.value.hint
            assert "What was finished" not in caught.value.hint
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_changed_text_version_and_blas_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, text = tmp_path / "out.gguf", tmp_path / "text.txt"
    shutil.copy(ROOT / "LICENSE", text)
    stop(out, text=[text])
    run = {**RUN, "text": [text], "out": out}
    content = text.read_text()
    text.write_text(content.replace("Apache", "Comanche", 1))
    with pytest.raises(ResumeError, match=r"text 1 was .*, is "):
        quantkit.calibrate(**run)
    text.write_text(content)
    with monkeypatch.context() as patch:
        patch.setattr("quantkit.__version__", "9.9.9")
        with pytest.raises(ResumeError, match=r'quantkit version was "[^"]*", is "9\.9\.9"'):
            quantkit.calibrate(**run)
    with monkeypatch.context() as patch:
        patch.setattr("quantkit.calibration.fingerprint.blas_identity", lambda: "numpy 9, openblas")
        with pytest.raises(ResumeError, match=r'arithmetic was ".*numpy .*", is ".*, numpy 9, openblas"'):
            quantkit.calibrate(**run)
    with monkeypatch.context() as patch:
        patch.setattr("quantkit.calibration.fingerprint.version", lambda name: "0.0.1")
        with pytest.raises(ResumeError, match=r'tokenizers version was "[^"]*", is "0\.0\.1"'):
            quantkit.calibrate(**run)
    quantkit.calibrate(**run)


def test_a_change_of_the_text_that_comes_along_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop(tmp_path / "out.gguf", text=None)
    other = tmp_path / "text.jsonl"
    other.write_bytes(DEFAULT_PATH.read_bytes() + b'{"text": "more"}\n')
    monkeypatch.setattr("quantkit.calibration.fingerprint.DEFAULT_PATH", other)
    with pytest.raises(ResumeError, match=r'text 1 was "quantkit-default-2, sha256 .*", is "quantkit-default-2, sha'):
        quantkit.calibrate(**{**RUN, "text": None}, out=tmp_path / "out.gguf")


def test_a_changed_checkpoint_is_named(tmp_path: Path) -> None:
    out, checkpoint = tmp_path / "out.gguf", tmp_path / "checkpoint"
    shutil.copytree(TINY, checkpoint)
    stop(out, checkpoint=checkpoint)
    shard = checkpoint / "model-00002-of-00003.safetensors"
    status = shard.stat()
    os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns + 1000))
    with pytest.raises(ResumeError, match=f"shard {shard.name} was .* modified"):
        quantkit.calibrate(**{**RUN, "checkpoint": checkpoint}, out=out)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    stop(out, round=2, layer=1)
    for name in ("states-1", "sums-0", "sums-1"):
        path = tmp_path / f"out.gguf.part.{name}"
        content = path.read_bytes()
        for damaged in (content[: len(content) // 2], None):
            path.unlink()
            if damaged is not None:
                path.write_bytes(damaged)
            with pytest.raises(ResumeError, match=f"{name} is gone or damaged") as caught:
                quantkit.calibrate(**RUN, out=out)
            assert "Delete" in caught.value.hint
            path.write_bytes(content)
    for name in ("states-1", "sums-0"):  # a bit in the middle
        path = tmp_path / f"out.gguf.part.{name}"
        content = path.read_bytes()
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
        with pytest.raises(ResumeError, match=f"{name} is gone or damaged"):
            quantkit.calibrate(**RUN, out=out)
        path.write_bytes(content)
    journal = tmp_path / "out.gguf.part.journal"
    lines = journal.read_bytes().splitlines()
    for bad in (b"rubbish", b'{"layer":9,"seconds":1,"sums":[0,1]}', b'{"slabs":[]}'):
        journal.write_bytes(b"\n".join([lines[0], bad, *lines[1:]]) + b"\n")
        with pytest.raises(ResumeError, match="line 2"):
            quantkit.calibrate(**RUN, out=out)


def test_a_journal_of_a_conversion_is_left_alone(tmp_path: Path) -> None:
    journal = tmp_path / "out.gguf.part.journal"
    journal.write_text('{"fingerprint":{"types":["q8_0"]}}\n{"slabs":[]}\n')
    with pytest.raises(ResumeError, match='command was null, is "calibrate"'):
        quantkit.calibrate(**RUN, out=tmp_path / "out.gguf")
    journal.unlink()
    (tmp_path / "out.gguf.part").write_text("mine")
    with pytest.raises(ResumeError, match="no journal says what is in it"):
        quantkit.calibrate(**RUN, out=tmp_path / "out.gguf")
    assert names(tmp_path) == {"out.gguf.part"}


def test_two_processes_do_not_share_an_output(tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    first = Process({**RUN, "out": out, "tokens": 8192, "max_tokens": 10**5})
    first.wait_for_layers()
    with pytest.raises(PlanRefusedError, match="another process is writing"):
        quantkit.calibrate(**RUN, out=out)
    first.kill()
    first.end()


@pytest.mark.parametrize("layer", [0, 2])
def test_what_is_finished_stays_after_an_error(layer: int, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    error = CheckpointError("the shard ends early", hint="Download it again.")
    stop(out, layer=layer, error=error)
    assert error.hint.startswith("Download it again.")
    assert ("the same command again" in error.hint) == (layer == 2)
    assert bool(names(tmp_path)) == (layer == 2)
    stop(out, layer=3, error=KeyboardInterrupt())
    quantkit.calibrate(**RUN, out=out)
    quantkit.calibrate(**RUN, out=tmp_path / "whole.gguf")
    assert out.read_bytes() == (tmp_path / "whole.gguf").read_bytes()


def test_where_nothing_is_left_to_compute_no_memory_is_asked_for(tmp_path: Path) -> None:
    """Stopped between the last layer and the file."""
    run = {**RUN, "min_tokens_per_expert": 0, "max_tokens": None}

    def stopping(progress: Progress) -> None:
        if progress.layer == 4:
            raise Stopped

    out, costs = tmp_path / "out.gguf", list[Cost]()
    with pytest.raises(Stopped):
        quantkit.calibrate(**run, out=out, progress=stopping)
    assert names(tmp_path)
    assert not out.exists()
    quantkit.calibrate(**run, out=out, max_ram_bytes=1, announce=costs.append)
    assert not costs
    quantkit.calibrate(**run, out=tmp_path / "whole.gguf")
    assert out.read_bytes() == (tmp_path / "whole.gguf").read_bytes()


def test_nothing_stays_that_no_run_could_use(tmp_path: Path) -> None:
    stop(tmp_path / "out.gguf", layer=3, error=NonFiniteError("a weight is NaN"))
    assert not names(tmp_path)


def test_a_full_disk_keeps_the_layers_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, pwrite, n_written = tmp_path / "out.gguf", os.pwrite, 0

    def full(fd: int, data: Any, offset: int) -> int:
        nonlocal n_written
        n_written += len(data)
        if n_written > 1_000_000:
            raise OSError(28, "No space left on device")
        return pwrite(fd, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(OutputError, match="No space left") as caught:
            quantkit.calibrate(**RUN, out=out)
    assert "run the same command again" in caught.value.hint
    costs: list[Cost] = []
    quantkit.calibrate(**RUN, out=out, announce=costs.append)
    assert costs[0].finished_layers > 0
    quantkit.calibrate(**RUN, out=tmp_path / "whole.gguf")
    assert out.read_bytes() == (tmp_path / "whole.gguf").read_bytes()


def test_a_disk_without_room_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is computed; what has been written counts as room."""
    out, cost = tmp_path / "out.gguf", cost_of(out=tmp_path / "out.gguf")
    usage = shutil.disk_usage(tmp_path)

    def with_free(n_bytes: int) -> Any:
        return lambda folder: usage._replace(free=n_bytes)

    monkeypatch.setattr(shutil, "disk_usage", with_free(cost.disk_bytes - 1))
    with pytest.raises(PlanRefusedError, match=rf"{cost.disk_bytes:,} are needed") as caught:
        quantkit.calibrate(**RUN, out=out)
    assert "Make room for 1 bytes" in caught.value.hint
    assert not names(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", with_free(cost.disk_bytes))
    stop(out, layer=3)
    n_written = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert 0 < n_written < cost.disk_bytes
    monkeypatch.setattr(shutil, "disk_usage", with_free(cost.disk_bytes - 4096 * (n_written // 4096)))
    quantkit.calibrate(**RUN, out=out)


@pytest.mark.parametrize("experts_used", [1, 2])
def test_cost_and_refusal_come_before_any_work(
    experts_used: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With hidden states in a file, whose bytes count as well: twice where a token goes to several experts."""
    folder, out = tmp_path / "out", tmp_path / "out" / "out.gguf"
    folder.mkdir()
    checkpoint = checkpoints.build(tmp_path / "model", experts_used=experts_used)
    in_memory = cost_of(out=out, checkpoint=checkpoint)
    run = {"checkpoint": checkpoint, "max_ram_bytes": in_memory.peak_ram_bytes - 1}
    monkeypatch.setattr("quantkit.calibration.walk.Stream", None)  # to make one would be a TypeError
    monkeypatch.setattr("quantkit.calibration.walk.check_layers", None)
    in_file = cost_of(out=out, **run)
    assert (in_memory.states_in_memory, in_file.states_in_memory) == (True, False)
    assert in_file.states_bytes == experts_used * 512 * 256 * 4
    assert in_file.disk_bytes == in_memory.disk_bytes + in_file.states_bytes
    usage = shutil.disk_usage(tmp_path)._replace(free=in_file.disk_bytes - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(PlanRefusedError, match=rf"{in_file.disk_bytes:,} are needed"):
        quantkit.calibrate(**{**RUN, **run}, out=out, announce=pytest.fail)
    assert not names(folder)


def test_the_disk_takes_what_was_announced(tmp_path: Path) -> None:
    """The largest sum of all files, looked at after each layer and at the end."""
    out, cost = tmp_path / "out.gguf", cost_of(out=tmp_path / "out.gguf")
    held: list[int] = []

    class Looking(Savepoint):
        def note_round(self, *arguments: Any) -> None:
            super().note_round(*arguments)
            held.append(sum(path.stat().st_size for path in tmp_path.iterdir()))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("quantkit.calibration.run.Savepoint", Looking)
        quantkit.calibrate(**RUN, out=out)
    assert max(held) == pytest.approx(cost.disk_bytes, rel=0.1)


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    out.write_text("mine")
    with pytest.raises(Stopped):
        quantkit.calibrate(**RUN, out=out, force=True, progress=raising_after(600))
    assert out.read_text() == "mine"
    with pytest.raises(PlanRefusedError, match="exists"):
        quantkit.calibrate(**RUN, out=out)
    quantkit.calibrate(**RUN, out=out, force=True)
    assert len(read_imatrix(out).entries) > 0
    assert names(tmp_path) == {"out.gguf"}


def raising_after(n_tokens: int) -> Any:
    def report(progress: Progress) -> None:
        if progress.done_tokens > n_tokens:
            raise Stopped

    return report


def test_a_journal_can_be_kept(tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    first = quantkit.calibrate(**RUN, out=out, keep_journal=True)
    assert names(tmp_path) == {"out.gguf", "out.gguf.part.journal"}
    content = out.read_bytes()
    again = quantkit.calibrate(**RUN, out=out, keep_journal=True, progress=raising(Stopped()))
    assert (again.rounds, again.ending, again.short) == (first.rounds, first.ending, first.short)
    with pytest.raises(ResumeError, match="context was 64, is 32"):
        quantkit.calibrate(**{**RUN, "context": 32}, out=out, keep_journal=True)
    assert out.read_bytes() == content
    quantkit.calibrate(**{**RUN, "context": 32}, out=out, force=True)  # nothing is lost but what may be replaced
    assert out.read_bytes() != content
    assert names(tmp_path) == {"out.gguf"}


def test_a_text_that_cannot_be_read_twice_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(QuantkitError, match=r"pipe\.txt is not a file"):
        quantkit.calibrate(**{**RUN, "text": [tmp_path / "pipe.txt"]}, out=tmp_path / "out.gguf")
