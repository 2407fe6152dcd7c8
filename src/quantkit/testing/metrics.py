"""How well decoded weights agree with the original: the numbers that a baseline stores."""

from __future__ import annotations

from typing import Any

from quantkit.kernels import Deviation
from quantkit.kernels.arrays import real_array, widened
from quantkit.kernels.deviation import deviation

SQNR_LIMIT_DB = 300.0
"""Stands for no error at all: float64 itself has no more."""


def measure(weights: Any, decoded: Any, *, importance: Any | None = None) -> Deviation:
    """Compare weights (rows, cols) or (experts, rows, cols) with what was decoded from their quantization.

    Args:
        weights, decoded: floats of any library, of one shape.
        importance: (cols,) or (experts, cols): finite, not negative, not all zero. It weighs all but the largest error.

    Raises:
        UsageError: shapes, dtypes or importance that do not fit.
        NonFiniteError: a value is NaN or infinite; its place is named.
    """
    came_out = widened(*real_array(decoded, "decoded"))
    return deviation(weights, came_out.shape, lambda index: came_out[index], importance)


def figures(found: Deviation) -> dict[str, float]:
    """What a baseline stores, all finite; of the cosine its distance from 1, whose digits are those that change."""
    return {
        "rmse": found.rmse,
        "sqnr_db": max(-SQNR_LIMIT_DB, min(SQNR_LIMIT_DB, found.sqnr_db)),
        "cosine_distance": 1 - found.cosine,
        "max_abs": found.max_abs,
    }
