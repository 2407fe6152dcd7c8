"""Families of hard numbers: rows of weights, columns' importance and activations, made from a seed. Needs numpy alone.

A family is a function (rng, n) -> n numbers. What makes them hard: codes that tie, scales that vanish in f16,
sub-blocks of very different size under one super-block, offsets of both signs, sums of squares that leave float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from quantkit.errors import UsageError

Matrix = npt.NDArray[np.float32]
Rng = np.random.Generator
Family = Callable[[Rng, int], npt.NDArray[Any]]

F16_MAX = 65504.0


def _one_outlier(rng: Rng, n: int) -> npt.NDArray[Any]:
    x = rng.standard_normal(n) * 0.02
    x[rng.integers(n)] = rng.choice([-0.02, 0.02]) * 10.0 ** rng.uniform(1.5, 6)
    return x


def _blocks_of_outliers(rng: Rng, n: int) -> npt.NDArray[Any]:
    """Sub-blocks of very different size: the scales of a super-block have to cover them all."""
    return rng.standard_normal(n) * np.repeat(10.0 ** rng.uniform(-6, 2, -(-n // 16)), 16)[:n]


def _ties(rng: Rng, n: int) -> npt.NDArray[Any]:
    """Multiples of half a step: every code is a tie, and many candidates have the same error."""
    return np.asarray(rng.integers(-16, 17, n) * (0.5 * 2.0 ** rng.integers(-8, 8)))


def _constant(rng: Rng, n: int) -> npt.NDArray[Any]:
    return np.repeat(rng.standard_normal(-(-n // 32)) * 10.0 ** rng.uniform(-6, 3), 32)[:n]


def _offset(rng: Rng, n: int) -> npt.NDArray[Any]:
    """One sign, far from zero: 10 .. 10.1."""
    return (10 + 0.1 * rng.random(n)) * float(rng.choice([-1, 1]))


def _powers(rng: Rng, n: int) -> npt.NDArray[Any]:
    """Powers of two and their float32 neighbours, where exponents and roundings of f16 change."""
    x = rng.choice([-1, 1], n) * 2.0 ** rng.integers(-20, 16, n)
    return np.asarray(x * (1 + rng.integers(-1, 2, n) * 2.0**-23))


def _model(rng: Rng, n: int) -> npt.NDArray[Any]:
    """A row as trained models have them: Student's t, with a size for every column that is the same in no two seeds."""
    return rng.standard_t(5, n) * 0.02 * np.exp(0.3 * rng.standard_normal(n)) * np.where(rng.random(n) < 0.01, 20, 1)


WEIGHTS: dict[str, Family] = {
    "gauss": lambda rng, n: rng.standard_normal(n) * 0.02,
    "heavy": lambda rng, n: rng.standard_t(1.5, n) * 0.02,
    "laplace": lambda rng, n: rng.laplace(size=n) * 0.02,
    "positive": lambda rng, n: np.abs(rng.standard_normal(n)),
    "negative": lambda rng, n: -np.abs(rng.standard_normal(n)),
    "offset": _offset,
    "outlier": _one_outlier,
    "blocks": _blocks_of_outliers,
    "sparse": lambda rng, n: rng.standard_normal(n) * (rng.random(n) < 0.05),
    "constant": _constant,
    "zero": lambda rng, n: np.zeros(n),
    "signed zero": lambda rng, n: np.where(rng.random(n) < 0.5, -0.0, 0.0),
    "one element": lambda rng, n: (np.arange(n) == rng.integers(n)) * rng.standard_normal(),
    "ties": _ties,
    "powers": _powers,
    "two values": lambda rng, n: rng.choice([-0.7, 0.7], n),
    "subnormal": lambda rng, n: rng.standard_normal(n) * 1e-40,
    "vanishing": lambda rng, n: rng.standard_normal(n) * 10.0 ** rng.uniform(-32, -20),
    "f16 subnormal scale": lambda rng, n: rng.standard_normal(n) * 10.0 ** rng.uniform(-8, -4),
    "huge": lambda rng, n: rng.uniform(-1, 1, n) * F16_MAX,
    "largest": lambda rng, n: rng.choice([-F16_MAX, F16_MAX, 0.0], n),
    "range": lambda rng, n: rng.choice([-1, 1], n) * 10.0 ** rng.uniform(-44, 4.8, n),
    "model": _model,
}
"""Rows of weights."""

CHANNELS: dict[str, Family] = {
    "even": lambda rng, n: np.ones(n),
    "uneven": lambda rng, n: np.exp(0.5 * rng.standard_normal(n)),
    "outlier channels": lambda rng, n: np.where(rng.random(n) < 0.02, 10.0 ** rng.uniform(1, 2, n), 1.0),
}
"""Factors of the columns, the same for all rows of a matrix: trained models have a few columns far above the rest."""

IMPORTANCES: dict[str, Family] = {
    "ones": lambda rng, n: np.ones(n),
    "lognormal": lambda rng, n: np.exp(rng.standard_normal(n)),
    "ratio": lambda rng, n: 10.0 ** rng.uniform(-30, 30, n),
    "some zero": lambda rng, n: rng.random(n) * (rng.random(n) < 0.7),
    "one column": lambda rng, n: (np.arange(n) == rng.integers(n)) * 1.0,
    "all zero": lambda rng, n: np.zeros(n),
    "subnormal": lambda rng, n: rng.random(n) * 1e-42,
    "huge": lambda rng, n: rng.random(n) * 3e38,
}
"""Weights of the columns in the squared error: finite and not negative."""

ACTIVATIONS: dict[str, Family] = {
    "gauss": lambda rng, n: rng.standard_normal(n),
    "heavy": lambda rng, n: rng.standard_t(2, n),
    "zero": lambda rng, n: np.zeros(n),
    "one element": lambda rng, n: (np.arange(n) == rng.integers(n)) * 100.0,
    "massive": lambda rng, n: rng.standard_normal(n) * np.where(rng.random(n) < 0.005, 1000.0, 1.0),
    "positive": lambda rng, n: np.abs(rng.standard_normal(n)),
    "whole": lambda rng, n: rng.integers(-127, 128, n) * 1.0,
    "extremes": lambda rng, n: rng.choice([-127.0, 127.0], n),
    "tiny": lambda rng, n: rng.standard_normal(n) * 10.0 ** rng.uniform(-12, -4),
    "wide": lambda rng, n: rng.choice([-1, 1], n) * 10.0 ** rng.uniform(-8, 4, n),
}
"""Rows of activations: a few massive columns, whole numbers (exact in int8), all codes at their extremes."""


def make_weights(
    families: Sequence[str],
    cols: int,
    seed: int,
    *,
    channels: str = "even",
    known: Mapping[str, Family] = WEIGHTS,
    max_abs: float = F16_MAX,
) -> Matrix:
    """float32 (len(families), cols), one row of each family in turn, |x| <= max_abs. The same seed gives the same rows.

    Raises:
        UsageError: a family or `channels` is not known.
    """
    rng = np.random.default_rng(seed)
    rows = np.empty((len(families), cols))
    for row, family in enumerate(families):
        rows[row] = _find(family, known)(rng, cols)
    rows *= _find(channels, CHANNELS)(rng, cols)
    return np.clip(rows, -max_abs, max_abs).astype(np.float32)


def make_importance(family: str, cols: int, seed: int) -> Matrix:
    """float32 (cols,), finite and not negative. UsageError when the family is not known."""
    return np.asarray(_find(family, IMPORTANCES)(np.random.default_rng(seed), cols), np.float64).astype(np.float32)


def make_activations(families: Sequence[str], cols: int, seed: int) -> Matrix:
    """float32 (len(families), cols), one row of each family in turn. UsageError when a family is not known."""
    rng = np.random.default_rng(seed)
    rows = np.empty((len(families), cols))
    for row, family in enumerate(families):
        rows[row] = _find(family, ACTIVATIONS)(rng, cols)
    return rows.astype(np.float32)


def _find(name: str, known: Mapping[str, Family]) -> Family:
    if name not in known:
        raise UsageError(f"unknown family {name!r}", hint=f"Known: {', '.join(known)}.")
    return known[name]
