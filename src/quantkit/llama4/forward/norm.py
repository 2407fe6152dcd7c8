"""Root mean square norms, row by row in float32."""

from __future__ import annotations

import numpy as np

from quantkit.llama4.forward.weights import Floats


def rms_norm(x: Floats, weight: Floats, eps: float) -> Floats:
    """x / sqrt(mean(x²) + eps) * weight over the last axis; a new array."""
    y = unit_rms(x.copy(), eps)
    y *= weight
    return y


def unit_rms(x: Floats, eps: float) -> Floats:
    """The norm without weights, in place."""
    mean = np.square(x).mean(axis=-1, keepdims=True)
    mean += np.float32(eps)
    x *= np.float32(1) / np.sqrt(mean)
    return x
