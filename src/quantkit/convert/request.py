"""The caller's arguments, settled: which outputs, under which names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from quantkit.errors import UsageError
from quantkit.recipes import RECIPES, Recipe, find_recipe, parse_type

PathLike = str | os.PathLike[str]
DEFAULT_TYPES = ("q4_k_m",)


@dataclass(frozen=True)
class Wanted:
    """One output: kind "model" or "mmproj", its recipe, its name (`recipe.name` or a format for mmproj), its path."""

    kind: str
    recipe: Recipe
    name: str
    path: Path


def settle(
    checkpoint: PathLike,
    out: PathLike | None,
    types: Sequence[str] | str | None,
    *,
    mmproj: PathLike | None,
    mmproj_only: bool,
    mmproj_type: str,
) -> tuple[Wanted, ...]:
    """The outputs in the order in which they are planned.

    Args:
        types: None for the usual one. Only None or nothing goes with `mmproj_only`.

    Raises:
        UsageError: unknown recipe, a recipe twice, several types for one file name, one file name for two outputs.
    """
    if mmproj_only and types:
        name = types if isinstance(types, str) else types[0]
        refuse_with_mmproj_only(f"--type {name}", hint="The format of its matrices is --mmproj-type.")
    if types is None:
        types = DEFAULT_TYPES
    wanted = [] if mmproj_only else _models(checkpoint, out, [types] if isinstance(types, str) else list(types))
    if mmproj is not None or mmproj_only:
        name = parse_type(mmproj_type)
        recipe = next(recipe for recipe in RECIPES.values() if recipe.default_type == name)
        given = out if mmproj is None else mmproj
        path = _default(checkpoint, "mmproj") if given is None else _path(given)
        wanted.append(Wanted("mmproj", recipe, name, path))
    taken: dict[Path, Wanted] = {}
    for output in wanted:
        other = taken.setdefault(output.path.resolve(), output)
        if other is not output:
            raise UsageError(f"{output.path} cannot be both {other.kind} {other.name} and {output.kind} {output.name}")
    return tuple(wanted)


def refuse_with_mmproj_only(option: str, *, hint: str = "Leave it out, or convert the model as well.") -> NoReturn:
    """UsageError for an option that only the model has."""
    raise UsageError(f"{option} has no effect on an mmproj, and --mmproj-only writes nothing else", hint=hint)


def _models(checkpoint: PathLike, out: PathLike | None, types: list[str]) -> list[Wanted]:
    if not types:
        raise UsageError("no type was given", hint=f"The recipes are {', '.join(RECIPES)}.")
    recipes = [find_recipe(name) for name in types]
    for place, recipe in enumerate(recipes):
        if recipe in recipes[:place]:
            raise UsageError(f"type {recipe.name} is given twice")
    if out is not None and len(recipes) > 1 and "{type}" not in os.fspath(out):
        raise UsageError(
            f"{len(recipes)} types cannot share the name {os.fspath(out)}", hint="Write it as out-{type}.gguf."
        )
    return [
        Wanted(
            "model",
            recipe,
            recipe.name,
            _default(checkpoint, recipe.name) if out is None else _path(os.fspath(out).replace("{type}", recipe.name)),
        )
        for recipe in recipes
    ]


def _default(checkpoint: PathLike, suffix: str) -> Path:
    return Path(f"{Path(checkpoint).resolve().name}-{suffix}.gguf")


def _path(path: PathLike) -> Path:
    if not os.fspath(path):
        raise UsageError("the output's name is empty", hint="Say which file to write, for instance model-q4_k_m.gguf.")
    settled = Path(path)
    if settled.suffix.lower() != ".gguf":
        raise UsageError(f"the output {settled} must end in .gguf", hint=f"Call it {settled}.gguf.")
    return settled
