"""Numbers of Scout worked out by hand."""

from __future__ import annotations

import pytest
from tests.recipes.test_sizes import MAVERICK, SCOUT, released

from quantkit.recipes import active_bytes_per_token, choose, kv_cache_bytes, tokens_per_second_bound

HEADS = {"n_layers": 48, "n_kv_heads": 8, "head_dim": 128}


def test_kv_cache_of_scout() -> None:
    token = 2 * 8 * 128 * 2  # keys and values of 8 heads of 128 half floats, in one layer
    assert kv_cache_bytes(1000, **HEADS) == 48 * 1000 * token
    assert kv_cache_bytes(8192, **HEADS) == 48 * 8192 * token == 1_610_612_736
    assert kv_cache_bytes(8193, **HEADS) == 1_610_612_736 + 12 * token
    # 12 layers hold all 131,072 tokens, 36 hold 8192
    assert kv_cache_bytes(131_072, **HEADS) == 6_442_450_944 + 1_207_959_552
    assert kv_cache_bytes(10_485_760, **HEADS) == 515_396_075_520 + 1_207_959_552


def test_kv_cache_in_another_format() -> None:
    assert kv_cache_bytes(8192, **HEADS, cache_type="q8_0") == 48 * 8192 * 2 * (1024 // 32 * 34)
    assert kv_cache_bytes(8192, **HEADS, cache_type="f32") == 2 * kv_cache_bytes(8192, **HEADS)


def test_layers_before_the_fourth_hold_a_chunk() -> None:
    assert kv_cache_bytes(10_000, n_layers=3, n_kv_heads=1, head_dim=1) == 3 * 8192 * 4
    assert kv_cache_bytes(10_000, n_layers=4, n_kv_heads=1, head_dim=1) == (3 * 8192 + 10_000) * 4


def active(shape: object, recipe: str, **options: int) -> int:
    tensors = released(shape)  # type: ignore[arg-type]
    choices = choose(recipe, shape, tensors, has_imatrix=False)  # type: ignore[arg-type]
    return active_bytes_per_token(
        [(name, extents, choice.type) for (name, extents), choice in zip(tensors, choices, strict=True)], **options
    )


def test_active_bytes_of_scout() -> None:
    attention, expert = 2 * 5120 * 5120 + 2 * 1024 * 5120, 3 * 5120 * 8192
    matrices = 48 * (attention + 2 * expert) + 202_048 * 5120 + 5120  # one routed, one shared; output; one row
    floats = 48 * (16 * 5120 + 2 * 5120) + 5120 + 64  # routers, norms, rope_freqs
    assert matrices == 16_133_985_280
    assert active(SCOUT, "bf16") == matrices * 2 + floats * 4
    assert active(SCOUT, "q8_0") == matrices // 32 * 34 + floats * 4 == 17_160_074_816
    assert active(SCOUT, "bf16", n_experts_used=2) == active(SCOUT, "bf16") + 48 * expert * 2


def test_active_bytes_of_maverick_are_as_many() -> None:
    """17 B active weights in both: that is what the names say."""
    assert active(MAVERICK, "bf16") == pytest.approx(active(SCOUT, "bf16"), rel=0.01)


def test_tied_embeddings_are_read_whole_as_output() -> None:
    tensors = [("token_embd.weight", (100, 64), "f16"), ("blk.0.ffn_up_exps.weight", (4, 8, 64), "q8_0")]
    assert active_bytes_per_token(tensors) == 100 * 128 + 128 + 8 * 68


def test_speed_bound() -> None:
    assert tokens_per_second_bound(17_160_074_816, 100) == pytest.approx(5.8275, abs=1e-4)
