"""Rotary embeddings of interleaved pairs, and the temperature of layers that have none."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from quantkit.llama4.forward.floats import Floats
from quantkit.llama4.hyperparameters import Hyperparameters

Complex = npt.NDArray[np.complex64]


def frequencies(hp: Hyperparameters, divisors: Floats | None) -> Floats:
    """Radians per position of each pair, float32 (head_dim / 2,)."""
    exponents = np.arange(0, hp.head_dim, 2, dtype=np.float32) / np.float32(hp.head_dim)
    # the power in double and rounded, since a float32 power differs between libraries and processors
    powers = np.power(np.float64(hp.rope_theta), exponents.astype(np.float64)).astype(np.float32)
    base: Floats = np.float32(1) / powers
    return base if divisors is None else base / divisors


def turns(frequency: Floats, first: int, count: int) -> Complex:
    """Unit complex numbers (count, head_dim / 2) for positions `first` to `first + count`."""
    # the angle in float32, as the model was trained with; its sine and cosine without further error
    angles = np.arange(first, first + count, dtype=np.float32)[:, None] * frequency
    turned: Complex = np.exp(1j * angles.astype(np.float64)).astype(np.complex64)
    return turned


def rotate(x: Floats, turn: Complex) -> None:
    """Turn x (n, heads, head_dim), C-contiguous, by turn (n, head_dim / 2), in place."""
    pairs = x.view(np.complex64)
    pairs *= turn[:, None]


def temperatures(hp: Hyperparameters, first: int, count: int) -> Floats:
    """What queries of layers without RoPE are multiplied with: float32 (count,), 1 up to position floor_scale - 1."""
    positions = np.arange(first, first + count, dtype=np.float32)
    steps = np.floor((positions + np.float32(1)) / np.float32(hp.floor_scale))
    scale: Floats = np.log1p(steps) * np.float32(hp.attn_scale) + np.float32(1)
    return scale
