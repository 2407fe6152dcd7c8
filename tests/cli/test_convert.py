"""`quantkit convert` from the shell: what is on stdout, what on stderr, and what is on disk afterwards."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import gguf
import pytest
from click.testing import CliRunner

from quantkit.cli import app

TINY = Path(__file__).parents[1] / "data" / "tiny-llama4"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "quantkit", "convert", str(TINY), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_summary_names_file_size_bits_memory_and_the_next_step(tmp_path: Path) -> None:
    out = tmp_path / "tiny q4_k_m.gguf"
    done = run(str(out), "--type", "q4_k_m")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    assert str(out) in done.stdout
    assert "bits per weight" in done.stdout
    assert "peak memory" in done.stdout
    assert f"llama-cli -m '{out}'" in done.stdout
    assert "100.0 %" in done.stderr
    assert gguf.GGUFReader(out).get_field("general.file_type").contents() == gguf.LlamaFileType.MOSTLY_Q4_K_M


def test_json_is_all_that_is_on_stdout_and_tells_what_is_on_disk(tmp_path: Path) -> None:
    done = run(str(tmp_path / "tiny-{type}.gguf"), "--type", "q8_0", "--type", "bf16", "--json")
    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout)
    assert [output["recipe"] for output in content["outputs"]] == ["q8_0", "bf16"]
    for output in content["outputs"]:
        (file,) = output["files"]
        assert Path(file) == tmp_path / f"tiny-{output['recipe']}.gguf"
        assert Path(file).stat().st_size == output["n_bytes"]
        payload = sum(int(tensor.n_bytes) for tensor in gguf.GGUFReader(file).tensors)
        weights = sum(int(tensor.n_elements) for tensor in gguf.GGUFReader(file).tensors)
        assert output["bits_per_weight"] == pytest.approx(payload * 8 / weights)
    assert content["peak_rss_bytes"] > 0


def test_mmproj_only(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["convert", str(TINY), str(tmp_path / "mm.gguf"), "--mmproj-only"])
    assert result.exit_code == 0, result.output
    assert [path.name for path in tmp_path.iterdir()] == ["mm.gguf"]
    assert gguf.GGUFReader(tmp_path / "mm.gguf").get_field("general.architecture").contents() == "clip"


def test_with_an_mmproj_the_next_steps_use_it(tmp_path: Path) -> None:
    out, mmproj = tmp_path / "model.gguf", tmp_path / "mm.gguf"
    result = CliRunner().invoke(app, ["convert", str(TINY), str(out), "--type", "q4_0", "--mmproj", str(mmproj)])
    assert result.exit_code == 0, result.output
    assert f"llama-mtmd-cli -m {out} --mmproj {mmproj}" in result.stdout


def test_split_files_are_all_named_and_the_first_is_what_to_run(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        app, ["convert", str(TINY), str(tmp_path / "tiny.gguf"), "--type", "q4_0", "--split-max-size", "1M"]
    )
    assert result.exit_code == 0, result.output
    files = sorted(tmp_path.glob("*.gguf"))
    assert len(files) > 1
    for file in files:
        assert str(file) in result.stdout
    assert f"llama-cli -m {files[0]}" in result.stdout


def test_existing_output_is_left_alone_without_force(tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    out.write_bytes(b"mine")
    refused = run(str(out), "--type", "q4_0")
    assert refused.returncode == 5
    assert "--force" in refused.stderr
    assert out.read_bytes() == b"mine"
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"]
    assert run(str(out), "--type", "q4_0", "--force").returncode == 0
    assert out.read_bytes()[:4] == b"GGUF"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_that_an_interrupt_prints_goes_on_to_the_same_bytes(number: signal.Signals, tmp_path: Path) -> None:
    out, whole = tmp_path / "out.gguf", tmp_path / "whole.gguf"
    script = f"""
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
from quantkit.cli import app, output

class Interrupting(output.PlainProgress):
    def __call__(self, report):
        if report.done_bytes > report.total_bytes // 3:
            signal.raise_signal({int(number)})

output.PlainProgress = Interrupting
app.main(["convert", {str(TINY)!r}, {str(out)!r}, "--type", "q8_0", "--threads", "1"], prog_name="quantkit")
"""
    stopped = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert stopped.returncode == 130
    assert not out.exists()
    command = shlex.split(stopped.stderr.splitlines()[-1])
    assert command[:3] == ["quantkit", "convert", str(TINY)]

    resumed = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, timeout=120)
    assert resumed.returncode == 0, resumed.stderr
    assert run(str(whole), "--type", "q8_0").returncode == 0
    assert out.read_bytes() == whole.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"out.gguf", "whole.gguf"}


def test_two_types_need_a_name_with_type_in_it(tmp_path: Path) -> None:
    done = run(str(tmp_path / "out.gguf"), "--type", "q4_0", "--type", "q8_0")
    assert done.returncode == 2
    assert "{type}" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    done = run(str(tmp_path / "nowhere" / "out.gguf"), "--type", "q4_0", "--json")
    assert done.returncode == 5
    error = json.loads(done.stdout)["error"]
    assert "nowhere" in error["message"]
    assert error["hint"]
