"""`quantkit imatrix`: coverage as it is, sums that add up, files for llama-quantize, nothing overwritten unasked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner
from tests.gguf.imatrix_file import write_imatrix_dat, write_imatrix_gguf
from tests.oracle import imatrix as oracle

from quantkit.cli import app
from quantkit.cli.imatrix import COMMANDS
from quantkit.gguf import Imatrix, ImatrixEntry, read_imatrix, write_imatrix

COUNTS = {0: [9.0, 0.0, 1200.0, 10.0], 1: [99.0, 100.0, 101.0, 919.0]}


def entries(factor: float = 1.0) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(3)
    found = {"blk.0.attn_q.weight": (rng.random((1, 8)) * 1219, np.array([1219.0 * factor]))}
    for layer, counts in COUNTS.items():
        tokens = np.array(counts) * factor
        for name in ("ffn_gate_exps", "ffn_down_exps"):
            found[f"blk.{layer}.{name}.weight"] = (rng.gamma(0.7, 1.0, (4, 32)) * tokens[:, None], tokens)
    return found


@pytest.fixture
def stats(tmp_path: Path) -> Path:
    return write_imatrix_gguf(tmp_path / "stats.gguf", entries(), extra=False)


def run(*arguments: object, code: int = 0) -> Any:
    result = CliRunner().invoke(app, ["imatrix", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


def as_json(*arguments: object, code: int = 0) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(run(*arguments, "--json", code=code).stdout)
    return content


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_each_command_has_examples_that_parse(name: str) -> None:
    text = run(name, "--help").output
    assert "--json" in text
    lines = [line for line in text.partition("\nExamples:\n")[2].splitlines() if line.startswith("  $ ")]
    assert lines
    group = app.get_command(click.Context(app), "imatrix")
    assert isinstance(group, click.Group)
    command = group.get_command(click.Context(group), name)
    assert command is not None
    for line in lines:
        words = line.split("|")[0].split()
        assert words[1:4] == ["quantkit", "imatrix", name]
        command.make_context(name, words[4:])  # raises for an option that does not exist


def test_show_counts_every_expert(stats: Path) -> None:
    content = as_json("show", stats)
    assert (content["schema"], content["format"], content["shrunk"]) == (1, "gguf", False)
    assert (content["datasets"], content["chunk_count"], content["chunk_size"]) == (["wiki.txt", "code.txt"], 7, 512)
    assert {tensor["name"]: tensor["counts"] for tensor in content["tensors"]} == {
        name: counts.tolist() for name, (_, counts) in entries().items()
    }
    for layer in content["layers"]:
        counts = COUNTS[layer["layer"]]
        assert layer["tokens"] == layer["effective"] == counts
        assert layer["shares"] == [count / sum(counts) for count in counts]
        assert layer["unseen"] == counts.count(0)

    text = run("show", stats).stdout
    lines = [line.split() for line in text.splitlines()]
    assert ["layer", "0", "1042"] in lines  # digits of 9, 0, 1200 and 10
    assert ["layer", "1", "2333"] in lines
    assert ["0", "4", "1", "0", "9", "1,200", "0", "98.4", "%"] in lines
    assert "wiki.txt, code.txt" in text


def test_show_uses_router_weights_where_there_are_some(tmp_path: Path) -> None:
    counts = np.array([100.0, 50.0])
    entry = ImatrixEntry(np.ones((2, 4)), counts, None, counts * 0.5, counts * 0.5)
    write_imatrix(tmp_path / "stats", Imatrix({"blk.3.ffn_up_exps.weight": entry}, ("a",), 1, 150))
    (layer,) = as_json("show", tmp_path / "stats")["layers"]
    assert (layer["tokens"], layer["effective"]) == ([100, 50], [50, 25])


def test_a_heat_map_of_many_experts_is_cut_in_sixteens(tmp_path: Path) -> None:
    counts = np.arange(128.0)
    path = tmp_path / "stats"
    write_imatrix_gguf(path, {"blk.11.ffn_up_exps.weight": (np.ones((128, 4)) * counts[:, None], counts)})
    (line,) = [line for line in run("show", path).stdout.splitlines() if line.startswith("layer 11")]
    assert "".join(line.split()[2:]) == "0" + "1" * 9 + "2" * 90 + "3" * 28
    assert [len(part) for part in line.split()[2:]] == [16] * 8


def test_a_dat_file_is_shown_without_coverage(tmp_path: Path) -> None:
    path = write_imatrix_dat(tmp_path / "old.dat", entries())
    content = as_json("show", path)
    assert (content["format"], content["layers"]) == ("dat", [])
    result = run("show", path)
    assert "no counts by expert" in result.stderr
    assert "layer 0" not in result.stdout


def test_merge_adds_up(stats: Path, tmp_path: Path) -> None:
    other, out = write_imatrix_gguf(tmp_path / "other.gguf", entries(3.0), extra=False), tmp_path / "out.gguf"
    content = as_json("merge", stats, other, "-o", out)
    assert content["chunk_count"] == 14
    assert content["file"] == str(out)
    assert content["layers"][0]["tokens"] == [36, 0, 4800, 40]
    merged, first, second = (read_imatrix(path) for path in (out, stats, other))
    for name, entry in merged.entries.items():
        assert np.array_equal(entry.counts, first.entries[name].counts + second.entries[name].counts)
        np.testing.assert_allclose(entry.sums, first.entries[name].sums + second.entries[name].sums, rtol=1e-6)
    assert run("merge", stats, other, "-o", tmp_path / "more.gguf").stderr == ""


def test_merge_says_what_is_lost(stats: Path, tmp_path: Path) -> None:
    write_imatrix_gguf(tmp_path / "with.gguf", {name: (s, c) for name, (s, c) in entries().items()}, extra=True)
    result = run("merge", stats, tmp_path / "with.gguf", "-o", tmp_path / "out.gguf")
    assert "1 of 2 files have no Σx" in result.stderr


def test_what_cannot_be_merged_is_refused_before_anything_is_written(stats: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    run("export", stats, "-o", tmp_path / "shrunk.gguf", "--shrunk")
    write_imatrix_gguf(tmp_path / "fewer.gguf", {"blk.0.attn_q.weight": entries()["blk.0.attn_q.weight"]})
    for files, code, says in (
        ([stats, tmp_path / "shrunk.gguf"], 2, "marked as shrunk"),
        ([stats, stats], 2, "given twice"),
        ([stats, tmp_path / "fewer.gguf"], 3, "fewer.gguf has no blk.0.ffn_"),
        ([stats, tmp_path / "none.gguf"], 3, "none.gguf"),
    ):
        error = as_json("merge", *files, "-o", out, code=code)["error"]
        assert says in error["message"]
        assert not out.exists()
    assert "'FILES...'" in run("merge", "-o", out, code=2).stderr


def test_size_of_chunks_is_for_dat_files(stats: Path, tmp_path: Path) -> None:
    """Of which each chunk counts as so many tokens, and 512 without it."""
    out = tmp_path / "out.gguf"
    plain = {name: entry for name, entry in entries().items() if len(entry[1]) == 1}
    old = write_imatrix_dat(tmp_path / "old.dat", plain)
    tokens = []
    for arguments in ([], ["--chunk-size", 512], ["--chunk-size", 64]):
        run("merge", old, "-o", out, "--force", *arguments)
        tokens.append(read_imatrix(out).entries["blk.0.attn_q.weight"].counts[0])
    assert tokens == [3 * 512, 3 * 512, 3 * 64]  # three chunks held the 1219 tokens
    error = as_json("merge", stats, "-o", tmp_path / "none.gguf", "--chunk-size", 64, code=2)["error"]
    assert "--chunk-size" in error["message"]
    assert not (tmp_path / "none.gguf").exists()


def test_nothing_is_overwritten_unasked(stats: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    out.write_bytes(b"mine")
    for arguments in (["merge", stats, "-o", out], ["export", stats, "-o", out]):
        assert "--force" in run(*arguments, code=5).stderr
        assert out.read_bytes() == b"mine"
    run("export", stats, "-o", out, "--force")
    assert out.read_bytes() == stats.read_bytes()
    run("merge", stats, "-o", stats, "--force")
    assert stats.read_bytes() == out.read_bytes()


def test_export_shrunk_gives_llama_quantize_what_convert_uses(stats: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    content = as_json("export", stats, "-o", out, "--shrunk")
    assert content["shrunk"]
    theirs = oracle.importance(oracle.load(out).entries)
    raw = read_imatrix(stats)
    for name, (sums, counts) in entries().items():
        ours = raw.importance(name, len(counts), sums.shape[1])
        np.testing.assert_allclose(theirs[name], ours, rtol=1e-6)
    assert "estimates" in run("show", out).stdout


def test_export_as_dat(stats: Path, tmp_path: Path) -> None:
    run("export", stats, "-o", tmp_path / "out.dat", "--format", "dat")
    found = read_imatrix(tmp_path / "out.dat")
    expected = read_imatrix(write_imatrix_dat(tmp_path / "expected.dat", entries()))
    assert found.datasets == ("code.txt",)  # of two texts that format names the last
    assert set(found.entries) == set(expected.entries)
    for name, entry in expected.entries.items():
        assert np.array_equal(found.entries[name].counts, entry.counts)
        np.testing.assert_allclose(found.entries[name].sums, entry.sums, rtol=1e-6)
