"""Errors of weights: those of the kernels' own deviation over whole tensors, and closed forms for faults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.drift.files import PROSE, TINY, changed, converted
from tests.llama4 import checkpoints

import quantkit
from quantkit.drift import TensorDrift
from quantkit.errors import CheckpointError, NonFiniteError, UsageError
from quantkit.gguf import load_tensor, open_gguf, read_imatrix
from quantkit.kernels import QuantizedTensor


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return converted(tmp_path_factory.mktemp("weights"), ["bf16", "q4_k_m", "q2_k"])


def compared(reference: Path, *candidates: Path, **options: Any) -> list[dict[str, TensorDrift]]:
    drift = quantkit.drift(reference, candidates, **{"weights_only": True, "threads": 2, **options})
    assert (drift.text, drift.differences) == (None, ())
    assert all(one.kld is one.routing is one.scores is None and one.layers == () for one in drift.candidates)
    return [{tensor.name: tensor for tensor in one.tensors} for one in drift.candidates]


@pytest.fixture(scope="module")
def imatrix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("imatrix") / "imatrix.gguf"
    quantkit.calibrate(TINY, path, text=PROSE, tokens=1024, context=64, threads=2)
    return path


def test_every_tensor_is_as_far_as_its_deviation(files: dict[str, Path], imatrix: Path) -> None:
    """Against whole tensors out of the BF16 GGUF; the reference is the checkpoint, with experts transposed."""
    found = compared(TINY, files["q4_k_m"], files["q2_k"], imatrix=imatrix)
    importance = read_imatrix(imatrix)
    n_weighted = 0
    for path, tensors in zip((files["q4_k_m"], files["q2_k"]), found, strict=True):
        file = open_gguf(path)
        assert [one.name for one in file.tensors if one.name in tensors] == sorted(
            tensors, key=[one.name for one in file.tensors].index
        )
        assert set(tensors) == {one.name for one in file.tensors}
        for stored in file.tensors:
            own = tensors[stored.name]
            assert (own.type, own.shape, own.bytes) == (stored.type, stored.shape, stored.n_bytes)
            assert own.reference_type == "bf16"
            wanted = load_tensor(files["bf16"], stored.name).dequantize()
            tensor = load_tensor(file, stored.name)
            got = tensor.dequantize()
            for error, reference, packed, index in [
                (own.error, wanted, tensor, None),
                *((one, wanted[at], tensor[at], at) for at, one in enumerate(own.experts)),
            ]:
                deviation = packed.error(reference)
                assert error.rmse == pytest.approx(deviation.rmse, rel=1e-9)
                assert error.relative_error == pytest.approx(deviation.relative, rel=1e-9)
                assert error.sqnr_db == pytest.approx(deviation.sqnr_db, rel=1e-9)
                assert error.cosine == pytest.approx(deviation.cosine, rel=1e-9)
                assert error.max_abs == deviation.max_abs
                decoded = got if index is None else got[index]
                gain = np.vdot(decoded, reference.astype(float)) / np.vdot(reference, reference.astype(float))
                assert error.gain == pytest.approx(gain, rel=1e-5)
                assert error.rounded_to_zero == ((decoded == 0) & (reference != 0)).sum() / (reference != 0).sum()
                columns = None
                if reference.ndim > 1:
                    n_experts = wanted.shape[0] if wanted.ndim == 3 else 1
                    columns = importance.importance(stored.name, n_experts, reference.shape[-1])
                if columns is None:
                    assert error.importance_weighted is None
                    continue
                n_weighted += 1
                weights = columns if index is None and wanted.ndim == 3 else columns[index or 0]
                weighted = packed.error(reference, weights)
                assert error.importance_weighted == pytest.approx(weighted.relative, rel=1e-6)
            assert len(own.experts) == (4 if wanted.ndim == 3 else 0)
    assert n_weighted > 100


def test_the_same_weights_have_no_error(files: dict[str, Path]) -> None:
    for reference in (TINY, files["bf16"]):
        (tensors,) = compared(reference, files["bf16"])
        for tensor in tensors.values():
            for error in (tensor.error, *tensor.experts):
                assert (error.rmse, error.relative_error, error.max_abs, error.rounded_to_zero) == (0, 0, 0, 0)
                assert (error.sqnr_db, error.cosine, error.gain) == (np.inf, 1, pytest.approx(1, abs=1e-15))


def test_faults_have_figures_of_their_own(files: dict[str, Path], tmp_path: Path) -> None:
    """Scales off by 2: gain 2, cosine 1. Two experts exchanged, rows in another order: cosine 0. Nothing else moves."""

    def doubled(tensor: QuantizedTensor) -> QuantizedTensor:
        return QuantizedTensor.quantize(2 * tensor.dequantize(), tensor.format)

    def exchanged(tensor: QuantizedTensor) -> QuantizedTensor:
        return QuantizedTensor(tensor.packed[[0, 2, 1, 3]], tensor.format)

    def mixed(tensor: QuantizedTensor) -> QuantizedTensor:
        return QuantizedTensor(tensor.packed[np.random.default_rng(0).permutation(len(tensor.packed))], tensor.format)

    def zeroed(tensor: QuantizedTensor) -> QuantizedTensor:
        values = tensor.dequantize().copy()
        values[::4] = 0
        return QuantizedTensor.quantize(values, tensor.format)

    changes = {
        "blk.0.attn_k.weight": doubled,
        "blk.1.ffn_up_exps.weight": exchanged,
        "blk.2.attn_q.weight": mixed,
        "output.weight": zeroed,
    }
    path = changed(files["bf16"], tmp_path / "faults.gguf", tensors=changes)
    (tensors,) = compared(TINY, path)
    assert {name for name, tensor in tensors.items() if tensor.error.rmse} == set(changes)
    double, experts, rows, zeros = (tensors[name] for name in changes)
    assert (double.error.gain, double.error.cosine) == (pytest.approx(2), pytest.approx(1))
    assert double.error.relative_error == pytest.approx(1)
    assert [error.rmse > 0 for error in experts.experts] == [False, True, True, False]
    assert max(abs(error.cosine) for error in experts.experts[1:3]) < 0.2
    assert abs(rows.error.cosine) < 0.2
    assert rows.error.gain == pytest.approx(rows.error.cosine, abs=1e-6)
    assert zeros.error.rounded_to_zero == pytest.approx(0.25, abs=1e-3)
    assert (double.layer, zeros.layer, double.type) == (0, None, "bf16")


def test_layouts_and_threads_do_not_show(tmp_path: Path) -> None:
    """Dense layers, experts one by one, a tied head; one thread or three."""
    folder = checkpoints.build(tmp_path / "model", layers=2, experts=3, moe_step=2, unfused=True, tied=True)
    path = converted(tmp_path, ["q4_0"], folder)["q4_0"]
    (one,), (three,) = compared(folder, path, threads=1), compared(folder, path, threads=3)
    assert one == three
    assert {"blk.0.ffn_down.weight", "blk.1.ffn_down_shexp.weight", "token_embd.weight"} <= set(one)
    assert "output.weight" not in one
    assert len(one["blk.1.ffn_gate_exps.weight"].experts) == 3
    assert one["blk.1.ffn_gate_exps.weight"].type == "q4_0"
    back = quantkit.drift(folder, [folder], weights_only=True).candidates[0].tensors
    gate = next(tensor for tensor in back if tensor.name == "blk.1.ffn_gate_exps.weight")
    assert (gate.type, gate.bytes) == ("bf16", 2 * np.prod(gate.shape))


def test_with_text_weights_come_along(files: dict[str, Path]) -> None:
    options: dict[str, Any] = {"text": PROSE, "tokens": 512, "context": 64, "threads": 2}
    (own,) = quantkit.drift(TINY, [files["q2_k"]], **options).candidates
    (alone,) = compared(TINY, files["q2_k"])
    assert own.tensors == tuple(alone.values())
    assert own.kld is not None
    (without,) = quantkit.drift(TINY, [files["q2_k"]], weights=False, **options).candidates
    assert without.tensors == ()
    assert without.kld == own.kld


def test_what_is_not_finite_is_named(files: dict[str, Path], tmp_path: Path) -> None:
    def broken(tensor: QuantizedTensor) -> QuantizedTensor:
        packed = tensor.packed.copy()
        packed[2, 17, 10:12] = (0xC0, 0x7F)  # NaN in bf16
        return QuantizedTensor(packed, tensor.format)

    path = changed(files["bf16"], tmp_path / "broken.gguf", tensors={"blk.3.ffn_gate_exps.weight": broken})
    for reference, candidate in ((TINY, path), (path, files["q2_k"])):
        with pytest.raises(NonFiniteError, match=r"expert 2: .*blk\.3\.ffn_gate_exps\.weight: .* row 17, column 5 "):
            compared(reference, candidate)


def test_usage(files: dict[str, Path], imatrix: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="without text"):
        quantkit.drift(TINY, [files["q2_k"]], weights_only=True, text=PROSE)
    folder = checkpoints.build(tmp_path / "model", layers=2, experts=2, hidden=512)
    path = converted(tmp_path, ["q8_0"], folder)["q8_0"]
    with pytest.raises(CheckpointError, match="imatrix of another model"):
        compared(folder, path, imatrix=imatrix)
