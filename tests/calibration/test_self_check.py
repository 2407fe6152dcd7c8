"""The self-check: passes on models of every kind, and stops a calibration when the forward pass has a fault."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.llama4 import checkpoints

import quantkit
from quantkit.calibration.self_check import TOLERANCE, check_layers, checked_layers
from quantkit.errors import VerificationError
from quantkit.llama4.forward import (
    attention,
    attention_layer,
    blocks,
    checkpoint_weights,
    feed_forward,
    feed_forward_layer,
    open_weights,
    rotation,
    routing,
    stream,
    weights,
)

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "data" / "tiny-llama4"
TOKENS = np.arange(100, 356).reshape(2, 128)


def check(folder: Path, tokens: np.ndarray = TOKENS) -> list[int]:
    opened = open_weights(folder)
    try:
        check_layers(opened, tokens, threads=2)
        return checked_layers(opened.hp)
    finally:
        opened.close()


@pytest.mark.parametrize(
    ("shape", "layers"),
    [
        ({"layers": 5}, [0, 3]),
        ({"layers": 5, "moe_step": 2, "experts": 128}, [0, 1, 3]),
        ({"layers": 4, "experts": 6, "experts_used": 2, "rope_scaling": checkpoints.SCOUT_ROPE_SCALING}, [0, 3]),
        ({"layers": 2, "experts": 3, "experts_used": 3, "tied": True, "conditional": False}, [0]),
        ({"layers": 4, "text_config": {"attention_chunk_size": 2, "attn_temperature_tuning": False}}, [0, 3]),
        ({"layers": 4, "text_config": {"attention_chunk_size": None, "layer_types": ["full_attention"] * 4}}, [0, 3]),
        ({"layers": 4, "text_config": {"layer_types": ["full_attention", *["chunked_attention"] * 3]}}, [0, 1, 3]),
        ({"layers": 2, "fp8": "[out]", "unfused": True}, [0]),
    ],
)  # fmt: skip
def test_models_of_every_kind_pass(shape: dict[str, Any], layers: list[int], tmp_path: Path) -> None:
    for std in (0.02, 0.1):
        assert check(checkpoints.build(tmp_path / f"{std}", std=std, **shape)) == layers


def test_few_tokens_are_enough() -> None:
    check(TINY, np.array([[7, 8]]))


def test_the_trained_checkpoint_passes_by_far(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quantkit.calibration.self_check.TOLERANCE", TOLERANCE / 100)
    assert check(TINY) == [0, 3]


Plant = Callable[[pytest.MonkeyPatch], None]


def half_split_pairs(patch: pytest.MonkeyPatch) -> None:
    def rotate(x: np.ndarray, turn: np.ndarray) -> None:
        half = x.shape[-1] // 2
        turned = (x[..., :half] + 1j * x[..., half:]) * turn[:, None]
        x[..., :half], x[..., half:] = turned.real, turned.imag

    patch.setattr(attention_layer, "rotate", rotate)


def no_rotation(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(attention_layer, "rotate", lambda x, turn: None)


def positions_from_one(patch: pytest.MonkeyPatch) -> None:
    """A turn of queries and keys alike does not show, so this one counts tokens across sequences."""
    patch.setattr(
        "quantkit.llama4.forward.setting.Setting.positions",
        lambda self, block: iter([(slice(0, block.stop - block.start), 0)]),
    )


def qk_norm_missing(patch: pytest.MonkeyPatch) -> None:
    real = attention_layer.rms_norm
    patch.setattr(attention_layer, "rms_norm", lambda x, weight, eps: None if weight is None else real(x, weight, eps))


def qk_norm_before_rotation_of_keys_only(patch: pytest.MonkeyPatch) -> None:
    """Rotation keeps the norm, so its order does not matter, but that both have it does."""
    real, count = attention_layer.rms_norm, [0]

    def norm(x: np.ndarray, weight: Any, eps: float) -> None:
        count[0] += 1
        if count[0] % 2 == 0:
            real(x, weight, eps)

    patch.setattr(attention_layer, "rms_norm", norm)


def temperature_dropped(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(attention_layer, "temperatures", lambda hp, first, count: np.ones(count, np.float32))


def temperature_one_position_late(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(attention_layer, "temperatures", lambda hp, first, count: rotation.temperatures(hp, first - 1, count))


def chunks_ignored(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(attention_layer, "pieces", lambda n, context, chunk: blocks.pieces(n, context, None))


def sequences_see_each_other(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(attention_layer, "pieces", lambda n, context, chunk: blocks.pieces(1, n * context, chunk))


def future_is_seen(patch: pytest.MonkeyPatch) -> None:
    real = attention._attend_rows

    def attend(q: Any, k: Any, v: Any, last_key: Any, key_block: int) -> Any:
        return real(q, k, v, np.full_like(last_key, last_key.max()), key_block)

    patch.setattr(attention, "_attend_rows", attend)


def router_weight_on_the_output(patch: pytest.MonkeyPatch) -> None:
    def routed(self: Any, unit: Any, expert: int, x: Any, tokens: Any, scale: Any) -> Any:
        names = feed_forward_layer.unit_names(self._layer, "_exps")
        return self._unit(unit, x, names, self._watch(tokens, expert, scale), "routed y") * scale[:, None]

    patch.setattr(feed_forward_layer.FeedForwardLayer, "_routed", routed)


def router_weight_dropped(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(feed_forward_layer, "sigmoid", np.ones_like)


def softmax_for_sigmoid(patch: pytest.MonkeyPatch) -> None:
    all_logits: list[np.ndarray] = []

    def choose(logits: np.ndarray, n: int) -> np.ndarray:
        all_logits.append(logits)
        return routing.choose(logits, n)

    patch.setattr(feed_forward_layer, "choose", choose)
    patch.setattr(
        feed_forward_layer, "sigmoid", lambda x: np.exp(x) / np.exp(all_logits[-1]).sum(axis=1, keepdims=True)
    )


def second_best_expert(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(feed_forward_layer, "choose", lambda logits, n: routing.choose(logits, n + 1)[:, 1:])


def gate_and_up_swapped(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        feed_forward, "gated", lambda gate, up, real=feed_forward.gated: (real(up, gate), np.copyto(gate, up))
    )


def shared_expert_left_out(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(feed_forward_layer.FeedForwardLayer, "_shared", lambda self, x, tokens: np.zeros_like(x))


def another_epsilon(patch: pytest.MonkeyPatch) -> None:
    real = attention_layer.rms_norm
    patch.setattr(attention_layer, "rms_norm", lambda x, weight, eps: real(x, weight, eps + 1))


def one_output_wrong(patch: pytest.MonkeyPatch) -> None:
    """As a kernel does that forgets the last row of a panel."""
    real = weights.Matrix.multiply

    def product(self: Any, x: Any, out: Any, outputs: slice) -> None:
        real(self, x, out, outputs)
        if outputs.stop == self.n_outputs:
            out[:, -1] = 0

    patch.setattr(weights.Matrix, "multiply", product)


def rounded_to_bf16(patch: pytest.MonkeyPatch) -> None:
    """As products do whose activations are converted."""
    real = weights.Matrix.multiply

    def product(self: Any, x: Any, *others: Any) -> None:
        real(self, (x.view(np.uint32) & 0xFFFF0000).view(np.float32), *others)

    patch.setattr(weights.Matrix, "multiply", product)


def not_a_number(patch: pytest.MonkeyPatch) -> None:
    real = feed_forward.gated

    def gated(gate: Any, up: Any) -> None:
        real(gate, up)
        gate[0, 0] = np.nan

    patch.setattr(feed_forward, "gated", gated)
    patch.setattr(weights, "multiply", lambda x, packed, out, **options: out.fill(np.nan))


def embeddings_of_others(patch: pytest.MonkeyPatch) -> None:
    real = stream.np.unique
    patch.setattr(stream.np, "unique", lambda *a, **k: tuple(np.roll(one, 1) for one in real(*a, **k)))


FAULTS = [
    half_split_pairs, no_rotation, positions_from_one, qk_norm_missing, qk_norm_before_rotation_of_keys_only,
    temperature_dropped, temperature_one_position_late, chunks_ignored, sequences_see_each_other, future_is_seen,
    router_weight_on_the_output, router_weight_dropped, softmax_for_sigmoid, second_best_expert, gate_and_up_swapped,
    shared_expert_left_out, another_epsilon, one_output_wrong, rounded_to_bf16, not_a_number, embeddings_of_others,
]  # fmt: skip


@pytest.mark.parametrize("plant", FAULTS)
def test_a_fault_stops_the_run(plant: Plant, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with monkeypatch.context() as patch:
        plant(patch)
        with pytest.raises(VerificationError, match=r"layer \d.* plain computation") as caught:
            quantkit.calibrate(TINY, tmp_path / "a.gguf", text=[ROOT / "LICENSE"], context=64, tokens=256)
    assert caught.value.exit_code == 7
    assert "QUANTKIT_TIER" in caught.value.hint
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("experts_used", [1, 2])
def test_equal_experts_excuse_the_choice_and_nothing_else(
    experts_used: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A router of zeros: any experts are right, and what is computed with them is checked all the same."""
    folder = checkpoints.build(tmp_path / "model", experts_used=experts_used, zeros="router", std=0.1)
    others = [lambda logits, n: routing.choose(logits, n) + 1, lambda logits, n: routing.choose(logits, 4)[:, -n:]]
    for choose in others:
        with monkeypatch.context() as patch:
            patch.setattr(feed_forward_layer, "choose", choose)
            check(folder)
    for plant in (
        no_rotation, router_weight_on_the_output, router_weight_dropped, gate_and_up_swapped, shared_expert_left_out,
        rounded_to_bf16,
    ):  # fmt: skip
        with monkeypatch.context() as patch:
            plant(patch)
            with pytest.raises(VerificationError):
                check(folder)


def test_frequencies_of_another_scaling_stop_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = checkpoints.build(tmp_path / "model", rope_scaling=checkpoints.SCOUT_ROPE_SCALING, std=0.1)
    check(folder)
    monkeypatch.setattr(checkpoint_weights.CheckpointWeights, "rope_divisors", lambda self: None)
    with pytest.raises(VerificationError, match="layer 0"):
        check(folder)
