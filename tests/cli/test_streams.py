"""stdout and stderr that are closed, full or left by their reader: the work is done all the same, and told truly."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TINY = Path(__file__).parents[1] / "data" / "tiny-llama4"
FULL = Path("/dev/full")  # Linux has it
PLAN = ["plan", str(TINY), "--type", "q8_0"]
needs_full = pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")


def shell(redirections: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command under `sh` with redirections such as `>&-`."""
    return subprocess.run(
        ["sh", "-c", f'"$@" {redirections}', "sh", sys.executable, "-m", "quantkit", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
    )


def converted(out: Path) -> bool:
    """Whether the file is there, whole, with nothing left beside it."""
    found = sorted(path.name for path in out.parent.iterdir())
    return found == [out.name] and shell("", "inspect", str(out)).returncode == 0


@pytest.mark.parametrize("redirections", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams_take_nothing_and_disturb_nothing(redirections: str, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    for arguments in (PLAN, [*PLAN, "--json"], ["convert", str(TINY), str(out), "--type", "q8_0"]):
        done = shell(redirections, *arguments)
        assert done.returncode == 0, done.stderr
        assert "rror" not in done.stderr
    assert converted(out)


@pytest.mark.parametrize("redirections", [">&-", "2>&-"])
def test_errors_keep_their_code_where_a_stream_is_closed(redirections: str, tmp_path: Path) -> None:
    done = shell(redirections, "plan", str(tmp_path / "nowhere"), "--type", "q8_0", "--json")
    assert done.returncode == 3
    assert "nowhere" in done.stdout + done.stderr


@needs_full
@pytest.mark.parametrize("arguments", [PLAN, [*PLAN, "--json"], ["--version"], ["--help"], ["formats", "--json"]])
def test_output_that_could_not_be_printed_is_a_failure_in_words(arguments: list[str]) -> None:
    done = shell("> /dev/full", *arguments)
    assert done.returncode == 6
    assert done.stderr == "error: the output could not be printed: No space left on device\n"


@needs_full
def test_an_error_on_a_full_stream_keeps_its_own_code(tmp_path: Path) -> None:
    arguments = ["plan", str(tmp_path / "nowhere"), "--type", "q8_0", "--json"]
    done = shell("> /dev/full", *arguments)
    assert done.returncode == 3
    assert "nowhere" in done.stderr
    assert "Traceback" not in done.stderr
    assert shell("> /dev/full 2>&1", *arguments).returncode == 3


@needs_full
def test_a_conversion_whose_summary_could_not_be_printed_says_that_its_file_is_complete(tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    done = shell("> /dev/full", "convert", str(TINY), str(out), "--type", "q8_0")
    assert done.returncode == 6
    assert "could not be printed: No space left on device" in done.stderr
    assert "The conversion is complete" in done.stderr
    assert "again" not in done.stderr
    assert converted(out)


@needs_full
def test_progress_on_a_full_stream_is_lost_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    done = shell("2> /dev/full", "convert", str(TINY), str(out), "--type", "q8_0")
    assert done.returncode == 0
    assert str(out) in done.stdout
    assert converted(out)


def test_a_conversion_outlives_the_reader_of_its_progress(tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = [sys.executable, "-m", "quantkit", "convert", str(TINY), str(out), "--type", "q8_0"]
    done = subprocess.run(command, stdout=write_end, stderr=write_end, timeout=120)
    os.close(write_end)
    assert done.returncode == 0
    assert converted(out)


def test_a_full_pipe_that_does_not_block_is_waited_for() -> None:
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    command = [sys.executable, "-m", "quantkit", "inspect", "--help"]
    with os.fdopen(write_end, "wb", 0) as pipe:
        room = pipe.write(b"." * (1 << 22)) or 0  # as much as it takes
        process = subprocess.Popen(command, stdout=write_end, stderr=subprocess.PIPE, text=True)
    with pytest.raises(subprocess.TimeoutExpired):  # it waits until somebody reads
        process.wait(timeout=3)
    with os.fdopen(read_end, "rb") as pipe:
        printed = pipe.read()[room:]
    assert process.stderr is not None
    assert process.stderr.read() == ""
    assert process.wait(timeout=120) == 0
    assert b"Examples:" in printed
