"""Root mean square norms, row by row in float32."""

from __future__ import annotations

from functools import partial

import numpy as np

from quantkit.llama4.forward.floats import Floats
from quantkit.llama4.forward.team import Team

_PIECE = 1 << 18  # elements at a time, which a core's cache holds


def rms_norm(x: Floats, weight: Floats | None, eps: float, team: Team) -> Floats:
    """x / sqrt(mean(x²) + eps) * weight over the last axis of x, C-contiguous, in place."""
    rows = x.reshape(-1, x.shape[-1])
    step = max(1, _PIECE // x.shape[-1])

    def norm(start: int) -> None:
        piece = rows[start : start + step]
        mean = np.square(piece).mean(axis=-1, keepdims=True)
        mean += np.float32(eps)
        piece *= np.float32(1) / np.sqrt(mean)
        if weight is not None:
            piece *= weight

    team.run(partial(norm, start) for start in range(0, len(rows), step))
    return x
