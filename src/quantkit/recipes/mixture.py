"""The rules by which llama-quantize gives some tensors of a recipe another type than its default.

The names of recipes mean these rules to people, so they are followed to the letter, odd ones included; a
differential test against llama.cpp holds them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from quantkit.errors import UnsupportedModelError
from quantkit.recipes.recipe import Recipe

_ROLES = ("attn_v.weight", "attn_k.weight", "attn_q.weight", "attn_output.weight", "ffn_up", "ffn_gate", "ffn_down")


@dataclass(frozen=True)
class ModelShape:
    """The numbers that rules depend on. `n_experts` is 1 or less for a model without routed experts."""

    n_layers: int
    n_heads: int
    n_kv_heads: int
    n_experts: int


def role(name: str) -> str:
    """What a tensor does: "output", "token_embd", "attn_v", ... "ffn_down" (experts and shared ones alike), or ""."""
    if name in ("output.weight", "token_embd.weight"):
        return name.removesuffix(".weight")
    return next((r.removesuffix(".weight") for r in _ROLES if r in name), "")


class Mixture:
    """The rules of one recipe for one model. Tensors must be asked about in layer order: some rules count them."""

    def __init__(self, recipe: Recipe, shape: ModelShape, names: Iterable[str], *, has_imatrix: bool) -> None:
        self._recipe = recipe
        self._shape = shape
        self._has_imatrix = has_imatrix
        roles = Counter(role(name) for name in names)
        self._n_attn_v = roles["attn_v"]
        self._tied = not roles["output"]
        self._seen: Counter[str] = Counter()
        self._grouped = shape.n_kv_heads > 0 and shape.n_heads // shape.n_kv_heads >= 4

    def type_of(self, name: str, n_matrices: int) -> str:
        """Type of the tensor `name`; `n_matrices` is its number of experts, 1 for a matrix."""
        what, default = role(name), self._recipe.default_type
        if what == "output" or (what == "token_embd" and self._tied):
            return "q8_0" if default in ("q8_0", "mxfp4") else "q6_k"
        if default == "mxfp4":
            return "mxfp4" if n_matrices > 1 else "q8_0"
        if what == "attn_v":
            self._seen[what] += 1
            return self._attn_v(self._seen[what] - 1)
        if what == "attn_k" and self._shape.n_experts == 8:
            return "q8_0"
        if what == "attn_output":
            return self._attn_output()
        if what == "ffn_down":
            self._seen[what] += 1
            return self._ffn_down(self._layer(name, self._seen[what] - 1))
        return default

    def _attn_v(self, index: int) -> str:
        if self._shape.n_experts == 8:
            return "q8_0"
        match self._recipe.name:
            case "q2_k":
                return "q4_k" if self._grouped else "q3_k"
            case "q3_k_m":
                return "q5_k" if index < 2 else "q4_k"
            case "q3_k_l":
                return "q5_k"
            case "q4_k_s" if index < 4:
                return "q5_k"
            case "q4_k_m" | "q5_k_m" if _more_bits(index, self._n_attn_v):
                return "q6_k"
            case "iq4_nl" | "iq4_xs" if self._grouped:
                return "q5_k"
        return self._recipe.default_type

    def _attn_output(self) -> str:
        name, default = self._recipe.name, self._recipe.default_type
        if self._shape.n_experts == 8:
            low = ("q2_k", "q3_k_s", "q3_k_m", "q4_k_s", "q4_k_m", "iq4_nl", "iq4_xs")  # q3_k_l is not among them
            return "q5_k" if name in low else default
        return {"q2_k": "q3_k", "q3_k_m": "q4_k", "q3_k_l": "q5_k"}.get(name, default)

    def _ffn_down(self, layer: int) -> str:
        n_layers = self._shape.n_layers
        first = layer < n_layers // 8
        match self._recipe.name:
            case "q2_k":
                return "q3_k"
            case "q3_k_m":
                return "q5_k" if layer < n_layers // 16 else "q4_k"
            case "q3_k_l":
                return "q5_k"
            case "q4_k_s" if first:
                return "q5_k"
            case "q4_k_m" | "q5_k_m" if _more_bits(layer, n_layers):
                return "q6_k"
            case "iq4_nl" | "iq4_xs" if first and not self._has_imatrix:
                return "q5_k"
            case "q4_0" | "q5_0" if first and self._has_imatrix:
                return {"q4_0": "q4_1", "q5_0": "q5_1"}[self._recipe.name]
        return self._recipe.default_type

    def _layer(self, name: str, index: int) -> int:
        """The layer in the name; without experts, the running number of the tensor, which is the same there."""
        if self._shape.n_experts <= 1:
            return index
        match = re.match(r"blk\.([0-9]+)", name)
        if not match or int(match[1]) >= self._shape.n_layers:
            raise UnsupportedModelError(f"{name} is of none of the model's {self._shape.n_layers} layers")
        return int(match[1])


def _more_bits(layer: int, n_layers: int) -> bool:
    """The first and last eighth, and every third layer between."""
    return layer < n_layers // 8 or layer >= 7 * n_layers // 8 or (layer - n_layers // 8) % 3 == 2
