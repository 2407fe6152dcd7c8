"""`quantkit calibrate` from the shell: results on stdout, cost, progress and short experts on stderr."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from quantkit.gguf import read_imatrix

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "data" / "tiny-llama4"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "quantkit", "calibrate", str(TINY), *map(str, arguments)]
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
    assert "quantkit-default-1" in done.stdout
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
