"""Pure functions: which type each tensor gets, and what it takes to run the result."""

from quantkit.recipes.choice import Choice, choose
from quantkit.recipes.mixture import ModelShape
from quantkit.recipes.recipe import RECIPES, Recipe, find_recipe
from quantkit.recipes.types import TYPES, bits_per_weight, parse_type

__all__ = [
    "RECIPES",
    "TYPES",
    "Choice",
    "ModelShape",
    "Recipe",
    "bits_per_weight",
    "choose",
    "find_recipe",
    "parse_type",
]
