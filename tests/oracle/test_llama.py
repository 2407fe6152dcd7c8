"""The judge is judged first, on files that quantkit had no hand in: llama.cpp's own converter and quantizer."""

from __future__ import annotations

from pathlib import Path

import llama_cpp
import numpy as np
import pytest
from tests import peer
from tests.oracle.llama import LlamaError, Model, quantize
from tests.oracle.reference import Reference

TINY = Path(__file__).parents[1] / "data" / "tiny-llama4"
TOKENS = [992, *range(32, 160, 3)]


@pytest.fixture(scope="module")
def f32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return peer.convert(TINY, tmp_path_factory.mktemp("peer") / "f32.gguf", "f32")


def test_logits_are_those_of_transformers(f32: Path) -> None:
    with Model(f32) as model:
        ours = model.logits(TOKENS)
        again = model.logits(TOKENS)  # nothing is left over from the call before
    np.testing.assert_allclose(ours, Reference(TINY).logits(TOKENS), atol=5e-5, rtol=0)
    np.testing.assert_array_equal(ours, again)


def test_generation_is_the_argmax_of_the_logits(f32: Path) -> None:
    with Model(f32) as model:
        generated = model.generate(TOKENS, 8)
        logits = model.logits(TOKENS + generated)
    assert generated == logits[len(TOKENS) - 1 : -1].argmax(-1).tolist()


def test_importance_reaches_the_quantizer(f32: Path, tmp_path: Path) -> None:
    name = "blk.0.attn_q.weight"
    plain = quantize(f32, tmp_path / "plain.gguf", llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0)
    weights = np.linspace(0.01, 9, 256, dtype=np.float32)
    steered = quantize(f32, tmp_path / "steered.gguf", llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0, importance={name: weights})
    with Model(plain) as one, Model(steered) as other:
        assert not np.array_equal(one.logits(TOKENS), other.logits(TOKENS))


def test_refusals_carry_the_log(tmp_path: Path) -> None:
    path = tmp_path / "nothing.gguf"
    path.write_bytes(b"GGUF, but no more than that")
    with pytest.raises(LlamaError, match=r"(?s)does not load.*gguf"):
        Model(path)
