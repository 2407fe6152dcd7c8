"""The per-frequency divisors that stand for `rope_type: llama3` in a GGUF."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from quantkit.llama4.hyperparameters import RopeScaling


def rope_factors(scaling: RopeScaling, theta: float, head_dim: int) -> npt.NDArray[np.float32]:
    """Divisors of the base frequencies theta^(-2i / head_dim), float32, shape (head_dim / 2,).

    1 for wavelengths below original_context / high_freq_factor, `factor` for those above
    original_context / low_freq_factor, and the harmonic blend of both between.
    """
    # float32 at every step, as llama.cpp's converter has it: near a boundary the side taken depends on it
    one = np.float32(1)
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    # the power in double and rounded, since a float32 power differs between libraries and processors
    frequencies = one / np.power(np.float64(theta), exponents.astype(np.float64)).astype(np.float32)
    wavelengths = (one / frequencies) * np.float32(2 * math.pi)
    low, high = np.float32(scaling.low_freq_factor), np.float32(scaling.high_freq_factor)
    context, factor = np.float32(scaling.original_context), np.float32(scaling.factor)
    factors = np.ones(head_dim // 2, dtype=np.float32)
    factors[wavelengths > context / low] = factor
    between = (wavelengths >= context / high) & (wavelengths <= context / low)
    if high == low:
        factors[between] = factor  # the blend of an empty range has no value
    elif between.any():
        blend = ((one / wavelengths[between]) * context - low) / (high - low)
        factors[between] = one / ((one - blend) / factor + blend)
    return factors
