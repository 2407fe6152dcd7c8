"""Overrides of single tensors' types: one that changes nothing is refused, since it was surely meant to."""

from __future__ import annotations

import re
from collections.abc import Sequence

from quantkit.convert.options import Options
from quantkit.errors import UsageError
from quantkit.llama4 import OutputTensor
from quantkit.recipes import ModelShape, Recipe, choose

_UNQUANTIZED = ("f32", "f16", "bf16")
_ENDS = ("token_embd.weight", "output.weight")


def refuse_idle(recipe: Recipe, tensors: Sequence[OutputTensor], options: Options) -> None:
    """Refuse patterns that decide no tensor's type.

    Raises:
        UsageError: names the pattern, and says why it has no effect.
    """
    if not options.tensor_types:
        return
    if recipe.default_type in _UNQUANTIZED:
        pattern, type_name = options.tensor_types[0]
        raise UsageError(
            f"--tensor-type {pattern}={type_name}: {recipe.name} takes no types of single tensors",
            hint="Leave it out (llama-quantize ignores it), or start from a recipe that quantizes, such as q8_0.",
        )
    kept = _kept(recipe, tensors, options)
    names = [tensor.name for tensor in tensors]
    given = [
        name
        for name, type_name in zip(_ENDS, (options.token_embedding_type, options.output_tensor_type), strict=True)
        if type_name is not None
    ]
    taken: dict[str, str] = dict.fromkeys(given, "an option of its own")
    for pattern, type_name in options.tensor_types:
        # as `choose` matches, which has compiled all patterns by now
        found = [name for name in names if re.search(pattern.lower(), name, re.ASCII)]
        quantizable = [name for name in found if name not in kept]
        free = [name for name in quantizable if name not in taken]
        taken |= dict.fromkeys(free, f"the earlier --tensor-type {pattern}")
        if free:
            continue
        if not found:
            why = "no tensor has a name like that"
        elif not quantizable:
            why = f"it fits only tensors that are never quantized ({_some(found)})"
        else:
            why = f"{taken[quantizable[0]]} decides for {_some(quantizable)}"
        raise UsageError(
            f"--tensor-type {pattern}={type_name} has no effect: {why}",
            hint="`quantkit plan CHECKPOINT --type RECIPE --json` lists the names.",
        )


def _kept(recipe: Recipe, tensors: Sequence[OutputTensor], options: Options) -> set[str]:
    """Names of tensors that no recipe and no override quantizes."""
    choices = choose(
        recipe.name,
        ModelShape(1, 1, 1, 1),  # does not bear on what is kept
        [(tensor.name, tensor.shape) for tensor in tensors],
        has_imatrix=False,
        pure=True,
        tensor_types=options.tensor_types,
    )
    return {choice.name for choice in choices if choice.reason.startswith("kept")} | {
        tensor.name for tensor in tensors if tensor.keep
    }


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
