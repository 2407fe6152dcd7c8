"""Which type each tensor gets, and why."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from quantkit.errors import UsageError
from quantkit.kernels import FORMATS
from quantkit.recipes.mixture import Mixture, ModelShape, role
from quantkit.recipes.recipe import find_recipe
from quantkit.recipes.types import UNQUANTIZED, bits_per_weight, fitting_type, parse_type

# Small, and quality hangs on them; or (position_embd, patch_embd) their runtime reads them as they are.
_KEPT = ("_norm.weight", "ffn_gate_inp.weight", ".position_embd", ".patch_embd")


@dataclass(frozen=True)
class Choice:
    """The type of one tensor.

    Args:
        name: GGUF name.
        type: our spelling ("q4_k").
        wanted: what the recipe or an override asked for; other than `type` only for a fallback.
        reason: "" where `type` is what was asked for, "kept: ..." for a tensor that is never quantized,
            "fallback: ..." where its rows are not whole blocks of `wanted`.
    """

    name: str
    type: str
    wanted: str
    reason: str = ""

    @property
    def fell_back(self) -> bool:
        """Whether the type is not the one that was asked for."""
        return self.type != self.wanted

    @property
    def extra_bits_per_weight(self) -> float:
        """What a fallback costs: bits per weight above `wanted`, 0 without one."""
        return bits_per_weight(self.type) - bits_per_weight(self.wanted)


def choose(
    recipe: str,
    shape: ModelShape,
    tensors: Sequence[tuple[str, Sequence[int]]],
    *,
    has_imatrix: bool,
    pure: bool = False,
    tensor_types: Sequence[tuple[str, str]] = (),
    token_embedding_type: str | None = None,
    output_tensor_type: str | None = None,
) -> list[Choice]:
    """Choose as llama-quantize does, for Llama 4.

    Args:
        recipe: a key of RECIPES, in any case.
        tensors: (GGUF name, shape in numpy order), all of the model, in any order.
        has_imatrix: some recipes choose differently with one.
        pure: the recipe's default type for every tensor that is not kept.
        tensor_types: (regex, type): the first that is found in a name decides, before the mixture and `pure`. Patterns
            are lower-cased; like llama-quantize, recipes f32, f16 and bf16 ignore them.
        token_embedding_type, output_tensor_type: decide before everything else.

    Returns:
        One choice a tensor, in the order of `tensors`.

    Raises:
        UsageError: unknown recipe or type, or a pattern that is no regular expression.
    """
    wanted_recipe = find_recipe(recipe)
    quantized = wanted_recipe.default_type not in UNQUANTIZED
    overrides = [(_compile(pattern), parse_type(name)) for pattern, name in tensor_types]
    ends = {"token_embd": token_embedding_type, "output": output_tensor_type}
    given = {what: parse_type(name) for what, name in ends.items() if name is not None}
    mixture = Mixture(wanted_recipe, shape, [name for name, _ in tensors], has_imatrix=has_imatrix)
    tied = all(name != "output.weight" for name, _ in tensors)  # then the embeddings are the output as well

    def wanted(name: str, n_matrices: int) -> str:
        if role(name) in given:
            return given[role(name)]
        if quantized:
            for pattern, type_name in overrides:
                if pattern.search(name):
                    return type_name
            if tied and role(name) == "token_embd" and "output" in given and not pure:
                return given["output"]
            if not pure:
                return mixture.type_of(name, n_matrices)
        return wanted_recipe.default_type

    choices = {}
    for name, extents in sorted(tensors, key=_in_layer_order):  # rules count tensors in llama-quantize's order
        dims = _without_leading_ones(extents)
        kept = _kept(name, dims)
        if kept:
            choices[name] = Choice(name, "f32", "f32", f"kept: {kept}")
        else:
            choices[name] = _fitted(name, wanted(name, dims[0] if len(dims) > 2 else 1), dims[-1])
    return [choices[name] for name, _ in tensors]


def _kept(name: str, dims: Sequence[int]) -> str:
    if len(dims) < 2:
        return "a vector"
    if not name.endswith("weight"):
        return "not a weight"
    return next(
        (f"{part.removesuffix('.weight').strip('._')} is never quantized" for part in _KEPT if part in name), ""
    )


def _fitted(name: str, wanted: str, cols: int) -> Choice:
    fitting = fitting_type(wanted, cols)
    if fitting == wanted:
        return Choice(name, wanted, wanted)
    cost = bits_per_weight(fitting) - bits_per_weight(wanted)
    return Choice(
        name,
        fitting,
        wanted,
        f"fallback: rows of {cols} values are not whole {wanted} blocks of {FORMATS[wanted].block_size}; "
        f"{fitting} takes {cost:+.4g} bits per weight",
    )


def _in_layer_order(tensor: tuple[str, Sequence[int]]) -> tuple[int, str]:
    match = re.match(r"blk\.([0-9]+)", tensor[0])
    return (int(match[1]) if match else -1, tensor[0])


def _without_leading_ones(extents: Sequence[int]) -> tuple[int, ...]:
    """GGUF does not count outer dimensions of 1: an expert tensor of one expert is a matrix there."""
    dims = tuple(extents)
    while len(dims) > 1 and dims[0] == 1:
        dims = dims[1:]
    return dims


def _compile(pattern: str) -> re.Pattern[str]:
    if not pattern:
        raise UsageError("an empty pattern for a tensor type", hint="Write it like ffn_down=q6_k.")
    if "[:" in pattern:
        raise UsageError(
            f"the pattern {pattern!r} uses a POSIX class", hint="Write the characters: [0-9] instead of [[:digit:]]."
        )
    try:
        return re.compile(pattern.lower(), re.ASCII)
    except re.error as error:
        raise UsageError(f"{pattern!r} is not a regular expression: {error}") from None
