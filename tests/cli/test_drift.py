"""`quantkit drift` from the shell: tables, report.json, the gate's exit code and JUnit XML."""

from __future__ import annotations

import html
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import click
import pytest
from tests.drift.files import PROSE, ROOT, TINY, changed, converted
from tests.drift.test_findings import in_bytes, only_expert, requantized, scaled, shuffled

import quantkit
from quantkit.cli.drift import command
from quantkit.errors import MissingDependencyError, UsageError
from quantkit.kernels import QuantizedTensor

TEXT = ("--text", ROOT / "LICENSE", "--context", 64, "--tokens", 2048)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return converted(tmp_path_factory.mktemp("drift"), ["bf16", "q8_0", "q2_k"])


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "quantkit", "drift", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_summary_and_report(files: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    done = run(TINY, files["q8_0"], files["q2_k"], *TEXT, "--json", path)
    assert done.returncode == 0, done.stderr
    for words in (
        "2,048 in chunks of 64",
        "10 blocks of 3 chunks each, since of documents there are only 1",
        "Next-token probabilities",
        "q2_k.gguf has drifted further than q8_0.gguf",
        "Layers with the largest error of their own",
        "Tensors with the largest error",
    ):
        assert words in done.stdout
    assert "100.0 %" in done.stderr
    content = json.loads(path.read_text())
    assert content["schema"] == 1
    assert content["gate"] == []
    words = ("quantkit", "drift", *map(str, (TINY, files["q8_0"], files["q2_k"], *TEXT, "--json", path)))
    assert content["command"] == shlex.join(words)
    assert [Path(one["file"]).name for one in content["candidates"]] == ["q8_0.gguf", "q2_k.gguf"]
    means = [one["kld"]["mean"] for one in content["candidates"]]
    assert f"{means[0]:.4g}" in done.stdout
    assert f"{means[1]:.4g}" in done.stdout
    for name in ("kld", "perplexity"):
        assert f"{content['candidates'][1][name]['effective_tokens']:,.0f}" in done.stdout
    assert "that many independent tokens would tell as much as the 2,016 scored" in done.stdout
    verdict = done.stdout.splitlines()[1:6]
    assert verdict[0] == "Up to a severe loss"
    assert verdict[-1] == "q8_0.gguf is closest to the reference."
    assert sorted(tmp_path.iterdir()) == [path]


def test_files_that_cannot_be_told_apart(files: dict[str, Path], tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    other.symlink_to(files["q8_0"])
    done = run(TINY, files["q8_0"], other, *TEXT, "--no-weights", "--no-local")
    assert done.returncode == 0, done.stderr
    assert "q8_0.gguf and other.gguf cannot be told apart on this text: which is closest stays open." in done.stdout
    assert "is closest to" not in done.stdout


def test_json_is_all_that_is_on_stdout(files: dict[str, Path]) -> None:
    done = run(files["bf16"], files["bf16"], *TEXT, "--json", "-", "--no-weights", "--no-local")
    assert done.returncode == 0, done.stderr
    (own,) = json.loads(done.stdout)["candidates"]
    assert (own["kld"]["mean"], own["top1_agreement"], own["tensors"]) == (0, 1, [])
    assert own["layers"][0]["local"] is None
    assert own["layers"][0]["error"]["sqnr_db"] is None


@pytest.mark.parametrize("reference", ["checkpoint", "its GGUF"])
def test_the_same_weights_are_exactly_alike(reference: str, files: dict[str, Path]) -> None:
    """A checkpoint against its own BF16 GGUF, and that against itself: 0 in all that is measured, and by the gate."""
    limits = ("kld.max>0", "layers.relative_error>0", "layers.local.max>0", "experts.relative_error.max>0")
    limits += ("weights.relative_error.max>0", "routing.agreement.min<1", "routing.kl>0", "top1_agreement<1")
    conditions = [word for limit in limits for word in ("--fail-if", limit)]
    path = TINY if reference == "checkpoint" else files["bf16"]
    done = run(path, files["bf16"], *TEXT, *conditions, "--json", "-")
    assert done.returncode == 0, done.stderr
    (own,) = json.loads(done.stdout)["candidates"]
    assert own["kld"].pop("effective_tokens") > 0
    assert own["kld"].pop("ci95") == [0, 0]
    assert set(own["kld"].values()) == {0}
    assert own["perplexity"]["candidate"] == own["perplexity"]["reference"]
    assert (own["perplexity"]["ln_ratio"], own["perplexity"]["ci95"]) == (0, [0, 0])
    assert own["embedding"]["relative_error"] == 0
    assert len(own["layers"]) == 4
    assert len(own["tensors"]) > 40
    assert {error["rmse"] for tensor in own["tensors"] for error in (tensor["error"], *tensor["experts"])} == {0}


def test_gate(files: dict[str, Path], tmp_path: Path) -> None:
    """Exit 1 with value and limit for each failed condition, and the report is there all the same."""
    report, xml = tmp_path / "report.json", tmp_path / "drift.xml"
    options = (*TEXT, "--fail-if", "kld.mean>0.02", "--fail-if", "routing.agreement<0.1", "--junit", xml)
    done = run(TINY, files["q8_0"], files["q2_k"], *options, "--json", report)
    assert done.returncode == 1, done.stderr
    gate = json.loads(report.read_text())["gate"]
    assert [one["failed"] for one in gate] == [False, False, True, False]
    (failed,) = (one for one in gate if one["failed"])
    assert f"warning: {failed['message']}" in done.stderr
    assert "q2_k.gguf fails kld.mean > 0.02: it is 0.0" in done.stderr
    assert "q8_0.gguf passes kld.mean > 0.02" in done.stderr
    assert ElementTree.parse(xml).getroot().get("failures") == "1"
    assert run(TINY, files["q8_0"], *options).returncode == 0
    as_json = run(TINY, files["q2_k"], *options, "--json", "-")
    assert as_json.returncode == 1
    assert json.loads(as_json.stdout)["gate"][0]["failed"] is True


def test_a_gate_on_routing_fires(files: dict[str, Path]) -> None:
    done = run(TINY, files["q8_0"], files["q2_k"], *TEXT, "--no-weights", "--fail-if", "routing.agreement<0.97")
    assert done.returncode == 1, done.stderr
    assert "q8_0.gguf passes routing.agreement < 0.97: it is 0.9" in done.stderr
    assert "warning: " in done.stderr
    assert "q2_k.gguf fails routing.agreement < 0.97: it is 0." in done.stderr


def test_a_gate_that_little_text_cannot_judge(files: dict[str, Path], tmp_path: Path) -> None:
    """It is known at the end alone: everything is written, and the gate fails."""
    names = ("report.json", "drift.xml", "drift.html")
    report, xml, page = (tmp_path / name for name in names)
    outputs = ("--json", report, "--junit", xml, "--report", page)
    little = ("--text", ROOT / "LICENSE", "--context", 256, "--tokens", 1024)
    done = run(TINY, files["q8_0"], *little, "--fail-if", "kld.ci95.high>5", *outputs)
    assert done.returncode == 1, done.stderr
    assert "kld.ci95.high > 5, which cannot be judged: there is too little text" in done.stderr
    assert "Next-token probabilities" in done.stdout
    (verdict,) = json.loads(report.read_text())["gate"]
    assert (verdict["value"], verdict["failed"]) == (None, True)
    assert ElementTree.parse(xml).getroot().get("failures") == "1"
    assert "which cannot be judged" in page.read_text()
    assert sorted(one.name for one in tmp_path.iterdir()) == sorted(names)


def test_refused_before_the_run(files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gates that the options leave nothing to judge by, and outputs that could not be written: nothing is computed."""
    base = tmp_path / "base.kld"
    quantkit.drift(TINY, [files["q8_0"]], text=PROSE, context=64, tokens=128, weights=False, write_kl_base=base)
    gate, missing = ("--fail-if", "bytes>1"), tmp_path / "missing"
    monkeypatch.setattr("quantkit.drift.drift", None)  # would be called
    for arguments, word in (
        ((TINY, files["q2_k"], *TEXT, "--no-local", "--fail-if", "layers.local.max>1"), "with --no-local"),
        ((TINY, files["q2_k"], *TEXT, "--no-local", "--fail-if", "experts.relative_error.max>1"), "with --no-local"),
        ((TINY, files["q2_k"], *TEXT, "--no-weights", "--fail-if", "weights.cosine.min<1"), "with --no-weights"),
        ((base, files["q2_k"], "--fail-if", "routing.agreement<1"), "with log-probabilities for reference"),
        ((files["q2_k"], "--kl-base", base, "--fail-if", "weights.cosine.min<1"), "with log-probabilities"),
        ((TINY, files["q2_k"], *TEXT, "--json", missing / "a.json"), "mkdir -p"),
        ((TINY, files["q2_k"], *TEXT, "--report", missing / "a.html"), "there is no folder"),
        ((TINY, files["q2_k"], *TEXT, *gate, "--junit", missing / "a.xml"), "there is no folder"),
        ((TINY, files["q2_k"], *TEXT, "--json", "/proc/a.json"), "/proc"),  # no folder, or none to write into
        ((TINY, files["q2_k"], *TEXT, "--json", f"{missing.parent}/"), "is a directory"),
        ((TINY, files["q2_k"], *TEXT, "--report", missing.parent), "is a directory"),
    ):
        with pytest.raises((UsageError, click.UsageError)) as caught:
            command.main(list(map(str, arguments)), standalone_mode=False)
        assert word in str(caught.value)
        assert isinstance(caught.value, click.UsageError) or caught.value.hint
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependencyError, match="matplotlib"):
        command.main([*map(str, (TINY, files["q2_k"], *TEXT)), "--report", str(tmp_path / "a.html")])
    assert list(tmp_path.iterdir()) == [base]


def test_log_probabilities_that_cannot_be_written_are_a_plan_refused(files: dict[str, Path], tmp_path: Path) -> None:
    done = run(TINY, files["q2_k"], *TEXT, "--write-kl-base", tmp_path / "missing" / "a.kld")
    assert done.returncode == 5
    assert "there is no such folder" in done.stderr


def test_report_for_people(files: dict[str, Path], tmp_path: Path) -> None:
    """The page has the gate's verdicts and the command; it is there when the gate fails."""
    path = tmp_path / "drift report.html"
    done = run(TINY, files["q2_k"], *TEXT, "--report", path, "--fail-if", "kld.mean>0.001")
    assert done.returncode == 1, done.stderr
    page = path.read_text()
    assert "Gate: 0 of 1 conditions passed." in page
    assert "kld.mean &gt; 0.001: it is 0.0" in page
    assert f"quantkit drift {TINY} {files['q2_k']} --text " in page
    assert "--report &#39;" in page
    assert list(tmp_path.iterdir()) == [path]


def test_planted_faults_are_named_on_the_terminal_and_in_the_page(tmp_path: Path) -> None:
    """One expert's weights permuted, scales off by two, a quantized router, a wrong transposition: in one file."""
    path = changed(
        converted(tmp_path, ["q4_k_m"])["q4_k_m"],
        tmp_path / "faulty.gguf",
        tensors={
            "blk.2.ffn_down_exps.weight": in_bytes(only_expert(3, shuffled(1))),
            "blk.0.attn_k.weight": lambda tensor: scaled(tensor, 2),
            "blk.1.ffn_gate_inp.weight": lambda tensor: QuantizedTensor.quantize(tensor.dequantize(), "q4_0"),
            "blk.3.attn_q.weight": requantized(lambda values: values.T.reshape(values.shape)),
        },
    )
    done = run(TINY, path, *TEXT, "--report", tmp_path / "drift.html")
    assert done.returncode == 0, done.stderr
    terminal = " ".join(done.stdout.split())
    page = " ".join(html.unescape(re.sub(r"<[^>]*>", " ", (tmp_path / "drift.html").read_text())).split())
    for shown in (terminal, page):
        assert "faulty.gguf has faults: do not use it." in shown
        for words in (
            "blk.2.ffn_down_exps.weight, expert 3: rows are in another order",
            "blk.0.attn_k.weight: weights are 2",
            "the router of layer 1 is quantized to q4_0",
            "blk.3.attn_q.weight: the matrix is transposed",
            "Keep ffn_gate_inp in f32",
        ):
            assert words in shown
    assert page.index("has faults") < page.index("What is wrong") < page.index("rows are in another order")
    assert page.index("rows are in another order") < page.index("KLD against file size")
    assert "What would help" not in page


def test_findings_on_the_terminal(files: dict[str, Path], tmp_path: Path) -> None:
    def quantized(tensor: QuantizedTensor) -> QuantizedTensor:
        return QuantizedTensor.quantize(tensor.dequantize(), "q4_0")

    path = changed(files["q8_0"], tmp_path / "faulty.gguf", tensors={"blk.2.ffn_gate_inp.weight": quantized})
    done = run(TINY, path, files["q8_0"], "--weights-only", "--json", tmp_path / "report.json")
    assert done.returncode == 0, done.stderr
    assert "Findings" in done.stdout
    assert "the router of layer 2 is quantized to q4_0" in " ".join(done.stdout.split())
    faulty, sound = json.loads((tmp_path / "report.json").read_text())["candidates"]
    assert [one["kind"] for one in faulty["findings"]] == ["router"]
    assert sound["findings"] == []


def test_weights_alone(files: dict[str, Path]) -> None:
    done = run(TINY, files["q2_k"], "--weights-only", "--fail-if", "weights.cosine.min<0.5")
    assert done.returncode == 0, done.stderr
    assert "Tensors with the largest error" in done.stdout
    assert "q2_k" in done.stdout
    assert "Next-token" not in done.stdout


def test_usage(files: dict[str, Path], tmp_path: Path) -> None:
    for arguments, word in (
        ((TINY, files["q2_k"]), "--text"),
        ((TINY,), "QUANTIZED"),
        ((TINY, files["q2_k"], *TEXT, "--fail-if", "kld.avg>1"), "Known: kld.mean,"),
        ((TINY, files["q2_k"], "--weights-only", "--fail-if", "kld.mean>1"), "not measured with --weights-only"),
        ((TINY, files["q2_k"], *TEXT, "--junit", tmp_path / "a.xml"), "--fail-if"),
        ((TINY, files["q2_k"], "--weights-only", "--no-weights"), "nothing to measure"),
        ((TINY, files["q2_k"], *TEXT, "--score", "best"), "second-half"),
        ((files["q8_0"], files["q2_k"], *TEXT), "it is no reference"),
    ):
        done = run(*arguments)
        assert done.returncode == 2, done.stderr
        assert word in done.stderr
    assert not list(tmp_path.iterdir())
