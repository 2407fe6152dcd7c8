"""Root mean square norms, row by row in float32."""

from __future__ import annotations

import numpy as np

from quantkit.llama4.forward.floats import Floats


def rms_norm(x: Floats, weight: Floats | None, eps: float) -> None:
    """x / sqrt(mean(x²) + eps) * weight over the last axis of x, in place."""
    mean = np.square(x).mean(axis=-1, keepdims=True)
    mean += np.float32(eps)
    x *= np.float32(1) / np.sqrt(mean)
    if weight is not None:
        x *= weight
