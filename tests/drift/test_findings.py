"""Faults planted in the bytes of GGUF files are found and named; sound files have none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.drift.files import PROSE, TINY, changed, converted

import quantkit
from quantkit.drift import Candidate, Finding
from quantkit.drift.expectation import expected_error, improvement
from quantkit.kernels import FORMATS, QuantizedTensor

SOUND = ["f16", "bf16", "q8_0", "q6_k", "q5_0", "q4_k_m", "iq4_xs", "q3_k_m", "q2_k"]
Change = Callable[[QuantizedTensor], QuantizedTensor]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return converted(tmp_path_factory.mktemp("findings"), SOUND)


def weights_of(path: Path) -> Candidate:
    (candidate,) = quantkit.drift(TINY, [path], weights_only=True, threads=2).candidates
    return candidate


def with_text(path: Path) -> Candidate:
    options = {"text": PROSE, "tokens": 1024, "context": 64, "threads": 2}
    (candidate,) = quantkit.drift(TINY, [path], **options).candidates
    return candidate


def planted(files: dict[str, Path], type: str, out: Path, changes: dict[str, Change]) -> tuple[Finding, ...]:
    return weights_of(changed(files[type], out / "faulty.gguf", tensors=changes)).findings


def requantized(change: Callable[[np.ndarray], np.ndarray]) -> Change:
    def change_tensor(tensor: QuantizedTensor) -> QuantizedTensor:
        return QuantizedTensor.quantize(np.ascontiguousarray(change(tensor.dequantize())), tensor.format)

    return change_tensor


def only_expert(expert: int, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    def change_expert(packed: np.ndarray) -> np.ndarray:
        packed = packed.copy()
        packed[expert] = change(packed[expert])
        return packed

    return change_expert


def in_bytes(change: Callable[[np.ndarray], np.ndarray]) -> Change:
    return lambda tensor: QuantizedTensor(np.ascontiguousarray(change(tensor.packed)), tensor.format)


def scaled(tensor: QuantizedTensor, times: float) -> QuantizedTensor:
    """Each block's f16 scales, where the format has them, times a number; codes stay."""
    places = {"q8_0": [0], "q4_k": [0, 2], "q2_k": [80, 82], "q6_k": [208], "q3_k": [108]}[tensor.format]
    packed = tensor.packed.copy().reshape(-1, FORMATS[tensor.format].block_bytes)
    for place in places:
        scales = packed[:, place : place + 2].copy().view(np.float16) * np.float16(times)
        packed[:, place : place + 2] = scales.view(np.uint8)
    return QuantizedTensor(packed.reshape(tensor.packed.shape), tensor.format)


def shuffled(seed: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda rows: rows[np.random.default_rng(seed).permutation(len(rows))]


def test_sound_files_have_no_findings(files: dict[str, Path]) -> None:
    drift = quantkit.drift(TINY, files.values(), text=PROSE, tokens=1024, context=64, threads=2)
    assert {one.file: one.findings for one in drift.candidates} == {str(path): () for path in files.values()}


@pytest.mark.parametrize("type", ["bf16", "q8_0", "q4_k_m", "q2_k"])
def test_rows_of_one_expert_in_another_order(files: dict[str, Path], tmp_path: Path, type: str) -> None:
    change = {"blk.2.ffn_down_exps.weight": in_bytes(only_expert(3, shuffled(1)))}
    (one,) = planted(files, type, tmp_path, change)
    assert (one.severity, one.kind, one.tensor, one.layer, one.experts) == ("fault", "order", *change, 2, (3,))
    assert one.statement.startswith("blk.2.ffn_down_exps.weight, expert 3: rows are in another order (cosine ")


def test_columns_of_one_expert_in_another_order(files: dict[str, Path], tmp_path: Path) -> None:
    change = requantized(only_expert(0, lambda expert: shuffled(2)(expert.T).T))
    (one,) = planted(files, "q4_k_m", tmp_path, {"blk.0.ffn_gate_exps.weight": change})
    assert one.statement.startswith("blk.0.ffn_gate_exps.weight, expert 0: columns are in another order")


def test_experts_exchanged(files: dict[str, Path], tmp_path: Path) -> None:
    change = in_bytes(lambda packed: packed[[0, 2, 1, 3]])
    first, second = planted(files, "q4_k_m", tmp_path, {"blk.1.ffn_up_exps.weight": change})
    assert (first.experts, second.experts) == ((1,), (2,))
    assert first.statement.startswith("blk.1.ffn_up_exps.weight, expert 1: these are the weights of expert 2 (")
    assert second.statement.startswith("blk.1.ffn_up_exps.weight, expert 2: these are the weights of expert 1 (")


@pytest.mark.parametrize(("type", "times"), [("q8_0", 2), ("q4_k_m", 2), ("q4_k_m", 0.5), ("q2_k", 2)])
def test_scales_off_by_two(files: dict[str, Path], tmp_path: Path, type: str, times: float) -> None:
    (one,) = planted(files, type, tmp_path, {"blk.0.attn_k.weight": lambda tensor: scaled(tensor, times)})
    assert (one.severity, one.kind, one.tensor, one.experts) == ("fault", "scale", "blk.0.attn_k.weight", ())
    factor = float(one.statement.split("weights are ")[1].split(" times")[0])
    assert factor == pytest.approx(times, rel=0.01)


@pytest.mark.parametrize("type", ["q2_k", "q4_0", "q8_0"])
def test_a_quantized_router(files: dict[str, Path], tmp_path: Path, type: str) -> None:
    name = "blk.1.ffn_gate_inp.weight"
    change = {name: lambda tensor: QuantizedTensor.quantize(tensor.dequantize(), type)}
    path = changed(files["q4_k_m"], tmp_path / "router.gguf", tensors=change)
    candidate = with_text(path)
    (one,) = candidate.findings
    assert (one.severity, one.kind, one.tensor, one.layer) == ("fault", "router", name, 1)
    assert f"the router of layer 1 is quantized to {type} (relative error" in one.statement
    assert candidate.routing is not None
    flipped = 100 * (1 - candidate.routing.agreement_local[1])
    assert f"that alone sends {flipped:.2f} % of tokens to another expert" in one.statement
    assert "Keep ffn_gate_inp in f32" in one.advice


def test_a_router_that_was_quantized_and_is_stored_in_f32(files: dict[str, Path], tmp_path: Path) -> None:
    def change(tensor: QuantizedTensor) -> QuantizedTensor:
        values = QuantizedTensor.quantize(tensor.dequantize(), "q4_0").dequantize()
        return QuantizedTensor.quantize(values, tensor.format)

    (one,) = planted(files, "q8_0", tmp_path, {"blk.3.ffn_gate_inp.weight": change})
    assert "the router of layer 3 is not the reference's" in one.statement


@pytest.mark.parametrize("type", ["q8_0", "q4_k_m", "q2_k"])
def test_a_wrong_transposition(files: dict[str, Path], tmp_path: Path, type: str) -> None:
    """Of a square matrix, of one that is not (its bytes in the other order), and of all experts."""
    experts = requantized(lambda values: values.transpose(0, 2, 1).reshape(values.shape))
    matrix = requantized(lambda values: values.T.reshape(values.shape))
    changes = {
        "blk.0.attn_q.weight": matrix,
        "blk.1.ffn_down_exps.weight": experts,
        "token_embd.weight": matrix,
    }
    found = planted(files, type, tmp_path, changes)
    assert {one.tensor for one in found} == set(changes)
    assert all((one.severity, one.kind, one.experts) == ("fault", "order", ()) for one in found)
    assert all("the matrix is transposed (cosine" in one.statement for one in found)
    assert "blk.1.ffn_down_exps.weight, all 4 experts: the matrix" in " ".join(one.statement for one in found)


EXPERTS = [f"blk.{layer}.ffn_{kind}_exps.weight" for layer in range(4) for kind in ("gate", "up", "down")]


def test_more_faults_of_a_kind_than_are_searched(files: dict[str, Path], tmp_path: Path) -> None:
    """All 48 experts' matrices transposed: 24 are searched, and the others are said to be judged by these."""
    experts = requantized(lambda values: values.transpose(0, 2, 1).reshape(values.shape))
    found = planted(files, "q8_0", tmp_path, dict.fromkeys(EXPERTS, experts))
    assert {one.tensor for one in found} == set(EXPERTS)
    assert all((one.severity, one.kind) == ("fault", "order") for one in found)
    assert all("the matrix is transposed" in one.statement for one in found)
    judged = [one for one in found if "to judge by the 8 pieces of ffn_" in one.statement]
    assert sum(len(one.experts) or 4 for one in judged) == 24
    assert not any("not recognized" in one.statement for one in found)


def test_several_causes_are_not_taken_for_one(files: dict[str, Path], tmp_path: Path) -> None:
    """Rows in another order in half of the layers, columns in the other: what was not searched is said to be so."""
    changes: dict[str, Change] = {}
    for name in EXPERTS:
        if int(name.split(".")[1]) < 2:
            changes[name] = requantized(lambda values: np.stack([shuffled(1)(expert) for expert in values]))
        else:
            changes[name] = requantized(lambda values: np.stack([shuffled(2)(expert.T).T for expert in values]))
    found = planted(files, "q8_0", tmp_path, changes)
    for one in found:
        assert one.layer is not None
        known = "rows are in another order (" if one.layer < 2 else "columns are in another order ("
        assert known in one.statement or "the cause was not looked for" in one.statement
    assert sum("the cause was not looked for" in one.statement for one in found) >= 3
    assert sum("in another order (" in one.statement for one in found) >= 3


def test_a_matrix_too_large_to_be_held_is_seen_to_be_transposed(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Scout's embedding is, with the limits as much smaller as the model."""
    monkeypatch.setattr("quantkit.drift.diagnosis._MOST_WEIGHTS", 1 << 14)
    monkeypatch.setattr("quantkit.drift.diagnosis._BLOCK_WEIGHTS", 1 << 13)
    transposed = requantized(lambda values: values.T.reshape(values.shape))
    changes = {"token_embd.weight": transposed, "output.weight": in_bytes(shuffled(3))}
    text = {one.tensor: one.statement for one in planted(files, "q4_k_m", tmp_path, changes)}
    assert "the matrix is transposed (cosine" in text["token_embd.weight"]
    assert "transposed" not in text["output.weight"]


def test_other_faults(files: dict[str, Path], tmp_path: Path) -> None:
    """Zeros, values of a coarser type, two matrices exchanged, values shuffled one by one."""

    def zeroed(tensor: QuantizedTensor) -> QuantizedTensor:
        return QuantizedTensor.quantize(np.zeros_like(tensor.dequantize()), tensor.format)

    def coarser(tensor: QuantizedTensor) -> QuantizedTensor:
        values = QuantizedTensor.quantize(tensor.dequantize(), "q3_k").dequantize()
        return QuantizedTensor.quantize(values, tensor.format)

    gate = quantkit.gguf.load_tensor(files["q8_0"], "blk.0.ffn_gate_shexp.weight")
    scattered = requantized(lambda values: np.random.default_rng(0).permuted(values.reshape(-1)).reshape(values.shape))
    found = planted(
        files,
        "q8_0",
        tmp_path,
        {
            "blk.0.ffn_up_shexp.weight": lambda tensor: gate,
            "blk.1.attn_v.weight": zeroed,
            "blk.2.attn_output.weight": coarser,
            "blk.3.attn_q.weight": scattered,
        },
    )
    text = {one.tensor: one.statement for one in found}
    assert len(found) == len(text) == 4
    assert "these are the weights of blk.0.ffn_gate_shexp.weight" in text["blk.0.ffn_up_shexp.weight"]
    assert text["blk.1.attn_v.weight"] == "blk.1.attn_v.weight: every weight is zero."
    assert "that is what q3_k has" in text["blk.2.attn_output.weight"]
    assert "the same values, but in another order" in text["blk.3.attn_q.weight"]


def test_keys_that_differ(files: dict[str, Path], tmp_path: Path) -> None:
    path = changed(files["bf16"], tmp_path / "rope.gguf", fields={"llama4.rope.freq_base": 1000.0})
    found = with_text(path).findings
    assert found
    assert {(one.severity, one.kind) for one in found} == {("fault", "keys")}
    assert "% though the weights are the reference's" in found[0].statement


@pytest.mark.parametrize("type", ["q2_k", "q3_k_m", "q4_k_m", "q5_0", "iq4_xs", "q6_k"])
def test_the_next_type_up_has_the_error_that_is_said(files: dict[str, Path], tmp_path: Path, type: str) -> None:
    """Every tensor, quantized to the type that would help."""
    candidate = weights_of(files[type])
    wanted = {one.name: improvement(one) for one in candidate.tensors}
    changes = {name: one for name, one in wanted.items() if one is not None}
    assert len(changes) > 20
    reference = {name: quantkit.gguf.load_tensor(files["bf16"], name).dequantize() for name in changes}
    for tensor in candidate.tensors:
        better = wanted[tensor.name]
        if better is None:
            assert tensor.type in ("f32", "bf16")
            continue
        found = QuantizedTensor.quantize(reference[tensor.name], better.type, threads=2)
        assert found.nbytes - tensor.bytes == better.bytes
        assert found.error(reference[tensor.name]).relative == pytest.approx(better.relative_error, rel=0.15)
        assert better.relative_error < tensor.error.relative_error


def test_what_types_leave_is_in_the_order_of_their_bits() -> None:
    errors = [expected_error(name) for name in ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "q8_0", "bf16", "f16", "f32")]
    assert errors == sorted(errors, key=lambda error: -(error or 0.0))
    assert errors[-1] == 0
    assert expected_error("iq2_xxs") is None
