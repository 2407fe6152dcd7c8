"""`quantkit.drift` against llama.cpp: the same weights as float32, the same tokens, logits of whole rows.

Each quantized file is decoded by the `gguf` package to a float32 file, which llama.cpp multiplies without rounding
activations to 8 bits; that rounding is measured beside, as the drift of a quantized file from its decoded twin.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest
from tests.drift.files import PROSE, TINY, as_float, converted
from tests.oracle.llama import Model, quantize

import quantkit
from quantkit.calibration import checkpoint_encoder, documents
from quantkit.checkpoint import open_checkpoint
from quantkit.drift import Drift
from quantkit.drift.sample import Sample, take_sample

CONTEXT, TOKENS = 128, 4096
RECIPES = ["q8_0", "q4_k_m", "q2_k"]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(-1, keepdims=True))


def log_probabilities(path: Path, sample: Sample) -> np.ndarray:
    """Of scored tokens, by llama.cpp: float64 (n, vocabulary)."""
    with Model(path, n_ctx=CONTEXT) as model:
        return log_softmax(np.concatenate([model.logits(chunk) for chunk in sample.chunks])[sample.scored])


@dataclass
class Setup:
    sample: Sample
    files: dict[str, Path]
    reference: np.ndarray
    drift: Drift
    folder: Path


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    folder = tmp_path_factory.mktemp("divergence")
    files = converted(folder, ["bf16", *RECIPES])
    with open_checkpoint(TINY) as cp:
        sample = take_sample(
            documents(PROSE), checkpoint_encoder(cp), context=CONTEXT, tokens=TOKENS, score="second-half", paths=PROSE
        )
    drift = quantkit.drift(
        TINY,
        [files[recipe] for recipe in RECIPES],
        text=PROSE,
        context=CONTEXT,
        tokens=TOKENS,
        score="second-half",
        weights=False,
        threads=2,
    )
    assert drift.text is not None
    assert drift.text.sha256 == sample.sha256
    return Setup(sample, files, log_probabilities(as_float(files["bf16"], folder / "f32.gguf"), sample), drift, folder)


@pytest.mark.parametrize("recipe", RECIPES)
def test_output_is_that_of_llama_cpp(recipe: str, setup: Setup) -> None:
    candidate = setup.drift.candidates[RECIPES.index(recipe)]
    scores = candidate.scores
    assert scores is not None
    assert candidate.kld is not None
    assert candidate.perplexity is not None
    decoded = as_float(setup.files[recipe], setup.folder / f"{recipe}-f32.gguf")
    p, q = setup.reference, log_probabilities(decoded, setup.sample)
    kld = (np.exp(p) * (p - q)).sum(1)
    rows, targets = np.arange(len(p)), setup.sample.targets
    ratio = float((p - q)[rows, targets].mean())
    agreement = float((p.argmax(1) == q.argmax(1)).mean())
    assert candidate.kld.mean == pytest.approx(kld.mean(), rel=2e-3)
    assert np.corrcoef(scores.kld, kld)[0, 1] > 0.999
    assert candidate.kld.p99 == pytest.approx(np.quantile(kld, 0.99), rel=0.02)
    assert candidate.perplexity.reference == pytest.approx(np.exp(-p[rows, targets].mean()), rel=1e-4)
    assert np.exp(candidate.perplexity.ln_ratio) == pytest.approx(np.exp(ratio), rel=1e-3)
    assert candidate.top1_agreement == pytest.approx(agreement, abs=0.002)
    np.testing.assert_allclose(scores.candidate_log_p, q[rows, targets], atol=0.02)


def test_a_file_of_llama_cpp_s_own(setup: Setup) -> None:
    """Of a type that quantkit has no kernel for."""
    path = quantize(setup.files["bf16"], setup.folder / "iq3_s.gguf", llama_cpp.LLAMA_FTYPE_MOSTLY_IQ3_S)
    options: dict[str, Any] = {"context": CONTEXT, "tokens": TOKENS, "score": "second-half", "threads": 2}
    (candidate,) = quantkit.drift(setup.files["bf16"], [path], text=PROSE, **options).candidates
    q = log_probabilities(as_float(path, setup.folder / "iq3_s-f32.gguf"), setup.sample)
    assert candidate.kld is not None
    assert candidate.kld.mean == pytest.approx(
        (np.exp(setup.reference) * (setup.reference - q)).sum(1).mean(), rel=2e-3
    )
    types = {tensor.type: tensor.error.relative_error for tensor in candidate.tensors}
    assert 0.05 < types["iq3_s"] < 0.3
    assert candidate.types["iq3_s"] > 0


@pytest.mark.parametrize("recipe", RECIPES)
def test_int8_activations_are_what_llama_cpp_adds(recipe: str, setup: Setup) -> None:
    """llama.cpp's own drift with a quantized file is that of its weights and more, since it rounds activations."""
    candidate = setup.drift.candidates[RECIPES.index(recipe)]
    assert candidate.kld is not None
    p, q = setup.reference, log_probabilities(setup.files[recipe], setup.sample)
    kld = (np.exp(p) * (p - q)).sum(1).mean()
    added = {"q8_0": (1.2, 8.0), "q4_k_m": (0.98, 1.3), "q2_k": (0.97, 1.1)}[recipe]
    assert added[0] < kld / candidate.kld.mean < added[1]
