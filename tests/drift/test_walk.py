"""Streams side by side: the same weights have exactly the same everything, and each figure is what it says."""

from __future__ import annotations

import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.drift.files import PROSE, TINY, changed, converted
from tests.llama4 import checkpoints

from quantkit.calibration import Document, Encoder, checkpoint_encoder, documents
from quantkit.checkpoint import open_checkpoint
from quantkit.drift.progress import Progress
from quantkit.drift.sample import Sample, take_sample
from quantkit.drift.walk import Walked, walk
from quantkit.errors import PlanRefusedError
from quantkit.kernels import QuantizedTensor
from quantkit.llama4.forward import Blocks, Observer, Routing, Stream, estimate, open_weights
from quantkit.llama4.forward.states import States


def sample(n_tokens: int = 1024, context: int = 64) -> Sample:
    """Random tokens: exactness needs no meaning."""
    tokens = np.random.default_rng(0).integers(1, 990, n_tokens).tolist()
    return take_sample(
        [Document("", "x")], Encoder(lambda _: tokens, 0), context=context, tokens=n_tokens, score="all", paths=[]
    )


SAMPLE = sample()
ROUNDING = 1e-5


def compared(reference: Path, *candidates: Path, text: Sample = SAMPLE, **options: Any) -> list[Walked]:
    models = [open_weights(path) for path in (reference, *candidates)]
    try:
        return walk(models[0], models[1:], text, **{"threads": 2, **options})
    finally:
        for weights in models:
            weights.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return converted(tmp_path_factory.mktemp("walk"), ["bf16", "q8_0", "q2_k"])


def assert_exactly_zero(walked: Walked) -> None:
    scores = walked.scores
    assert (scores.kld == 0).all()
    assert (scores.reference_log_p == scores.candidate_log_p).all()
    assert (scores.reference_top1 == scores.candidate_top1).all()
    assert (scores.top5_shared == 5).all()
    for routed in walked.routing:
        for router in (routed.local, routed.cumulative):
            assert (router.agreement, router.kl, router.weighted_flips, router.load_shift) == (1, 0, 0, 0)
    assert walked.embedding.relative_error == 0
    for layer in walked.layers:
        for error in (layer.error, layer.local, layer.attention, layer.feed_forward):
            assert error is not None
            assert (error.relative_error, error.cosine, error.sqnr_db) == (0, 1, np.inf)
        for expert in layer.experts:
            assert expert.error is None or expert.error.relative_error == 0
        assert layer.expert_error in (0, None)


def test_a_file_against_itself_and_a_checkpoint_against_its_own_are_exactly_zero(files: dict[str, Path]) -> None:
    (own,) = compared(files["bf16"], files["bf16"])
    assert_exactly_zero(own)
    checkpoint, other = compared(TINY, files["bf16"], files["q2_k"])
    assert_exactly_zero(checkpoint)
    assert other.scores.kld.min() > 0


@pytest.mark.parametrize(
    "shape",
    [
        {"layers": 4, "experts": 8, "moe_step": 2, "experts_used": 2},
        {"layers": 2, "experts": 3, "tied": True, "unfused": True, "dtype": "F32"},
        {"layers": 2, "experts": 1},
    ],
    ids=["two experts and dense layers", "tied", "one expert"],
)
def test_other_shapes_are_exactly_zero_too(shape: dict[str, Any], tmp_path: Path) -> None:
    folder = checkpoints.build(tmp_path / "model", **shape)
    type = "f32" if shape.get("dtype") == "F32" else "bf16"
    path = converted(tmp_path, [type], folder, allow_mismatch=True)[type]
    (walked,) = compared(folder, path)
    assert_exactly_zero(walked)
    assert len(walked.layers) == shape["layers"]
    assert [routed.layer for routed in walked.routing] == list(open_weights(folder).hp.moe_layers)


def test_threads_memory_and_company_do_not_show(files: dict[str, Path]) -> None:
    """One thread or three, states in memory or in files, alone or beside another candidate: the same bits."""
    alone = compared(TINY, files["q2_k"], threads=1)[0]
    weights = open_weights(TINY)
    memory = estimate(weights, len(SAMPLE.chunks) + 2, SAMPLE.context, Blocks(), 3)
    weights.close()
    limited = 3 * memory.working + 2 * memory.states  # of three streams' states
    for walked in (
        compared(TINY, files["q2_k"], threads=3)[0],
        compared(TINY, files["q8_0"], files["q2_k"], max_ram_bytes=limited, threads=3)[1],
    ):
        np.testing.assert_array_equal(walked.scores.kld, alone.scores.kld)
        assert walked.routing == alone.routing
        assert walked.layers == alone.layers
    with pytest.raises(PlanRefusedError, match="fewer files"):
        compared(TINY, files["q2_k"], max_ram_bytes=memory.working)


class Kept(Observer):
    """Hidden states, router inputs and logits of a stream of its own."""

    def __init__(self) -> None:
        self.states: list[np.ndarray] = []
        self.middles: list[np.ndarray] = []
        self.logits: dict[int, np.ndarray] = {}

    def layer(self, layer: int, states: States) -> None:
        self.states.append(states.read(slice(0, states.shape[0])))

    def attention(self, layer: int, states: States) -> None:
        self.middles.append(states.read(slice(0, states.shape[0])))

    def routing(self, seen: Routing) -> None:
        kept = self.logits.setdefault(seen.layer, np.empty((SAMPLE.chunks.size, seen.logits.shape[1])))
        kept[seen.tokens] = seen.logits


def streamed(path: Path) -> tuple[Kept, np.ndarray]:
    seen, weights = Kept(), open_weights(path)
    with Stream(weights, SAMPLE.chunks, observer=seen) as stream:
        stream.run()
        logits = stream.logits().astype(np.float64)
    weights.close()
    return seen, logits


def rows(path: Path, name: str) -> np.ndarray:
    weights = open_weights(path)
    found = weights.rows(name, 0, weights.hp.vocab_size).tensor.dequantize().astype(np.float64)
    weights.close()
    return np.asarray(found)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits - logits.max(-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(-1, keepdims=True))


def test_output_states_and_routing_are_those_of_two_streams(files: dict[str, Path]) -> None:
    """Each stream run by itself, without copies, and compared by the book."""
    (walked,) = compared(TINY, files["q2_k"])
    (reference, wanted), (candidate, found) = streamed(TINY), streamed(files["q2_k"])
    p, q = log_softmax(wanted), log_softmax(found)
    np.testing.assert_allclose(walked.scores.kld, (np.exp(p) * (p - q)).sum(1)[SAMPLE.scored], rtol=2e-4, atol=1e-7)
    np.testing.assert_allclose(walked.scores.candidate_log_p, q[SAMPLE.scored, SAMPLE.targets], atol=1e-4)
    counted = np.arange(SAMPLE.chunks.size) % SAMPLE.context > 0
    starts = [rows(path, "token_embd.weight")[SAMPLE.chunks.reshape(-1)[counted]] for path in (TINY, files["q2_k"])]
    error = np.linalg.norm(starts[1] - starts[0]) / np.linalg.norm(starts[0])
    assert walked.embedding.relative_error == pytest.approx(error, rel=1e-6)
    for layer, (drift, routed) in enumerate(zip(walked.layers, walked.routing, strict=True)):
        x, y = (seen.states[layer][counted].astype(np.float64) for seen in (reference, candidate))
        assert drift.error.relative_error == pytest.approx(np.linalg.norm(y - x) / np.linalg.norm(x), rel=1e-3)
        cosines = (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
        assert drift.error.cosine == pytest.approx(cosines.mean(), abs=1e-5)
        assert drift.error.tokens == counted.sum()
        a, b = (seen.logits[layer][counted] for seen in (reference, candidate))
        first, second = a.argmax(1), b.argmax(1)
        assert routed.cumulative.agreement == pytest.approx((first == second).mean(), abs=3e-3)
        lp, lq = log_softmax(a), log_softmax(b)
        assert routed.cumulative.kl == pytest.approx((np.exp(lp) * (lp - lq)).sum(1).mean(), rel=1e-2)
        margins = np.sort(a, axis=1)[:, -1] - np.sort(a, axis=1)[:, -2]
        assert routed.cumulative.weighted_flips == pytest.approx(
            margins[first != second].sum() / margins.sum(), abs=2e-3
        )
        loads = [np.bincount(experts, minlength=4) / counted.sum() for experts in (first, second)]
        np.testing.assert_allclose(routed.load, loads[0], atol=3e-3)
        np.testing.assert_allclose(routed.cumulative.load, loads[1], atol=3e-3)
        assert routed.cumulative.load_shift == pytest.approx(np.abs(loads[0] - loads[1]).sum() / 2, abs=3e-3)
        # routers are kept in float32
        assert (routed.local.agreement, routed.local.kl) == (1, 0)


def swapped(*experts: int) -> Any:
    """The experts of a tensor in another order."""

    def change(tensor: QuantizedTensor) -> QuantizedTensor:
        return QuantizedTensor(tensor.packed[list(experts)], tensor.format)

    return change


def doubled(tensor: QuantizedTensor) -> QuantizedTensor:
    return QuantizedTensor.quantize(2 * tensor.dequantize(), tensor.format)


def reversed_rows(tensor: QuantizedTensor) -> QuantizedTensor:
    return QuantizedTensor(tensor.packed[::-1].copy(), tensor.format)


def test_a_fault_stands_where_it_is(files: dict[str, Path], tmp_path: Path) -> None:
    """What comes after a fault inherits its error, and has none of its own."""
    base = files["bf16"]
    swap = changed(base, tmp_path / "swap.gguf", tensors={"blk.1.ffn_down_exps.weight": swapped(0, 1, 3, 2)})
    double = changed(base, tmp_path / "double.gguf", tensors={"blk.2.attn_output.weight": doubled})
    router = changed(base, tmp_path / "router.gguf", tensors={"blk.1.ffn_gate_inp.weight": reversed_rows})
    experts, attention, routed = compared(base, swap, double, router)

    for layer in experts.layers:
        assert layer.error.relative_error == 0 if layer.layer < 1 else layer.error.relative_error > 0.01
        assert layer.attention is not None
        assert layer.feed_forward is not None
        assert layer.local is not None
        assert layer.attention.relative_error < ROUNDING
        assert (layer.feed_forward.relative_error > 0.01) == (layer.layer == 1)
        assert (layer.local.relative_error > 0.01) == (layer.layer == 1)
        for expert in layer.experts:
            assert expert.error is not None
            assert (expert.error.relative_error > 0.5) == (layer.layer == 1 and expert.expert in (2, 3))
            # tokens that inherited another route stand beside others in a product, which rounds otherwise
            assert expert.error.relative_error > 0.5 or expert.error.relative_error < ROUNDING
    for layer in attention.layers:
        assert layer.attention is not None
        assert layer.feed_forward is not None
        assert layer.local is not None
        assert (layer.attention.relative_error > 0.01) == (layer.layer == 2)
        assert layer.feed_forward.relative_error < ROUNDING
        assert layer.local.relative_error >= 0.5 * layer.attention.relative_error
        assert (layer.local.relative_error > ROUNDING) == (layer.layer == 2)
        assert layer.expert_error is not None
        assert layer.expert_error < ROUNDING
    for one in routed.routing:
        assert (one.local.agreement < 0.5) == (one.layer == 1)
        assert (one.local.agreement == 1) == (one.layer != 1)
        assert one.cumulative.agreement == 1 if one.layer < 1 else one.cumulative.agreement < 1
    assert routed.routing[1].local.load == routed.routing[1].load[::-1]


def test_a_router_s_own_drift_is_by_the_book(files: dict[str, Path], tmp_path: Path) -> None:
    """In the first layer both models have the same hidden states, so that streams of their own show local logits."""

    def coarse(tensor: QuantizedTensor) -> QuantizedTensor:
        values = QuantizedTensor.quantize(tensor.dequantize(), "q2_k").dequantize()
        return QuantizedTensor.quantize(values, tensor.format)

    path = changed(files["bf16"], tmp_path / "router.gguf", tensors={"blk.0.ffn_gate_inp.weight": coarse})
    (walked,) = compared(files["bf16"], path)
    counted = np.arange(SAMPLE.chunks.size) % SAMPLE.context > 0
    a, b = (streamed(one)[0].logits[0][counted] for one in (files["bf16"], path))
    lp, lq = log_softmax(a), log_softmax(b)
    top = np.sort(a, axis=1)
    margins, flipped = top[:, -1] - top[:, -2], a.argmax(1) != b.argmax(1)
    local = walked.routing[0].local
    assert flipped.sum() > 5
    assert local.kl == pytest.approx((np.exp(lp) * (lp - lq)).sum(1).mean(), rel=1e-3)
    assert local.weighted_flips == pytest.approx(margins[flipped].sum() / margins.sum(), rel=0.02)
    assert local.agreement == pytest.approx(1 - flipped.mean(), abs=2e-3)
    assert walked.routing[1].local.kl == 0


def test_errors_of_experts_are_weighted_by_use(files: dict[str, Path], tmp_path: Path) -> None:
    """What an expert adds is half of what it was: an error of 1/2, 6.02 dB, and of no other expert."""

    def halved(tensor: QuantizedTensor) -> QuantizedTensor:
        values = tensor.dequantize()
        values[2] /= 2
        return QuantizedTensor.quantize(values, tensor.format)

    path = changed(files["bf16"], tmp_path / "half.gguf", tensors={"blk.0.ffn_down_exps.weight": halved})
    (walked,) = compared(files["bf16"], path)
    layer = walked.layers[0]
    errors = [expert.error for expert in layer.experts]
    assert errors[2] is not None
    assert errors[2].relative_error == pytest.approx(0.5, rel=1e-5)
    assert errors[2].sqnr_db == pytest.approx(20 * np.log10(2), abs=1e-3)
    assert errors[2].cosine == pytest.approx(1, abs=1e-6)
    assert all(error is None or error.relative_error < ROUNDING for at, error in enumerate(errors) if at != 2)
    known = sum(expert.load for expert in layer.experts if expert.error is not None)
    assert layer.expert_error == pytest.approx(0.5 * layer.experts[2].load / known, rel=1e-4)
    for error in (layer.error, layer.local, layer.feed_forward):
        assert error is not None
        assert error.sqnr_db == pytest.approx(-20 * np.log10(error.relative_error), abs=1e-9)
        assert 0 < error.sqnr_db < 60


def test_logits_are_held_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks are full from 4,096 tokens on. As many more have 268 MB of logits in each model: memory grows by less
    than a tenth of that, and no file is written."""
    folder = checkpoints.build(tmp_path / "model", layers=1, experts=2, vocab=16384)
    path = converted(tmp_path, ["q8_0"], folder, allow_mismatch=True)["q8_0"]
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    for name in ("TMPDIR", "TMP", "TEMP"):
        monkeypatch.setenv(name, str(here))
    monkeypatch.setattr(tempfile, "tempdir", None)
    seen: list[Path] = []
    peaks = []
    for n_tokens in (4096, 8192):
        tracemalloc.start()
        try:
            (walked,) = compared(
                folder, path, text=sample(n_tokens), progress=lambda _: seen.extend(here.iterdir()), local=False
            )
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
        assert len(walked.scores.kld) > 0.95 * n_tokens
    assert peaks[1] - peaks[0] < 4096 * 16384 * 4 / 10
    assert not seen
    assert not list(here.iterdir())


def test_local_is_the_layer_on_the_reference_s_states(files: dict[str, Path]) -> None:
    """A stream of the candidate whose states are overwritten before a layer, for the chunk that was chosen."""
    (walked,) = compared(TINY, files["q2_k"])
    reference, _ = streamed(TINY)
    chosen = len(SAMPLE.chunks) // 2
    rows = slice(chosen * SAMPLE.context, (chosen + 1) * SAMPLE.context)
    for layer in range(4):
        weights = open_weights(files["q2_k"])
        seen = Kept()
        with Stream(weights, SAMPLE.chunks[chosen : chosen + 1], observer=seen) as stream:
            for at in range(layer + 1):
                if at == layer and layer:
                    stream.states.write(slice(0, SAMPLE.context), reference.states[layer - 1][rows])
                elif at == layer:
                    whole = open_weights(TINY)
                    with Stream(whole, SAMPLE.chunks[chosen : chosen + 1]) as start:
                        stream.states.write(slice(0, SAMPLE.context), start.states.read(slice(0, SAMPLE.context)))
                    whole.close()
                stream.advance()
        weights.close()
        for mine, theirs, drift in (
            (seen.states[layer], reference.states[layer][rows], walked.layers[layer].local),
            (seen.middles[layer], reference.middles[layer][rows], walked.layers[layer].attention),
        ):
            x, y = theirs[1:].astype(np.float64), mine[1:].astype(np.float64)
            assert drift is not None
            assert drift.tokens == SAMPLE.context - 1
            assert drift.relative_error == pytest.approx(np.linalg.norm(y - x) / np.linalg.norm(x), rel=1e-3)


def test_without_local_there_are_no_copies(files: dict[str, Path]) -> None:
    (walked,) = compared(TINY, files["q2_k"], local=False)
    assert all(
        layer.local is layer.attention is layer.feed_forward is layer.expert_error is None for layer in walked.layers
    )
    assert [len(layer.experts) for layer in walked.layers] == [4] * 4
    (full,) = compared(TINY, files["q2_k"])
    np.testing.assert_allclose(walked.scores.kld, full.scores.kld, rtol=1e-3, atol=1e-7)


def test_progress(files: dict[str, Path]) -> None:
    reports: list[Progress] = []
    compared(TINY, files["q8_0"], progress=reports.append)
    assert [(report.model, report.layer) for report in reports[:4]] == [(0, 1), (1, 1), (0, 2), (1, 2)]
    done = [report.done for report in reports]
    assert done == sorted(done)
    assert done[-1] == reports[-1].total == 2 * 5 * SAMPLE.chunks.size


def test_real_text_has_the_drift_of_its_kind(files: dict[str, Path]) -> None:
    with open_checkpoint(TINY) as cp:
        text = take_sample(
            documents(PROSE), checkpoint_encoder(cp), context=256, tokens=2048, score="second-half", paths=list(PROSE)
        )
    eight, two = compared(TINY, files["q8_0"], files["q2_k"], text=text)
    assert 1e-4 < eight.scores.kld.mean() < 2e-3
    assert 0.03 < two.scores.kld.mean() < 0.2
    assert eight.routing[-1].cumulative.agreement > two.routing[-1].cumulative.agreement > 0.8
