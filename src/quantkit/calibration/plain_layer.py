"""One layer of Llama 4, written down as the definition has it: slowly, in float64, for a few tokens.

It is there to be compared with `quantkit.llama4.forward`, and shares with it the reading of weights and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from quantkit.llama4 import Hyperparameters
from quantkit.llama4.forward import Matrix, Weights

Doubles = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]
_ROWS = 256  # of a matrix that are float64 at a time


def plain_layer(
    weights: Weights, layer: int, x: Doubles, context: int, chosen: Ids | None = None, tie: float = 0.0
) -> Doubles:
    """A layer of hidden states x (tokens, hidden): token t is at position t % context of sequence t // context.

    Args:
        chosen: (tokens, experts used), another's choice of experts. It is taken for a token where no logit of it is
            `tie` or more below that of the last expert chosen here: either choice is right then, and outputs differ.
    """
    hp = weights.hp
    h = x + _attention(weights, layer, _norm(x, hp.rms_norm_eps) * weights.vector(_name(layer, "attn_norm")), context)
    xn = _norm(h, hp.rms_norm_eps) * weights.vector(_name(layer, "ffn_norm"))
    if layer not in hp.moe_layers:
        return h + _gated(weights, layer, "", None, xn)
    (router,) = weights.matrices([_name(layer, "ffn_gate_inp")])
    logits = _times(xn, router)
    weights.give_back([router])
    experts = np.argsort(-logits, axis=1, kind="stable")[:, : hp.n_experts_used]
    for token, other in enumerate([] if chosen is None else chosen):
        as_good = logits[token, other] > logits[token, experts[token, -1]] - tie
        if as_good.all() and len(set(other.tolist())) == hp.n_experts_used:
            experts[token] = other
    out = h + _gated(weights, layer, "_shexp", None, xn)
    for expert in sorted(set(experts.ravel().tolist())):
        mine = [token for token in range(len(x)) if expert in experts[token]]
        share = 1 / (1 + np.exp(-logits[mine, expert]))
        out[mine] += _gated(weights, layer, "_exps", expert, share[:, None] * xn[mine])
    return out


def _attention(weights: Weights, layer: int, x: Doubles, context: int) -> Doubles:
    hp = weights.hp
    matrices = weights.matrices([_name(layer, f"attn_{kind}") for kind in ("q", "k", "v", "output")])
    q, k, v = (_times(x, matrix).reshape(len(x), -1, hp.head_dim) for matrix in matrices[:3])
    positions = [token % context for token in range(len(x))]
    if hp.uses_rope[layer]:
        q, k = (_rotated(hp, array, positions) for array in (q, k))
        if hp.use_qk_norm:
            q, k = _norm(q, hp.rms_norm_eps), _norm(k, hp.rms_norm_eps)
    elif hp.attn_temperature_tuning:
        for token, position in enumerate(positions):
            q[token] *= 1 + hp.attn_scale * math.log(1 + math.floor((position + 1) / hp.floor_scale))
    mixed = np.zeros_like(q)
    for token, position in enumerate(positions):
        chunk = hp.attention_chunk_size if hp.is_chunked[layer] else None
        first = position - position % chunk if chunk else 0
        seen = range(token - position + first, token + 1)
        for head in range(hp.n_heads):
            shared = head // (hp.n_heads // hp.n_kv_heads)
            scores = np.array([q[token, head] @ k[other, shared] for other in seen]) / math.sqrt(hp.head_dim)
            shares = np.exp(scores - scores.max())
            mixed[token, head] = (shares / shares.sum()) @ v[list(seen), shared]
    out = _times(mixed.reshape(len(x), -1), matrices[3])
    weights.give_back(matrices)
    return out


def _rotated(hp: Hyperparameters, x: Doubles, positions: Iterable[int]) -> Doubles:
    """Elements 2i and 2i + 1 turned by position * theta^(-2i / head_dim), slower where the scaling says so."""
    out = np.empty_like(x)
    for token, position in enumerate(positions):
        for i in range(hp.head_dim // 2):
            angle = position * _frequency(hp, i)
            even, odd = x[token, :, 2 * i], x[token, :, 2 * i + 1]
            out[token, :, 2 * i] = even * math.cos(angle) - odd * math.sin(angle)
            out[token, :, 2 * i + 1] = even * math.sin(angle) + odd * math.cos(angle)
    return out


def _frequency(hp: Hyperparameters, i: int) -> float:
    frequency = math.pow(hp.rope_theta, -2 * i / hp.head_dim)
    scaling = hp.rope_scaling
    if scaling is None:
        return frequency
    turns = scaling.original_context * frequency / (2 * math.pi)  # in the context the model was first trained with
    if turns > scaling.high_freq_factor:
        return frequency
    if turns < scaling.low_freq_factor or scaling.high_freq_factor == scaling.low_freq_factor:
        return frequency / scaling.factor
    blend = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    return (1 - blend) * frequency / scaling.factor + blend * frequency


def _gated(weights: Weights, layer: int, suffix: str, expert: int | None, x: Doubles) -> Doubles:
    """down(silu(gate x) * up x)"""
    names = [_name(layer, f"ffn_{kind}{suffix}") for kind in ("gate", "up", "down")]
    matrices = weights.matrices(names, expert)
    gate, up, down = matrices
    inner = _times(x, gate)
    # silu as x / (1 + exp(-x)), which overflows to the right zero
    with np.errstate(over="ignore"):
        inner = inner / (1 + np.exp(-inner)) * _times(x, up)
    out = _times(inner, down)
    weights.give_back(matrices)
    return out


def _norm(x: Doubles, eps: float) -> Doubles:
    mean: Doubles = (x * x).mean(axis=-1, keepdims=True)
    return x / np.sqrt(mean + eps)


def _times(x: Doubles, matrix: Matrix) -> Doubles:
    """x Wᵀ, some rows of W at a time: float64 of a whole one would take gigabytes."""
    parts = [
        x @ matrix.tensor[first : first + _ROWS].dequantize().astype(np.float64).T
        for first in range(0, matrix.n_outputs, _ROWS)
    ]
    return np.concatenate(parts, axis=1)


def _name(layer: int, part: str) -> str:
    return f"blk.{layer}.{part}.weight"
