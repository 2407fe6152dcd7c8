"""The differential test: every tensor gets the very type that llama.cpp's quantizer gives it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from gguf import LlamaFileType
from tests.recipes.llama_quantize import Tensors, llama4_tensors, llama_quantize

from quantkit.errors import UnsupportedModelError, UsageError
from quantkit.recipes import RECIPES, TYPES, ModelShape, choose, find_recipe

QUANTIZED = [name for name in RECIPES if name not in ("f32", "f16", "bf16")]


def random_model(rng: random.Random, widths: tuple[int, ...] = (256, 256, 64, 320, 40)) -> tuple[ModelShape, Tensors]:
    """Any layer, head and expert count; rows that 256, 32, or neither divides."""
    n_kv_heads = rng.choice([1, 2, 4])
    shape = ModelShape(
        n_layers=rng.randint(1, 20),
        n_heads=n_kv_heads * rng.randint(1, 6),
        n_kv_heads=n_kv_heads,
        n_experts=rng.choice([1, 2, 3, 8, 8, 16]),
    )
    tensors = llama4_tensors(
        shape,
        width=rng.choice(widths),
        expert_width=rng.choice(widths),
        dense_width=rng.choice(widths),
        kv_width=rng.choice([2, 8]),
        vocab=3,
        step=rng.choice([1, 1, 2, 3]),
        rope_freqs=rng.choice([0, 8]),
        tied=rng.random() < 0.15,
        max_rows=2,
    )
    rng.shuffle(tensors)
    return shape, tensors


def compare(
    folder: Path, recipe: str, shape: ModelShape, tensors: Tensors, *, source: str = "f32", **options: Any
) -> None:
    theirs = llama_quantize(folder, RECIPES[recipe].ftype, shape, tensors, source=source, **options)
    choices = choose(recipe, shape, tensors, **{"has_imatrix": False, **options})
    assert [choice.name for choice in choices] == [name for name, _ in tensors]
    assert {choice.name: choice.type for choice in choices} == theirs, (recipe, shape, options)
    for choice in choices:
        assert choice.fell_back == choice.reason.startswith("fallback: ")
        assert choice.extra_bits_per_weight == 0 or choice.fell_back


@pytest.mark.parametrize("has_imatrix", [False, True], ids=["plain", "imatrix"])
@pytest.mark.parametrize("recipe", QUANTIZED)
def test_types_equal_llama_quantize(tmp_path: Path, recipe: str, has_imatrix: bool) -> None:
    rng = random.Random(f"{recipe} {has_imatrix}")
    for n_experts in (16, 8, 1):  # the three kinds of rules, and then anything
        shape = ModelShape(rng.randint(16, 24), 10, 2, n_experts)
        tensors = llama4_tensors(
            shape, width=256, expert_width=256, dense_width=256, kv_width=2, vocab=3, step=2, max_rows=2
        )
        compare(tmp_path, recipe, shape, tensors, has_imatrix=has_imatrix)
    for source in ("f32", "bf16") * 4:
        compare(tmp_path, recipe, *random_model(rng), source=source, has_imatrix=has_imatrix)


@pytest.mark.parametrize("recipe", ["f32", "f16", "bf16"])
def test_unquantized_recipes(tmp_path: Path, recipe: str) -> None:
    rng = random.Random(recipe)
    source = "bf16" if recipe == "f32" else "f32"
    for options in ({}, {"tensor_types": (("ffn", "q4_k"),)}, {"output_tensor_type": "q8_0"}, {"pure": True}):
        compare(tmp_path, recipe, *random_model(rng, widths=(256,)), source=source, **options)


PATTERNS = (
    "ffn_down",
    "FFN_UP",
    r"blk\.[0-3]\.",
    r"attn_(q|k)\.weight$",
    r"^blk\.\d*[02468]\..*_exps",
    "attn_v",
    "weight",
    r"blk\.(?!1).*shexp",
    "output",
)


@pytest.mark.parametrize("seed", range(40))
def test_overrides_and_pure_equal_llama_quantize(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    shape, tensors = random_model(rng)
    whole = all(extents[-1] % 256 == 0 for name, extents in tensors if name in ("token_embd.weight", "output.weight"))
    ends: list[str | None] = list(TYPES if whole else ("f32", "f16", "bf16"))  # llama.cpp aborts where rows do not fit
    options = {
        "has_imatrix": rng.random() < 0.5,
        "pure": rng.random() < 0.3,
        "tensor_types": tuple((rng.choice(PATTERNS), rng.choice(TYPES)) for _ in range(rng.randint(0, 3))),
        "token_embedding_type": rng.choice([None, *ends]),
        "output_tensor_type": rng.choice([None, *ends]),
    }
    compare(tmp_path, rng.choice(QUANTIZED), shape, tensors, **options)


def test_every_layer_count_of_the_rule_for_more_bits(tmp_path: Path) -> None:
    for n_layers in (*range(1, 18), 48):
        shape = ModelShape(n_layers, 5, 1, 2)
        tensors = llama4_tensors(shape, width=256, expert_width=256, dense_width=256, kv_width=1, vocab=1, max_rows=2)
        compare(tmp_path, "q4_k_m", shape, tensors)


def test_ftype_numbers() -> None:
    for name, recipe in RECIPES.items():
        member = LlamaFileType(recipe.ftype).name
        assert member.removeprefix("MOSTLY_").removeprefix("ALL_").lower() == name


def test_reasons_tell_kept_from_fallback() -> None:
    tensors: Tensors = [
        ("blk.0.attn_norm.weight", (96,)),
        ("blk.0.ffn_gate_inp.weight", (4, 96)),
        ("blk.0.attn_q.weight", (96, 96)),
        ("blk.0.attn_k.weight", (96, 40)),
        ("output.weight", (8, 256)),
    ]
    norm, router, query, key, output = choose("q4_k_s", ModelShape(1, 4, 4, 4), tensors, has_imatrix=False)
    assert (norm.type, norm.reason) == ("f32", "kept: a vector")
    assert (router.type, router.reason) == ("f32", "kept: ffn_gate_inp is never quantized")
    assert (query.wanted, query.type) == ("q4_k", "q5_0")
    assert query.reason == (
        "fallback: rows of 96 values are not whole q4_k blocks of 256; q5_0 takes +1 bits per weight"
    )
    assert query.extra_bits_per_weight == 1.0
    assert (key.wanted, key.type, key.extra_bits_per_weight) == ("q4_k", "f16", 11.5)
    assert (output.wanted, output.type, output.reason, output.fell_back) == ("q6_k", "q6_k", "", False)


def test_unknown_names_list_the_choices() -> None:
    with pytest.raises(UsageError, match="no recipe 'q4_km'") as caught:
        find_recipe("q4_km")
    assert caught.value.hint.startswith("Did you mean q4_k_m? The recipes are f32, f16,")
    shape = ModelShape(1, 1, 1, 1)
    with pytest.raises(UsageError, match="no type 'q4k'") as caught:
        choose("Q4_K_M", shape, [], has_imatrix=False, tensor_types=[("ffn", "q4k")])
    assert caught.value.hint.startswith("Did you mean q4_k? The types are f32, f16, bf16, q4_0")
    with pytest.raises(UsageError, match="not a regular expression"):
        choose("q4_k_m", shape, [], has_imatrix=False, tensor_types=[("ffn(", "q4_k")])
    with pytest.raises(UsageError, match="POSIX class"):
        choose("q4_k_m", shape, [], has_imatrix=False, tensor_types=[("blk.[[:digit:]]", "q4_k")])
    with pytest.raises(UsageError, match="no type 'xyz'") as caught:
        choose("q4_k_m", shape, [], has_imatrix=False, output_tensor_type="xyz")
    assert caught.value.hint.startswith("The types are")


def test_layer_beyond_the_model_is_refused() -> None:
    with pytest.raises(
        UnsupportedModelError, match=r"blk\.4\.ffn_down_exps\.weight is of none of the model's 4 layers"
    ):
        choose("q4_k_m", ModelShape(4, 4, 1, 4), [("blk.4.ffn_down_exps.weight", (4, 2, 256))], has_imatrix=False)
