"""The families of quantkit.testing, and beside them rows of the trained checkpoint in the repository."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import ml_dtypes  # noqa: F401  (numpy knows bfloat16 by name once this is imported)
import numpy as np
from hypothesis import strategies as st
from safetensors.numpy import load_file

from quantkit.testing import IMPORTANCES, WEIGHTS, importances, make_importance, make_weights, weight_matrices
from quantkit.testing.families import F16_MAX, Family, Matrix, Rng

__all__ = ["COLUMNS", "F16_MAX", "ROWS", "Matrix", "column_weights", "columns_of", "matrices", "rows_of", "trained"]

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


ROWS: dict[str, Family] = {**WEIGHTS, "real": _real}
COLUMNS = IMPORTANCES
columns_of, column_weights = make_importance, importances


def rows_of(kinds: list[str], cols: int, seed: int) -> Matrix:
    """float32 (len(kinds), cols), |x| <= 65504, one row of each kind in turn."""
    return make_weights(kinds, cols, seed, known=ROWS)


def matrices(block_size: int, max_rows: int = 20, max_blocks: int = 3) -> st.SearchStrategy[Matrix]:
    """A matrix whose rows are whole blocks; each row is hard in a way of its own."""
    return weight_matrices("f32", min_block=block_size, max_rows=max_rows, max_blocks=max_blocks, families=ROWS)
