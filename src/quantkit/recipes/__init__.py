"""Pure functions: which type each tensor gets, and what it takes to run the result."""

from quantkit.recipes.choice import Choice, choose
from quantkit.recipes.mixture import ModelShape
from quantkit.recipes.recipe import RECIPES, Recipe, find_recipe
from quantkit.recipes.runtime import active_bytes_per_token, kv_cache_bytes, tokens_per_second_bound
from quantkit.recipes.types import TYPES, bits_per_weight, parse_type

__all__ = [
    "RECIPES",
    "TYPES",
    "Choice",
    "ModelShape",
    "Recipe",
    "active_bytes_per_token",
    "bits_per_weight",
    "choose",
    "find_recipe",
    "kv_cache_bytes",
    "parse_type",
    "tokens_per_second_bound",
]
