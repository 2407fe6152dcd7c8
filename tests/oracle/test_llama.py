"""The judge is judged first, on files that quantkit had no hand in: llama.cpp's own converter and quantizer."""

from __future__ import annotations

from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import pytest
from tests import peer
from tests.oracle import imatrix
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


def test_importance_is_that_of_the_inputs_in_transformers(f32: Path, tmp_path: Path) -> None:
    entries = imatrix.collect(f32, np.asarray([TOKENS], dtype=np.int32))
    inputs = Reference(TINY).inputs(TOKENS, ["layers.0.self_attn.q_proj", "layers.2.feed_forward.experts"])
    dense = entries["blk.0.attn_q.weight"]
    assert dense.counts.tolist() == [len(TOKENS)]
    np.testing.assert_allclose(dense.sums[0], np.square(inputs["layers.0.self_attn.q_proj"]).sum(0), rtol=1e-4)

    routed = inputs["layers.2.feed_forward.experts"].reshape(4, len(TOKENS), -1)  # zeros where not chosen
    expert = entries["blk.2.ffn_gate_exps.weight"]
    assert expert.counts.tolist() == (np.abs(routed).max(-1) > 0).sum(-1).tolist()
    assert (expert.counts > 0).sum() > 1
    np.testing.assert_allclose(expert.sums, np.square(routed).sum(1), rtol=1e-3, atol=1e-6)

    path = imatrix.write(tmp_path / "imatrix.gguf", entries, dataset="tokens", n_chunks=1, chunk_size=len(TOKENS))
    stored = {tensor.name: tensor.data for tensor in gguf.GGUFReader(path).tensors}
    np.testing.assert_allclose(stored["blk.2.ffn_gate_exps.weight.in_sum2"], expert.sums, rtol=1e-6)
    np.testing.assert_array_equal(stored["blk.2.ffn_gate_exps.weight.counts"][:, 0], expert.counts)
