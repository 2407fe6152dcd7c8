"""From files to a result: its figures are those of its scores, and what does not belong together is refused by name."""

from __future__ import annotations

import hashlib
import json
import math
import platform
from collections import Counter
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.drift.files import PROSE, ROOT, TINY, as_float, changed, converted
from tests.llama4 import checkpoints

import quantkit
from quantkit import kernels
from quantkit.checkpoint.reader import FileReader
from quantkit.drift import Candidate, Drift, Statistics, TokenScores
from quantkit.drift.differences import holm
from quantkit.drift.models import open_model
from quantkit.errors import CheckpointError, QuantkitError, UnsupportedModelError, UsageError
from quantkit.gguf import Imatrix, ImatrixEntry, write_imatrix

OPTIONS: dict[str, Any] = {"context": 64, "tokens": 2048, "threads": 2}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return converted(tmp_path_factory.mktemp("run"), ["bf16", "q8_0", "q4_k_m", "q2_k"])


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fifty documents of two domains, and some of none."""
    prose = (ROOT / "LICENSE").read_text()
    domains: list[str | None] = ["law", "code", None]
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    documents = [{"text": prose[200 * at : 200 * at + 200], "domain": domains[at % 3]} for at in range(50)]
    path.write_text("\n".join(json.dumps({k: v for k, v in one.items() if v is not None}) for one in documents))
    return path


@pytest.fixture(scope="module")
def result(files: dict[str, Path], texts: Path) -> Drift:
    candidates = [files["q8_0"], files["q4_k_m"], files["q2_k"], files["q4_k_m"]]
    return quantkit.drift(TINY, candidates, text=[texts], context=64, threads=2)


def scores_of(candidate: Candidate) -> TokenScores:
    assert candidate.scores is not None
    return candidate.scores


def test_the_same_weights_are_exactly_alike(files: dict[str, Path]) -> None:
    for reference in (TINY, files["bf16"]):
        drift = quantkit.drift(reference, [files["bf16"]], text=PROSE, **OPTIONS)
        (own,) = drift.candidates
        assert own.kld is not None
        assert (own.kld.mean, own.kld.ci95, own.kld.median, own.kld.max) == (0, (0, 0), 0, 0)
        assert own.perplexity is not None
        assert own.perplexity.candidate == own.perplexity.reference
        assert (own.perplexity.ln_ratio, own.perplexity.ci95) == (0, (0, 0))
        assert (own.top1_agreement, own.top5_overlap) == (1, 1)
        assert own.top1_ci95 is not None
        assert 0.99 < own.top1_ci95[0] < own.top1_ci95[1] == 1
        assert own.delta_p is not None
        assert own.flips is not None
        assert (own.delta_p.rms, own.flips.correct_to_wrong, own.flips.wrong_to_correct) == (0, 0, 0)
        assert own.routing is not None
        assert own.routing.agreement == own.routing.agreement_local == (1, 1, 1, 1)


def test_figures_are_those_of_the_scores(result: Drift) -> None:
    for candidate in result.candidates:
        scores = scores_of(candidate)
        assert candidate.kld is not None
        assert candidate.perplexity is not None
        assert candidate.delta_p is not None
        assert candidate.flips is not None
        assert candidate.kld.ci95 is not None
        assert candidate.perplexity.ci95 is not None
        assert candidate.kld.mean == scores.kld.mean()
        assert candidate.kld.ci95[0] < candidate.kld.mean < candidate.kld.ci95[1]
        ordered = np.sort(scores.kld)
        n = len(ordered)
        assert candidate.kld.max == ordered[-1]
        at = 0.99 * (n - 1)
        low = int(at)
        assert candidate.kld.p99 == pytest.approx(ordered[low] + (at - low) * (ordered[low + 1] - ordered[low]))
        assert candidate.kld.median < candidate.kld.p90 < candidate.kld.p95 < candidate.kld.p99 <= candidate.kld.p999
        assert candidate.perplexity.candidate == pytest.approx(math.exp(-scores.candidate_log_p.mean()))
        ratio = candidate.perplexity.candidate / candidate.perplexity.reference
        assert candidate.perplexity.ln_ratio == pytest.approx(math.log(ratio))
        assert candidate.perplexity.ci95[0] < candidate.perplexity.ln_ratio < candidate.perplexity.ci95[1]
        assert candidate.top1_agreement == (scores.reference_top1 == scores.candidate_top1).mean()
        change = np.exp(scores.candidate_log_p) - np.exp(scores.reference_log_p)
        assert candidate.delta_p.rms == pytest.approx(np.sqrt((change**2).mean()))
        assert candidate.delta_p.mean == pytest.approx(change.mean())
        assert (candidate.delta_p.min, candidate.delta_p.max) == (change.min(), change.max())
        right, still = scores.reference_top1 == scores.targets, scores.candidate_top1 == scores.targets
        assert candidate.flips.correct_to_wrong == (right & ~still).mean()
        assert candidate.flips.wrong_to_correct == (~right & still).mean()
        lost = candidate.flips.correct_to_wrong - candidate.flips.wrong_to_correct
        assert candidate.flips.reference_correct - candidate.flips.candidate_correct == pytest.approx(lost)
        assert candidate.routing is not None
        assert [layer.layer for layer in candidate.layers] == list(candidate.routing.layers) == [0, 1, 2, 3]
    means = [scores_of(candidate).kld.mean() for candidate in result.candidates]
    assert means[0] < means[1] == means[3] < means[2]


def test_documents_domains_and_what_is_told_of_them(result: Drift, texts: Path) -> None:
    assert result.text is not None
    assert (result.text.documents, result.text.intervals_over, result.text.clusters) == (50, "documents", 50)
    assert result.text.chunks_per_block is None
    assert result.text.files == (str(texts),)
    candidate = result.candidates[1]
    assert [one.domain for one in candidate.domains] == ["code", "law"]
    scores = scores_of(candidate)
    assert sum(one.tokens for one in candidate.domains) < result.text.scored_tokens == len(scores.kld)
    assert all(one.kld.ci95 is not None and one.kld.mean > 0 for one in candidate.domains)


def test_pairs_of_candidates(result: Drift) -> None:
    pairs = {(one.first, one.second): one for one in result.differences}
    assert list(pairs) == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    clear, none = pairs[0, 2], pairs[1, 3]
    assert clear.told_apart
    assert clear.ci95 is not None
    assert 0 < clear.ci95[0] < clear.kld < clear.ci95[1]
    assert clear.statement.startswith(f"{result.candidates[2].file} has drifted further than")
    assert not none.told_apart
    assert (none.kld, none.ci95, none.p_value) == (0, (0, 0), 1)
    assert "cannot be told apart on this text" in none.statement
    assert pairs[2, 3].statement.startswith(f"{result.candidates[2].file} has drifted further than")


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03, None]) == [0.03, 0.06, 0.06, None]
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_json(result: Drift) -> None:
    """The schema that others rely on: numbers only, nothing infinite, no per-token arrays."""
    content = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert content["schema"] == 1
    assert content["reference"]["file"] == str(TINY)
    for candidate, own in zip(content["candidates"], result.candidates, strict=True):
        assert candidate["bytes"] == Path(candidate["file"]).stat().st_size
        assert {"mean", "ci95", "median", "p95", "p99", "max"} <= set(candidate["kld"])
        assert candidate["kld"]["ci95"] == list(own.kld.ci95 or ())  # type: ignore[union-attr]
        assert {"reference", "candidate", "ln_ratio", "ci95"} <= set(candidate["perplexity"])
        assert isinstance(candidate["top1_agreement"], float)
        assert len(candidate["routing"]["agreement"]) == len(candidate["routing"]["agreement_local"]) == 4
        assert len(candidate["layers"]) == 4
        assert "scores" not in candidate
    assert content["candidates"][1]["types"]["q4_k"] > 0
    assert len(content["reference"]["fingerprint"]) == 64
    assert len({candidate["fingerprint"] for candidate in content["candidates"]}) == 3
    assert content["differences"][0]["told_apart"] is True
    assert content["text"]["sha256"]


def test_all_that_it_takes_to_repeat_it(result: Drift, files: dict[str, Path], tmp_path: Path) -> None:
    content = result.to_json()
    assert (content["imatrix"], content["command"]) == (None, None)
    wanted = {"tokens": None, "context": 64, "score": "all", "weights": True, "local": True, "draws": 4000}
    assert {name: content["options"][name] for name in wanted} == wanted
    assert isinstance(content["options"]["seed"], int)
    for name in ("numpy", "gguf", "tokenizers"):
        assert content["versions"][name] == version(name)
    assert content["machine"]["tier"] == kernels.build_info()["tier"]
    assert content["machine"]["platform"].startswith(f"{platform.system()} {platform.machine()}")
    assert platform.release() not in content["machine"]["platform"]
    assert all(set(one) == {"name", "version", "architecture"} for one in content["machine"]["blas"])
    path = tmp_path / "tiny.imatrix"
    entry = ImatrixEntry(np.ones((1, 256), np.float32), np.ones(1))
    write_imatrix(path, Imatrix({"blk.0.attn_q.weight": entry}, (), 1, 64))
    drift = quantkit.drift(TINY, [files["q8_0"]], weights_only=True, imatrix=path)
    assert drift.imatrix == Statistics(str(path), hashlib.sha256(path.read_bytes()).hexdigest())
    assert (drift.options.context, drift.options.score, drift.options.local) == (None, None, False)


def test_gguf_files_alone_give_the_same_numbers(files: dict[str, Path]) -> None:
    """Weights and tokenizer from the BF16 GGUF instead of the checkpoint."""
    own = quantkit.drift(TINY, [files["q4_k_m"]], text=PROSE, **OPTIONS)
    other = quantkit.drift(files["bf16"], [files["q4_k_m"]], text=PROSE, **OPTIONS)
    errors = [[tensor.error for tensor in drift.candidates[0].tensors] for drift in (own, other)]
    assert errors[0] == errors[1]
    assert replace(other.candidates[0], tensors=()) == replace(own.candidates[0], tensors=())
    assert other.text == own.text


def test_references_of_f16_and_f32(files: dict[str, Path], tmp_path: Path) -> None:
    """The f32 file holds bf16's values, and the drift from it is the checkpoint's; f16's are those of its f32 copy."""
    floats = converted(tmp_path, ["f16", "f32"])
    copy = as_float(floats["f16"], tmp_path / "copy.gguf")
    options = {"text": PROSE, "weights": False, **OPTIONS, "tokens": 512}
    by_checkpoint = quantkit.drift(TINY, [files["q4_k_m"]], **options)
    by_f32 = quantkit.drift(floats["f32"], [files["q4_k_m"], files["bf16"]], **options)
    assert by_f32.candidates[0] == by_checkpoint.candidates[0]
    by_f16 = quantkit.drift(floats["f16"], [copy, files["q4_k_m"]], **options)
    for one in (by_f32.candidates[1], by_f16.candidates[0]):
        assert one.kld is not None
        assert (one.kld.max, one.layers[-1].error.relative_error) == (0, 0)
    assert by_f16.reference.types.keys() == {"f16", "f32"}
    assert by_f32.reference.types.keys() == {"f32"}
    kld = by_f16.candidates[1].kld
    assert kld is not None
    assert kld.mean > 0


def test_candidates_share_one_pass_over_the_reference(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes read of each file: the reference's do not depend on how many candidates there are."""
    read: Counter[Path] = Counter()
    read_into = FileReader.read_into

    def counted(self: FileReader, path: Path, buffer: memoryview, offset_bytes: int) -> None:
        read[path] += memoryview(buffer).nbytes
        read_into(self, path, buffer, offset_bytes)

    monkeypatch.setattr(FileReader, "read_into", counted)
    counts = []
    for types in (["q8_0"], ["q8_0", "q4_k_m", "q2_k"]):
        read.clear()
        quantkit.drift(files["bf16"], [files[one] for one in types], text=PROSE, **{**OPTIONS, "tokens": 512})
        assert set(read) == {files[one] for one in ("bf16", *types)}
        counts.append(dict(read))
    alone, shared = counts
    assert alone[files["bf16"]] == shared[files["bf16"]] >= files["bf16"].stat().st_size * 0.9
    assert alone[files["q8_0"]] == shared[files["q8_0"]]


def test_few_documents_are_cut_into_blocks(files: dict[str, Path]) -> None:
    drift = quantkit.drift(TINY, [files["q8_0"]], text=PROSE, score="second-half", context=64, threads=2)
    assert drift.text is not None
    assert (drift.text.documents, drift.text.intervals_over, drift.text.score) == (2, "chunks", "second-half")
    chunks = drift.text.tokens // 64
    assert drift.text.chunks_per_block == round(chunks / 10) > 1
    assert drift.text.clusters == chunks // drift.text.chunks_per_block
    few = quantkit.drift(TINY, [files["q8_0"], files["q2_k"]], text=PROSE, context=512, tokens=2048, threads=2)
    assert few.candidates[0].kld is not None
    assert few.candidates[0].kld.ci95 is few.differences[0].ci95 is None
    assert "too little text" in few.differences[0].statement


@pytest.mark.parametrize(
    ("shape", "word"),
    [
        ({"layers": 3}, "n_layers is 4, and 3 in"),
        ({"experts": 8}, "n_experts is 4, and 8"),
        ({"hidden": 512}, "hidden_size is 256, and 512"),
        ({"vocab": 1280}, "vocab_size is 1024, and 1280"),
        ({"expert_width": 512}, "expert_width"),
        ({"moe_step": 2}, "moe_layers"),
    ],
)
def test_other_models_are_refused(shape: dict[str, Any], word: str, tmp_path: Path) -> None:
    other = converted(tmp_path, ["q8_0"], checkpoints.build(tmp_path / "other", **shape))["q8_0"]
    with pytest.raises(UsageError, match=word) as caught:
        quantkit.drift(TINY, [other], text=PROSE, **OPTIONS)
    assert "one model" in caught.value.hint


def test_other_tokenizers_are_refused(files: dict[str, Path], tmp_path: Path) -> None:
    tokens = list(open_model(TINY).vocabulary.tokens)
    tokens[500] = "frob"
    other = changed(files["q2_k"], tmp_path / "other.gguf", fields={"tokenizer.ggml.tokens": tokens})
    with pytest.raises(UsageError, match="token 500 is"):
        quantkit.drift(TINY, [other], text=PROSE, **OPTIONS)


def test_usage(files: dict[str, Path], tmp_path: Path) -> None:
    def raises(error: type[QuantkitError], word: str, reference: Path, *candidates: Path, **options: Any) -> None:
        with pytest.raises(error) as caught:
            quantkit.drift(reference, candidates, **{"text": PROSE, **OPTIONS, **options})
        assert word in str(caught.value)

    raises(UsageError, "--text", TINY, files["q2_k"], text=None)
    raises(UsageError, "no file to compare", TINY)
    raises(UsageError, "it is no reference", files["q2_k"], files["q8_0"])
    raises(UsageError, "there is no such file", TINY, tmp_path / "missing.gguf")
    raises(UsageError, "do not fill one chunk", TINY, files["q2_k"], tokens=63)
    raises(UsageError, "unknown score", TINY, files["q2_k"], score="none")
    raises(UsageError, "cannot read the text", TINY, files["q2_k"], text=[tmp_path / "missing.txt"])
    (tmp_path / "broken.gguf").write_bytes(files["q2_k"].read_bytes()[:-4000])
    raises(CheckpointError, "broken.gguf", TINY, tmp_path / "broken.gguf")
    named = changed(files["q2_k"], tmp_path / "llama.gguf", fields={"general.architecture": "llama"})
    raises(UnsupportedModelError, "'llama'", TINY, named)


def test_threads_do_not_show(files: dict[str, Path]) -> None:
    one, three = (
        quantkit.drift(TINY, [files["q2_k"]], text=PROSE, **{**OPTIONS, "threads": threads}) for threads in (1, 3)
    )
    assert one == three
