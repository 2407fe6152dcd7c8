"""The weights of a layer, in the portions in which a stream reads them."""

from __future__ import annotations

from dataclasses import dataclass

from quantkit.llama4.forward.feed_forward import GatedUnit
from quantkit.llama4.forward.floats import Floats
from quantkit.llama4.forward.weights import Matrix, Weights

KINDS = ("gate", "up", "down")


@dataclass(frozen=True)
class AttentionWeights:
    """Norm (hidden,), queries (heads * head_dim, hidden), keys and values, output (hidden, heads * head_dim)."""

    norm: Floats
    q: Matrix
    k: Matrix
    v: Matrix
    output: Matrix

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        return self.q, self.k, self.v, self.output


@dataclass(frozen=True)
class FeedForwardWeights:
    """Norm (hidden,), the dense or shared unit, and in layers with experts the router, float32 (experts, hidden)."""

    norm: Floats
    unit: GatedUnit
    router: Floats | None


def attention_names(layer: int) -> list[str]:
    return [f"blk.{layer}.attn_{kind}.weight" for kind in ("q", "k", "v", "output")]


def unit_names(layer: int, suffix: str) -> list[str]:
    """Gate, up and down of a dense layer (suffix ""), the shared expert ("_shexp") or the experts ("_exps")."""
    return [f"blk.{layer}.ffn_{kind}{suffix}.weight" for kind in KINDS]


def router_name(layer: int) -> str:
    return f"blk.{layer}.ffn_gate_inp.weight"


def read_attention(weights: Weights, layer: int) -> AttentionWeights:
    return AttentionWeights(weights.vector(f"blk.{layer}.attn_norm.weight"), *weights.matrices(attention_names(layer)))


def read_feed_forward(weights: Weights, layer: int) -> FeedForwardWeights:
    norm = weights.vector(f"blk.{layer}.ffn_norm.weight")
    if layer not in weights.hp.moe_layers:
        return FeedForwardWeights(norm, GatedUnit(*weights.matrices(unit_names(layer, ""))), None)
    (router,) = weights.matrices([router_name(layer)])
    shared = GatedUnit(*weights.matrices(unit_names(layer, "_shexp")))
    return FeedForwardWeights(norm, shared, router.tensor.dequantize())


def read_expert(weights: Weights, layer: int, expert: int) -> GatedUnit:
    return GatedUnit(*weights.matrices(unit_names(layer, "_exps"), expert, input_major=True))
