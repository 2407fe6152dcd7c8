"""Hypothesis strategies for weight matrices, importance and activations. What hypothesis draws and shrinks are the
families of the rows, their number and a seed; in rows of family "pool" also the values themselves."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from quantkit.errors import MissingDependencyError
from quantkit.kernels import FORMATS
from quantkit.kernels.formats import find_format
from quantkit.testing.families import (
    ACTIVATIONS,
    CHANNELS,
    F16_MAX,
    IMPORTANCES,
    WEIGHTS,
    Family,
    Matrix,
    make_activations,
    make_importance,
    make_weights,
)

try:
    from hypothesis import strategies as st
except ModuleNotFoundError as error:
    raise MissingDependencyError(
        "the strategies of quantkit.testing need hypothesis, which is not installed",
        hint="In a clone of quantkit: pip install '.[testing]'",
    ) from error

_SEEDS = st.integers(0, 2**32 - 1)


def formats(*, blocks: bool = True) -> st.SearchStrategy[str]:
    """Names of quantkit.kernels.FORMATS; with `blocks`, only those that store blocks (not f32, f16 and bf16)."""
    return st.sampled_from([name for name, found in FORMATS.items() if found.block_size > 1 or not blocks])


def _pool(draw: st.DrawFn, cols: int, max_abs: float) -> Matrix:
    """A row of a few values that hypothesis chooses: it likes zeros of both signs, subnormals, powers, the largest."""
    limit = float(np.float32(max_abs))
    values = draw(st.lists(st.floats(-limit, limit, width=32), min_size=1, max_size=6))
    return np.random.default_rng(draw(_SEEDS)).choice(np.array(values, np.float32), cols)


@st.composite
def weight_matrices(
    draw: st.DrawFn,
    format: str = "q4_k",
    *,
    min_rows: int = 1,
    max_rows: int = 8,
    max_blocks: int = 3,
    min_block: int = 1,
    families: Mapping[str, Family] = WEIGHTS,
    max_abs: float = F16_MAX,
) -> Matrix:
    """Hard weights: float32 (rows, cols), finite, |x| <= max_abs; cols is a whole number of the format's blocks.

    Each row is hard in a way of its own, and the columns of a matrix may have outlier channels.

    Args:
        format: whose blocks the rows are made of.
        min_block: the least number of columns that is drawn at a time, for formats whose block is smaller than that.
        families: where rows come from; `{**WEIGHTS, "mine": function}` adds your own.
        max_abs: the default is the largest f16, which every format holds.
    """
    block = max(min_block, find_format(format).block_size)
    cols = draw(st.integers(1, max_blocks)) * block
    kinds = draw(st.lists(st.sampled_from([*families, "pool"]), min_size=min_rows, max_size=max_rows))
    made = [kind for kind in kinds if kind != "pool"]
    rows = iter(
        make_weights(
            made, cols, draw(_SEEDS), channels=draw(st.sampled_from(list(CHANNELS))), known=families, max_abs=max_abs
        )
    )
    return np.stack([_pool(draw, cols, max_abs) if kind == "pool" else next(rows) for kind in kinds])


@st.composite
def importances(draw: st.DrawFn, cols: int) -> Matrix | None:
    """Importance of the columns, float32 (cols,), finite and not negative; or None: all count alike."""
    kind = draw(st.sampled_from([None, *IMPORTANCES]))
    return None if kind is None else make_importance(kind, cols, draw(_SEEDS))


@st.composite
def activations(draw: st.DrawFn, cols: int, *, min_rows: int = 1, max_rows: int = 8) -> Matrix:
    """Rows of activations, float32 (rows, cols), finite."""
    kinds = draw(st.lists(st.sampled_from(list(ACTIVATIONS)), min_size=min_rows, max_size=max_rows))
    return make_activations(kinds, cols, draw(_SEEDS))
