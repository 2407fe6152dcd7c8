"""Before a long run: does the forward pass compute what the definition says, on this machine, for this checkpoint?"""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np

from quantkit.calibration.plain_layer import Doubles, plain_layer
from quantkit.calibration.tokens import Ids
from quantkit.errors import VerificationError
from quantkit.kernels.blas import blas_threads
from quantkit.llama4 import Hyperparameters
from quantkit.llama4.forward import Observer, Routing, Stream, Weights

SEQUENCES, CONTEXT = 2, 4
# Four positions have to lie in two chunks and at three temperatures. Constants of this size go through the same code as
# 8192 does, which no few tokens reach.
_CHUNK, _FLOOR = 3, 2.0
# Float32 sums of n products are off by about sqrt(n) * 2^-24 of the norms of what is multiplied: 8e-6 for n = 16384,
# the widest layer, and six of them follow each other. Measured are 5e-7 in small models and 3e-6 in layers of Scout's
# shape; products with activations in bfloat16, the smallest fault that tests plant, are at 1e-2.
TOLERANCE = 3e-4
_ROUNDING = 2.0**-22  # of hidden states, which are float32 before and after


def check_layers(weights: Weights, chunks: Ids, threads: int = 0) -> None:
    """Compare one layer of each kind that the model has with a plain computation in float64.

    Eight tokens of the text go in as embeddings, as they do in layer 0, and each layer is computed from these, so that
    no others have to be. Of experts only those are read that the router chooses.

    Args:
        chunks: tokens (n, context) of the text.

    Raises:
        VerificationError: they differ by more than rounding does.
    """
    small = copy.copy(weights)
    small.hp = _shortened(weights.hp)
    tokens = np.resize(chunks, (SEQUENCES, CONTEXT))
    x = _embeddings(small, tokens)
    for layer in checked_layers(small.hp):
        choice = _Choice()
        with Stream(small, tokens, observer=choice, threads=threads) as stream:
            stream.layer = layer
            stream.advance()
            found = stream.states.read(slice(0, tokens.size)).astype(np.float64)
        with blas_threads(1):  # in products as small as these its threads mostly wait for each other
            plain = plain_layer(small, layer, x, CONTEXT, choice.experts, TOLERANCE)
        _compare(small, layer, tokens, x, found, plain)


class _Choice(Observer):
    """Which experts the stream chose for the tokens, that are one block; None in a dense layer."""

    experts: Ids | None = None

    def routing(self, seen: Routing) -> None:
        self.experts = seen.experts


def checked_layers(hp: Hyperparameters) -> list[int]:
    """The first layer of each kind: with and without RoPE, in chunks or not, with experts or dense."""
    first: dict[tuple[bool, bool, bool], int] = {}
    for layer in range(hp.n_layers):
        first.setdefault((hp.uses_rope[layer], hp.is_chunked[layer], layer in hp.moe_layers), layer)
    return sorted(first.values())


def _shortened(hp: Hyperparameters) -> Hyperparameters:
    chunk = None if hp.attention_chunk_size is None else min(_CHUNK, hp.attention_chunk_size)
    return replace(hp, attention_chunk_size=chunk, floor_scale=min(_FLOOR, hp.floor_scale))


def _embeddings(weights: Weights, tokens: Ids) -> Doubles:
    rows = [weights.rows("token_embd.weight", int(token), 1).tensor.dequantize() for token in tokens.ravel()]
    return np.concatenate(rows).astype(np.float64)


def _compare(weights: Weights, layer: int, tokens: Ids, x: Doubles, found: Doubles, plain: Doubles) -> None:
    added = plain - x  # what the layer brings: beside large hidden states its faults would not show
    scale = np.sqrt(np.square(added).mean(axis=1, keepdims=True)) + np.abs(added)
    allowed = TOLERANCE * scale + _ROUNDING * (np.abs(plain) + np.abs(x))
    excess = np.abs(found - plain) / allowed
    excess[np.isnan(excess)] = np.inf
    token, channel = np.unravel_index(int(excess.argmax()), excess.shape)
    if excess[token, channel] <= 1:
        return
    hp = weights.hp
    position = "RoPE" if hp.uses_rope[layer] else "no RoPE"
    kind = f"{position}, {'experts' if layer in hp.moe_layers else 'dense'}"
    raise VerificationError(
        f"{weights.source}: self-check: layer {layer} ({kind}) of token {tokens.ravel()[token]}, number {token} of "
        f"{tokens.size}: channel {channel} becomes {found[token, channel]:.7g}, and {plain[token, channel]:.7g} "
        f"by a plain computation: {abs(found - plain)[token, channel]:.3g} apart, where rounding makes at most "
        f"{allowed[token, channel]:.3g}",
        hint="Statistics would be wrong, so nothing is written. Try QUANTKIT_TIER=scalar; please report this message "
        "together with the output of `quantkit doctor`.",
    )
