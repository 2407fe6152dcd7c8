"""Recipes: names that people know from llama-quantize, each a way to give every tensor its type."""

from __future__ import annotations

from dataclasses import dataclass

from quantkit.recipes.types import unknown


@dataclass(frozen=True)
class Recipe:
    """What a name stands for.

    Args:
        name: as given to --type.
        ftype: number that llama.cpp stores as general.file_type.
        default_type: type of the tensors for which the recipe has no rule.
        description: one sentence.
    """

    name: str
    ftype: int
    default_type: str
    description: str


_TABLE = (
    Recipe("f32", 0, "f32", "all weights as 32-bit floats"),
    Recipe("f16", 1, "f16", "all matrices as half floats"),
    Recipe("bf16", 32, "bf16", "all matrices as in most checkpoints"),
    Recipe("q8_0", 7, "q8_0", "8 bits everywhere; no loss that can be seen"),
    Recipe("q6_k", 18, "q6_k", "6 bits everywhere"),
    Recipe("q5_k_m", 17, "q5_k", "5 bits; q6_k for half of attn_v and ffn_down"),
    Recipe("q5_k_s", 16, "q5_k", "5 bits; q6_k for the output"),
    Recipe("q4_k_m", 15, "q4_k", "4 bits; q6_k for half of attn_v and ffn_down: the usual choice"),
    Recipe("q4_k_s", 14, "q4_k", "4 bits; q5_k for the first attn_v and ffn_down"),
    Recipe("q4_0", 2, "q4_0", "4 bits, plain blocks of 32"),
    Recipe("q4_1", 3, "q4_1", "4 bits with a minimum, plain blocks of 32"),
    Recipe("q5_0", 8, "q5_0", "5 bits, plain blocks of 32"),
    Recipe("q5_1", 9, "q5_1", "5 bits with a minimum, plain blocks of 32"),
    Recipe("q3_k_l", 13, "q3_k", "3 bits; q5_k for attn_v, attn_output and ffn_down"),
    Recipe("q3_k_m", 12, "q3_k", "3 bits; q4_k for attn_v, attn_output and ffn_down"),
    Recipe("q3_k_s", 11, "q3_k", "3 bits nearly everywhere"),
    Recipe("q2_k", 10, "q2_k", "2 bits; q3_k for attn_output and ffn_down, q4_k for attn_v"),
    Recipe("iq4_xs", 30, "iq4_xs", "4 bits on uneven levels, super-blocks of 256; wants an imatrix"),
    Recipe("iq4_nl", 25, "iq4_nl", "4 bits on uneven levels, blocks of 32; wants an imatrix"),
    Recipe("mxfp4_moe", 38, "mxfp4", "routed experts as 4-bit floats, everything else q8_0"),
)
RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in _TABLE}


def find_recipe(text: str) -> Recipe:
    """The recipe called `text`, in any case; UsageError with the choices otherwise."""
    recipe = RECIPES.get(text.strip().lower())
    if recipe is None:
        raise unknown("recipe", text, RECIPES)
    return recipe
