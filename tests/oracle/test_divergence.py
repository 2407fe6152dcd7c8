"""`quantkit.drift` against llama.cpp: the same weights as float32, the same tokens, logits of whole rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest
from tests.drift.files import PROSE, TINY, as_float, converted
from tests.oracle.divergence import Divergence, divergence, log_probabilities
from tests.oracle.llama import quantize

import quantkit
from quantkit.calibration import checkpoint_encoder, documents
from quantkit.checkpoint import open_checkpoint
from quantkit.drift import Candidate, Drift
from quantkit.drift.sample import Sample, take_sample

OPTIONS: dict[str, Any] = {"context": 128, "tokens": 4096, "score": "second-half"}
RECIPES = ["q8_0", "q6_k", "q4_k_m", "q3_k_m", "q2_k"]


@dataclass
class Setup:
    folder: Path
    files: dict[str, Path]
    sample: Sample
    reference: np.ndarray  # log-probabilities
    drift: Drift
    _judged: dict[Path, Divergence] = field(default_factory=dict)

    def candidate(self, recipe: str) -> Candidate:
        return self.drift.candidates[RECIPES.index(recipe)]

    def judged(self, path: Path) -> Divergence:
        if path not in self._judged:
            self._judged[path] = divergence(self.reference, log_probabilities(path, self.sample), self.sample.targets)
        return self._judged[path]

    def judged_decoded(self, path: Path) -> Divergence:
        out = self.folder / f"{path.stem}-f32.gguf"
        return self.judged(out if out.exists() else as_float(path, out))


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    folder = tmp_path_factory.mktemp("divergence")
    files = converted(folder, ["bf16", *RECIPES])
    with open_checkpoint(TINY) as cp:
        sample = take_sample(documents(PROSE), checkpoint_encoder(cp), paths=PROSE, **OPTIONS)
    drift = quantkit.drift(TINY, [files[one] for one in RECIPES], text=PROSE, weights=False, threads=2, **OPTIONS)
    assert drift.text is not None
    assert drift.text.sha256 == sample.sha256
    reference = log_probabilities(as_float(files["bf16"], folder / "bf16-f32.gguf"), sample)
    return Setup(folder, files, sample, reference, drift)


def assert_agrees(candidate: Candidate, judged: Divergence) -> None:
    """Token by token where rounding changed no expert, which is nearly everywhere; means within 1 % or the interval.

    The limits are a hundred times what was seen on BLAS's kernels for AVX-512, AVX2, AVX and SSE2.
    """
    scores = candidate.scores
    assert scores is not None
    assert candidate.kld is not None
    assert candidate.perplexity is not None
    assert candidate.kld.ci95 is not None
    same = judged.same_way(scores)
    assert same.mean() > 0.95
    assert scores.kld[same].mean() == pytest.approx(judged.kld[same].mean(), rel=5e-4)
    assert np.corrcoef(scores.kld[same], judged.kld[same])[0, 1] > 0.99999
    assert candidate.top1_agreement == pytest.approx(judged.top1_agreement, abs=float(1.001 - same.mean()))
    np.testing.assert_array_equal((scores.reference_top1 == scores.candidate_top1)[same], judged.same_top1[same])

    in_interval = candidate.kld.ci95[0] <= judged.mean_kld <= candidate.kld.ci95[1]
    assert in_interval or candidate.kld.mean == pytest.approx(judged.mean_kld, rel=0.01)
    assert candidate.top1_agreement == pytest.approx(judged.top1_agreement, rel=0.01)
    assert np.exp(candidate.perplexity.ln_ratio) == pytest.approx(judged.perplexity_ratio, rel=1e-3)
    assert candidate.perplexity.reference == pytest.approx(np.exp(-judged.reference_log_p.mean()), rel=1e-3)


@pytest.mark.parametrize("recipe", RECIPES)
def test_output_is_that_of_llama_cpp(recipe: str, setup: Setup) -> None:
    assert_agrees(setup.candidate(recipe), setup.judged_decoded(setup.files[recipe]))


def test_output_of_a_file_of_llama_cpp_s_own(setup: Setup) -> None:
    """Of a type that quantkit has no kernel for."""
    path = quantize(setup.files["bf16"], setup.folder / "iq3_s.gguf", llama_cpp.LLAMA_FTYPE_MOSTLY_IQ3_S)
    (candidate,) = quantkit.drift(setup.files["bf16"], [path], text=PROSE, threads=2, **OPTIONS).candidates
    assert_agrees(candidate, setup.judged_decoded(path))
    types = {tensor.type: tensor.error.relative_error for tensor in candidate.tensors}
    assert 0.05 < types["iq3_s"] < 0.3
    assert candidate.types["iq3_s"] > 0


@pytest.mark.parametrize(
    ("recipe", "least", "most"),
    [("q8_0", 1.2, 8.0), ("q6_k", 1.02, 3.0), ("q4_k_m", 0.98, 1.3), ("q3_k_m", 0.97, 1.2), ("q2_k", 0.97, 1.1)],
)
def test_int8_activations_are_what_llama_cpp_adds(recipe: str, least: float, most: float, setup: Setup) -> None:
    """llama.cpp's own drift with a quantized file is that of its weights and more, since it rounds activations."""
    candidate = setup.candidate(recipe)
    assert candidate.kld is not None
    assert least < setup.judged(setup.files[recipe]).mean_kld / candidate.kld.mean < most
