"""Hard weight matrices and column weights, shared by the tests of the codecs."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import ml_dtypes  # noqa: F401  (numpy knows bfloat16 by name once this is imported)
import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st
from safetensors.numpy import load_file

Matrix = npt.NDArray[np.float32]
Rng = np.random.Generator

F16_MAX = 65504.0
TINY_LLAMA4 = Path(__file__).parents[1] / "data" / "tiny-llama4"


@cache
def trained(name: str = "language_model.model.layers.1.feed_forward.experts.down_proj") -> Matrix:
    """A tensor of the trained checkpoint in the repository, as a matrix."""
    for shard in sorted(TINY_LLAMA4.glob("*.safetensors")):
        tensors = load_file(shard)
        if name in tensors:
            return tensors[name].astype(np.float32).reshape(-1, tensors[name].shape[-1])
    raise KeyError(name)


def _real(rng: Rng, n: int) -> Matrix:
    flat = trained().T.reshape(-1)  # experts lie input-major, so a column of the tensor is a row of weights
    start = int(rng.integers(0, flat.size - n))
    return flat[start : start + n].copy()


def _one_outlier(rng: Rng, n: int) -> Matrix:
    x = rng.standard_normal(n) * 0.02
    x[rng.integers(n)] *= 10.0 ** rng.uniform(1, 5)
    return x


def _blocks_of_outliers(rng: Rng, n: int) -> Matrix:
    """Sub-blocks of very different size: the scales of a super-block have to cover them all."""
    return rng.standard_normal(n) * np.repeat(10.0 ** rng.uniform(-6, 2, -(-n // 16)), 16)[:n]


def _ties(rng: Rng, n: int) -> Matrix:
    """Multiples of half a step: every code is a tie, and many candidates have the same error."""
    return rng.integers(-16, 17, n) * 0.5 * 2.0 ** rng.integers(-8, 8)


def _constant(rng: Rng, n: int) -> Matrix:
    return np.repeat(rng.standard_normal(-(-n // 32)) * 10.0 ** rng.uniform(-6, 3), 32)[:n]


def _offset(rng: Rng, n: int) -> Matrix:
    """One sign, far from zero: 10 .. 10.1."""
    return (10 + 0.1 * rng.random(n)) * rng.choice([-1, 1])


ROWS: dict[str, Callable[[Rng, int], npt.NDArray[np.floating]]] = {
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
    "two values": lambda rng, n: rng.choice([-0.7, 0.7], n),
    "subnormal": lambda rng, n: rng.standard_normal(n) * 1e-40,
    "vanishing": lambda rng, n: rng.standard_normal(n) * 10.0 ** rng.uniform(-32, -20),
    "f16 subnormal scale": lambda rng, n: rng.standard_normal(n) * 10.0 ** rng.uniform(-8, -4),
    "huge": lambda rng, n: rng.uniform(-1, 1, n) * F16_MAX,
    "largest": lambda rng, n: rng.choice([-F16_MAX, F16_MAX, 0.0], n),
    "range": lambda rng, n: rng.choice([-1, 1], n) * 10.0 ** rng.uniform(-44, 4.8, n),
    "real": _real,
}

COLUMNS: dict[str, Callable[[Rng, int], npt.NDArray[np.floating]]] = {
    "ones": lambda rng, n: np.ones(n),
    "lognormal": lambda rng, n: np.exp(rng.standard_normal(n)),
    "ratio": lambda rng, n: 10.0 ** rng.uniform(-30, 30, n),
    "some zero": lambda rng, n: rng.random(n) * (rng.random(n) < 0.7),
    "one column": lambda rng, n: (np.arange(n) == rng.integers(n)) * 1.0,
    "all zero": lambda rng, n: np.zeros(n),
    "subnormal": lambda rng, n: rng.random(n) * 1e-42,
    "huge": lambda rng, n: rng.random(n) * 3e38,
}


def rows_of(kinds: list[str], cols: int, seed: int) -> Matrix:
    """float32 (len(kinds), cols), |x| <= 65504, one row of each kind in turn."""
    rng = np.random.default_rng(seed)
    rows = np.stack([np.asarray(ROWS[kind](rng, cols), np.float64) for kind in kinds])
    return np.clip(rows, -F16_MAX, F16_MAX).astype(np.float32)


def columns_of(kind: str, cols: int, seed: int) -> Matrix:
    """float32 (cols,), finite and not negative."""
    return np.asarray(COLUMNS[kind](np.random.default_rng(seed), cols), np.float64).astype(np.float32)


@st.composite
def matrices(draw: st.DrawFn, block_size: int, max_rows: int = 20, max_blocks: int = 3) -> Matrix:
    """A matrix whose rows are whole blocks; each row is hard in a way of its own."""
    kinds = draw(st.lists(st.sampled_from(list(ROWS)), min_size=1, max_size=max_rows))
    blocks = draw(st.integers(1, max_blocks))
    return rows_of(kinds, blocks * block_size, draw(st.integers(0, 2**32 - 1)))


@st.composite
def column_weights(draw: st.DrawFn, cols: int) -> Matrix | None:
    """Importance of the columns, or None."""
    kind = draw(st.sampled_from([None, *COLUMNS]))
    return None if kind is None else columns_of(kind, cols, draw(st.integers(0, 2**32 - 1)))
