"""`quantkit calibrate` from the shell: results on stdout, cost, progress and short experts on stderr."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from quantkit.gguf import read_imatrix

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "data" / "tiny-llama4"


def run(*arguments: object, checkpoint: Path = TINY) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "quantkit", "calibrate", str(checkpoint), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_summary_heat_map_cost_and_short_experts(tmp_path: Path) -> None:
    out = tmp_path / "stats.gguf"
    options = ("--context", 64, "--tokens", 512, "--min-tokens-per-expert", 10000, "--max-tokens", 1024)
    done = run("-o", out, "--text", ROOT / "LICENSE", *options)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    assert "1,024 in chunks of 64 in 2 rounds" in done.stdout
    assert "Tokens by layer and expert" in done.stdout
    assert "512 tokens through 4 layers" in done.stderr
    assert "2 times that at most, 1,024 tokens" in done.stderr
    assert "100.0 %  round 1" in done.stderr
    assert "100.0 %  round 2" in done.stderr
    assert "16 experts stay short of 10,000 tokens" in done.stderr
    assert "and 4 more" in done.stderr
    read = read_imatrix(out)
    assert (read.chunk_count, read.chunk_size) == (16, 64)


def test_json_is_all_that_is_on_stdout(tmp_path: Path) -> None:
    out = tmp_path / "stats.gguf"
    done = run("-o", out, "--text", ROOT / "LICENSE", "--context", 64, "--tokens", 256, "--json")
    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout)
    assert (content["schema"], content["tokens"], content["ending"], content["short"]) == (1, 256, "floor", [])
    assert [sum(layer["tokens"]) for layer in content["layers"]] == [256] * 4
    assert content["tensors"] == len(read_imatrix(out).entries)


def test_without_text_that_of_quantkit_is_read_and_named(tmp_path: Path) -> None:
    done = run("-o", tmp_path / "stats.gguf", "--tokens", 1024)
    assert done.returncode == 0, done.stderr
    assert "quantkit-default-2" in done.stdout
    assert "text that comes with quantkit" in " ".join(run("--help").stdout.split())


def convert(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "quantkit", "convert", str(TINY), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_convert_calibrates_before(tmp_path: Path) -> None:
    """The same file as by the two commands, and the statistics are kept for the next time."""
    out, text = tmp_path / "tiny-{type}.gguf", ("--text", ROOT / "LICENSE")
    done = convert(out, "--type", "q3_k_m", "--calibrate", *text, "--tokens", 1024)
    assert done.returncode == 0, done.stderr
    stats, made = tmp_path / "tiny-imatrix.gguf", tmp_path / "tiny-q3_k_m.gguf"
    assert sorted(tmp_path.iterdir()) == [stats, made]
    assert run("-o", tmp_path / "other.gguf", *text, "--tokens", 1024).returncode == 0
    assert (tmp_path / "other.gguf").read_bytes() == stats.read_bytes()
    first = made.read_bytes()
    again = convert(out, "--type", "q3_k_m", "--calibrate", *text, "--tokens", 1024)
    assert again.returncode == 5
    assert f"--imatrix {stats}" in again.stderr
    assert convert(out, "--type", "q3_k_m", "--imatrix", stats, "--force").returncode == 0
    assert made.read_bytes() == first
    assert f"statistics are in {stats}" in " ".join(done.stderr.split())


def test_convert_refuses_before_it_calibrates(tmp_path: Path) -> None:
    out, text = tmp_path / "tiny.gguf", ("--text", ROOT / "LICENSE")
    for arguments, code, word in (
        (("--type", "q4_0", *text), 2, "--calibrate"),
        (("--type", "q4_0", "--calibrate", *text, "--imatrix", "x.gguf"), 2, "--imatrix"),
        (("--mmproj-only", "--calibrate", *text), 2, "--mmproj-only"),
        (("--type", "q4_0", "--calibrate", *text, "--tensor-type", "nothing=q8_0"), 2, "nothing"),
    ):
        done = convert(out, *arguments)
        assert (done.returncode, word in done.stderr) == (code, True), done.stderr
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_that_an_interrupt_prints_goes_on_to_the_same_bytes(number: signal.Signals, tmp_path: Path) -> None:
    out, whole = tmp_path / "out.gguf", tmp_path / "whole.gguf"
    options = ("--text", ROOT / "LICENSE", "--context", 64, "--tokens", 1024, "--min-tokens-per-expert", 10000)
    options = (*map(str, options), "--max-tokens", "3072")
    script = f"""
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
from quantkit.cli import app, output

class Interrupting(output.PlainProgress):
    def __call__(self, report):
        if report.round == 2 and report.layer == 2:
            signal.raise_signal({int(number)})

output.PlainProgress = Interrupting
from quantkit.calibration.watch import Watch
Watch.INTERVAL_SECONDS = 0
app.main(["calibrate", {str(TINY)!r}, "-o", {str(out)!r}, *{options!r}], prog_name="quantkit")
"""
    stopped = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert stopped.returncode == 130, stopped.stderr
    assert not out.exists()
    assert "The same command goes on" in stopped.stderr
    command = shlex.split(stopped.stderr.splitlines()[-1])
    assert command[:3] == ["quantkit", "calibrate", str(TINY)]

    resumed = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, timeout=120)
    assert resumed.returncode == 0, resumed.stderr
    assert "goes on where it was stopped, in round 2 with 2 of 4 layers finished" in resumed.stderr
    assert "1,024 tokens through 2 layers" in resumed.stderr
    assert "then 1 more rounds at most" in resumed.stderr
    assert " 50.0 %  round 2, layer 2" in resumed.stderr
    assert "3,072 in chunks of 64 in 3 rounds" in resumed.stdout
    assert run("-o", whole, *options, "--threads", 1).returncode == 0
    assert out.read_bytes() == whole.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"out.gguf", "whole.gguf"}


def test_experts_that_no_token_goes_to_are_named(tmp_path: Path) -> None:
    """Of layer 2 all tokens go to expert 0. A second round gives the others nothing, and there is no third."""
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(TINY, checkpoint)
    zero(checkpoint, "language_model.model.layers.2.feed_forward.router.weight")
    options = ("--text", ROOT / "LICENSE", "--context", 64, "--tokens", 512, "--min-tokens-per-expert", 3)
    done = run("-o", tmp_path / "stats.gguf", *options, checkpoint=checkpoint)
    assert done.returncode == 0, done.stderr
    warning = "3 experts stay short of 3 tokens, since the last round added under 5 % to every short expert: "
    assert f"{warning}layer/expert 2/1 (0), 2/2 (0), 2/3 (0)\n" in done.stderr
    assert "1,024 in chunks of 64 in 2 rounds" in done.stdout  # of the four that were allowed
    counts = read_imatrix(tmp_path / "stats.gguf").entries["blk.2.ffn_up_exps.weight"].counts
    assert counts.tolist() == [1024, 0, 0, 0]


def zero(checkpoint: Path, name: str) -> None:
    """Overwrite a tensor with zeros."""
    shard = checkpoint / json.loads((checkpoint / "model.safetensors.index.json").read_text())["weight_map"][name]
    content = bytearray(shard.read_bytes())
    n_header = int.from_bytes(content[:8], "little")
    start, stop = (8 + n_header + place for place in json.loads(content[8 : 8 + n_header])[name]["data_offsets"])
    content[start:stop] = bytes(stop - start)
    shard.write_bytes(content)
