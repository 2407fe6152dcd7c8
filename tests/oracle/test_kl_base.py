"""Files of log-probabilities to and from llama-perplexity: its formulas on llama.cpp's logits, the same tokens."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.drift.files import PROSE, TINY, as_float, converted
from tests.llama4 import checkpoints
from tests.oracle.kl_base import base_file, decoded, record, scored_logits, scores
from tests.oracle.llama import Model

import quantkit
from quantkit.drift.kl_base import open_kl_base
from quantkit.errors import PlanRefusedError, UsageError

CONTEXT, TOKENS, BOS = 128, 2048, 992
TEXT = PROSE[:1]  # one document, as llama-perplexity takes it


def drift(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "quantkit", "drift", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@dataclass
class Setup:
    folder: Path
    files: dict[str, Path]
    tokens: np.ndarray  # as the text has them
    logits: list[np.ndarray]  # llama.cpp's, of the reference
    base: Path  # written from them
    own: Path  # written by quantkit
    own_result: quantkit.drift.Drift

    @property
    def chunks(self) -> np.ndarray:
        chunks = self.tokens.copy()
        chunks[:, 0] = BOS
        return chunks


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    folder = tmp_path_factory.mktemp("kl-base")
    files = converted(folder, ["bf16", "q8_0", "q4_k_m", "q2_k"])
    with Model(files["bf16"], vocab_only=True) as model:
        ids = model.tokenize(TEXT[0].read_text(), add_special=True)
    tokens = np.array(ids[:TOKENS]).reshape(-1, CONTEXT)
    chunks = tokens.copy()
    chunks[:, 0] = BOS
    logits = scored_logits(as_float(files["bf16"], folder / "bf16-f32.gguf"), chunks)
    base = base_file(folder / "llama.kld", tokens, logits)
    result = quantkit.drift(
        TINY,
        [files["q4_k_m"], files["q2_k"]],
        text=TEXT,
        tokens=TOKENS,
        context=CONTEXT,
        score="second-half",
        weights=False,
        threads=2,
        write_kl_base=folder / "own.kld",
    )
    return Setup(folder, files, tokens, logits, base, folder / "own.kld", result)


@pytest.mark.parametrize("recipe", ["bf16", "q8_0", "q4_k_m", "q2_k"])
def test_figures_are_llama_perplexity_s(recipe: str, setup: Setup) -> None:
    """Its base file, its logits of the decoded candidate and its formulas, against ours with the base file alone.

    Token by token but where rounding lets a token take another expert; see tests/oracle/divergence.py.
    """
    (candidate,) = quantkit.drift(setup.base, [setup.files[recipe]], threads=2).candidates
    theirs = scored_logits(as_float(setup.files[recipe], setup.folder / "decoded.gguf"), setup.chunks)
    judged = []
    for mine, base, chunk in zip(theirs, setup.logits, setup.tokens, strict=True):
        for at in range(len(mine)):
            p = decoded(record(base[at]), mine.shape[1])
            judged.append(scores(p, mine[at], int(chunk[CONTEXT // 2 + 1 + at])))
    kld, base_log_p, log_p, same_top1 = (np.array(column) for column in zip(*judged, strict=True))
    own = candidate.scores
    assert own is not None
    assert candidate.kld is not None
    assert candidate.perplexity is not None
    np.testing.assert_array_equal(own.reference_log_p, base_log_p)
    same = np.abs(own.candidate_log_p - log_p) < 1e-4
    assert same.mean() > 0.97
    np.testing.assert_allclose(own.kld[same], kld[same], rtol=2e-3, atol=5e-5)
    np.testing.assert_array_equal((own.reference_top1 == own.candidate_top1)[same], same_top1[same])
    if recipe != "bf16":
        assert candidate.kld.ci95 is not None
        in_interval = candidate.kld.ci95[0] <= kld.mean() <= candidate.kld.ci95[1]
        assert in_interval or candidate.kld.mean == pytest.approx(kld.mean(), rel=0.01)
    assert candidate.top1_agreement == pytest.approx(same_top1.mean(), abs=float(1.001 - same.mean()))
    assert candidate.perplexity.reference == pytest.approx(np.exp(-base_log_p.mean()), rel=1e-6)
    assert candidate.perplexity.candidate == pytest.approx(np.exp(-log_p.mean()), rel=1e-3)


def test_our_file_is_llama_perplexity_s(setup: Setup) -> None:
    """Header and tokens to the byte; log-probabilities within a step of 16 bits where no token takes another expert."""
    own, other = open_kl_base(setup.own), open_kl_base(setup.base)
    before = 20 + 4 * setup.tokens.size
    assert setup.own.read_bytes()[:before] == setup.base.read_bytes()[:before]
    assert setup.own.stat().st_size == setup.base.stat().st_size
    near = []
    for chunk in range(len(setup.tokens)):
        apart = np.abs(own.log_probabilities(chunk) - other.log_probabilities(chunk)).max(axis=1)
        near += (apart < 16 / 65535 + 1e-4).tolist()
    assert np.mean(near) > 0.97


def test_both_ways_agree_within_16_bits(setup: Setup) -> None:
    """The models side by side, and the candidates against the file that the same run wrote."""
    from_file = quantkit.drift(setup.own, [setup.files["q4_k_m"], setup.files["q2_k"]], threads=1)
    assert from_file.text is not None
    assert setup.own_result.text is not None
    assert from_file.text.sha256 == setup.own_result.text.sha256
    assert from_file.text.scored_tokens == setup.own_result.text.scored_tokens == 16 * 63
    for mine, other in zip(from_file.candidates, setup.own_result.candidates, strict=True):
        assert mine.kld is not None
        assert other.kld is not None
        assert mine.kld.mean == pytest.approx(other.kld.mean, rel=0.01)
        assert mine.kld.ci95 == pytest.approx(other.kld.ci95, rel=0.05)
        assert mine.top1_agreement == pytest.approx(other.top1_agreement, abs=0.002)
        assert mine.fingerprint == other.fingerprint
    assert from_file.differences[0].told_apart


def test_the_floor_is_named(setup: Setup) -> None:
    facts = quantkit.drift(setup.own, [setup.files["bf16"]], tokens=256, threads=2).kl_base
    assert facts is not None
    assert facts.floor == 16
    assert 0 < facts.step <= 16 / 65535 * 1.001
    assert abs(facts.uncounted) < 1e-4
    (candidate,) = quantkit.drift(setup.own, [setup.files["bf16"]], threads=2).candidates
    assert candidate.kld is not None
    assert 0 < abs(candidate.kld.mean) < 1e-5  # a file differs from itself
    assert candidate.top1_agreement == 1


def test_the_command(setup: Setup, tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    files = [str(setup.files[one]) for one in ("q4_k_m", "q2_k")]
    run = drift("--kl-base", setup.own, *files, "--json", out)
    assert run.returncode == 0, run.stderr
    assert "floor 16 nats below" in run.stdout
    report = json.loads(out.read_text())
    assert report["kl_base"]["floor"] == 16
    assert "floor 16 nats below" in report["kl_base"]["statement"]
    assert report["text"]["score"] == "second-half"
    assert [one["routing"] for one in report["candidates"]] == [None, None]
    written = tmp_path / "written.kld"
    arguments = ["--text", str(TEXT[0]), "--tokens", str(TOKENS), "--context", str(CONTEXT), "--no-weights"]
    run = drift(TINY, files[0], *arguments, "--write-kl-base", written)
    assert run.returncode == 0, run.stderr
    assert written.read_bytes() == setup.own.read_bytes()


def test_what_does_not_fit_together(setup: Setup, tmp_path: Path) -> None:
    def raises(word: str, reference: Path, *candidates: Path, **options: Any) -> None:
        with pytest.raises((UsageError, PlanRefusedError)) as caught:
            quantkit.drift(reference, candidates, **options)
        assert word in str(caught.value)

    q8_0 = setup.files["q8_0"]
    raises("nothing else to compare with", setup.base, q8_0, text=TEXT)
    raises("nothing else to compare with", setup.base, q8_0, context=64)
    raises("nothing else to compare with", setup.base, q8_0, score="all")
    raises("no file to compare", setup.base)
    raises("do not fill one chunk", setup.base, q8_0, tokens=127)
    raises("exists", TINY, q8_0, text=TEXT, context=64, tokens=128, write_kl_base=setup.base)
    raises("weights alone", TINY, q8_0, weights_only=True, write_kl_base=tmp_path / "new.kld")
    other = converted(tmp_path, ["q8_0"], checkpoints.build(tmp_path / "other", vocab=1280))["q8_0"]
    raises("1,024 ids", setup.base, other)
    raises("1,024 ids", setup.base, q8_0, other)
    run = drift("--kl-base", q8_0, q8_0)
    assert (run.returncode, "is no file of log-probabilities" in run.stderr) == (3, True)
    run = drift(TINY)
    assert (run.returncode, "--kl-base" in run.stderr) == (2, True)
