"""The weighted squared error, summed over a matrix, is at most that of ggml's own quantizer; over many, at most
0.97 of it for the k-quants but q6_k and for iq4."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file
from tests import ggml
from tests.kernels.matrices import TINY_LLAMA4

from quantkit.kernels import FORMATS, dequantize, quantize
from quantkit.testing.families import Matrix

BLOCK_FORMATS = [name for name, found in FORMATS.items() if found.block_size > 1]
# Not of each family: where weights lie nearly on a grid, ggml finds it too.
MOST_IN_SUM = dict.fromkeys(["q2_k", "q3_k", "q4_k", "q5_k", "iq4_nl", "iq4_xs"], 0.97)
ROWS, COLS = 48, 512


def _outlier_columns(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    return rng.standard_normal((ROWS, COLS)) * np.where(rng.random(COLS) < 0.03, 1.0, 0.02)


def _signs(rng: np.random.Generator, run: int) -> npt.NDArray[np.int64]:
    return np.repeat(rng.choice([-1, 1], (ROWS, COLS // run)), run, axis=1)


FAMILIES = {
    "gauss": lambda rng: rng.standard_normal((ROWS, COLS)) * 0.02,
    "student": lambda rng: rng.standard_t(5, (ROWS, COLS)) * 0.02,
    "laplace": lambda rng: rng.laplace(size=(ROWS, COLS)) * 0.02,
    "uniform": lambda rng: rng.uniform(-1, 1, (ROWS, COLS)),
    "sparse": lambda rng: rng.standard_normal((ROWS, COLS)) * (rng.random((ROWS, COLS)) < 0.05),
    "outlier columns": _outlier_columns,
    "rows of all sizes": lambda rng: rng.standard_normal((ROWS, COLS)) * 10.0 ** rng.uniform(-3, 3, (ROWS, 1)),
    "constant blocks": lambda rng: np.repeat(rng.standard_normal((ROWS, COLS // 32)), 32, axis=1),
    "one sign": lambda rng: np.abs(rng.standard_normal((ROWS, COLS))) * 0.02,
    "shifted": lambda rng: 3 + rng.standard_normal((ROWS, COLS)),
    # Nearly one magnitude, far from zero: what counts is how close f16 and whole scales come to it, and sums of squares
    # drown in rounding what is left.
    "10 .. 10.1": lambda rng: 10 + 0.1 * rng.random((ROWS, COLS)),
    "100 .. 100.5": lambda rng: 100 + 0.5 * rng.random((ROWS, COLS)),
    "-10 .. -10.1": lambda rng: -10 - 0.1 * rng.random((ROWS, COLS)),
    "-100 .. -100.5": lambda rng: -100 - 0.5 * rng.random((ROWS, COLS)),
    "10 .. 10.1 of either sign": lambda rng: _signs(rng, 1) * (10 + 0.1 * rng.random((ROWS, COLS))),
    "100 .. 100.5 of either sign": lambda rng: _signs(rng, 1) * (100 + 0.5 * rng.random((ROWS, COLS))),
    "blocks of either sign": lambda rng: _signs(rng, 32) * (10 + 0.1 * rng.random((ROWS, COLS))),
    "10 +- 3 %": lambda rng: 10 + 0.3 * rng.standard_normal((ROWS, COLS)),
    "zeros and 10 +- 3 %": lambda rng: (
        (rng.random((ROWS, COLS)) < 0.3) * (10 + 0.3 * rng.standard_normal((ROWS, COLS)))
    ),
    "log-normal": lambda rng: _signs(rng, 1) * np.exp(2 * rng.standard_normal((ROWS, COLS))),
}


def trained_matrices() -> Iterator[tuple[str, Matrix]]:
    """Every matrix of the checkpoint that a recipe quantizes, output-major, thinned to at most 64 rows."""
    for shard in sorted(TINY_LLAMA4.glob("*.safetensors")):
        for name, tensor in load_file(shard).items():
            if "language_model" not in name or tensor.ndim < 2 or "router" in name:
                continue
            x = tensor.astype(np.float32)
            if x.ndim == 3:  # experts lie input-major
                x = x.transpose(0, 2, 1).reshape(-1, x.shape[1])
            yield name.removeprefix("language_model.model."), np.ascontiguousarray(x[:: -(-len(x) // 64)])


MATRICES = {
    **{name: make(np.random.default_rng(1)).astype(np.float32) for name, make in FAMILIES.items()},
    **dict(trained_matrices()),
}


def importance_of(cols: int) -> Matrix:
    return np.exp(np.random.default_rng(2).standard_normal(cols)).astype(np.float32)


def row_errors(
    x: Matrix, packed: npt.NDArray[np.uint8], format: str, weights: Matrix | float
) -> npt.NDArray[np.float64]:
    return (weights * (dequantize(packed, format).astype(np.float64) - x) ** 2).sum(axis=1)


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "importance"])
@pytest.mark.parametrize("format", BLOCK_FORMATS)
def test_error_is_at_most_that_of_ggml(format: str, weighted: bool, capsys: pytest.CaptureFixture[str]) -> None:
    worst_row, worst, above = 0.0, ("", 0.0), []
    sums = {"trained": np.zeros(2), "gauss": np.zeros(2), "student": np.zeros(2), "families": np.zeros(2)}
    for name, x in MATRICES.items():
        importance = importance_of(x.shape[1]) if weighted else None
        weights = np.ones_like(x[0]) if importance is None else importance
        ours = row_errors(x, quantize(x, format, importance=importance, threads=1), format, weights)
        theirs = row_errors(x, ggml.quantize(x, format, importance), format, weights)
        assert np.isfinite(ours).all()
        ratio = ours.sum() / theirs.sum() if theirs.sum() else 0.0
        if ours.sum() > theirs.sum():
            above.append(f"{name}: {ratio:.4f}")
        worst = max(worst, (name, ratio), key=lambda found: found[1])
        rows = theirs > 0
        worst_row = max(worst_row, (ours[rows] / theirs[rows]).max(initial=0.0))
        for kind in ("families" if name in FAMILIES else "trained", name):
            if kind in sums:
                sums[kind] += ours.sum(), theirs.sum()
    shares = {kind: mine / ggmls for kind, (mine, ggmls) in sums.items()}
    kind = "importance" if weighted else "plain"
    with capsys.disabled():
        sys.stdout.write(
            f"\n{format} {kind}: trained matrices {shares['trained']:.4f} of ggml's error, "
            f"worst matrix {worst[1]:.4f} ({worst[0]}), worst row {worst_row:.3f} "
        )
    assert not above
    assert max(shares.values()) <= MOST_IN_SUM.get(format, 1.0), shares
