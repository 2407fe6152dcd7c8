"""Moments: against their definition in exact arithmetic, merged in parts, refused by row, saved and loaded."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import ml_dtypes
import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantkit.errors import CheckpointError, NonFiniteError, UsageError
from quantkit.kernels import Moments, quantize
from quantkit.kernels.moments import ROWS, Second

RNG = np.random.default_rng(4)
X = RNG.standard_normal((40, 24)).astype(np.float32)
IDS = RNG.integers(0, 5, 40)
U32, U64 = 2.0**-24, 2.0**-53


def gamma(k: float, u: float) -> float:
    return k * u / (1 - k * u)


def moments(x: Any = X, ids: Any = IDS, weights: Any = None, *, n_experts: int = 5, second: Second = "full") -> Moments:
    made = Moments(n_experts, x.shape[1], second)
    made.add(x, ids, weights)
    return made


def activations(kind: str, n: int, cols: int, seed: int) -> npt.NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, cols))
    if kind == "far from zero":
        x = 100 + 0.01 * x
    elif kind == "outlier columns":
        x[:, rng.integers(cols)] *= 1e6
    elif kind == "large":
        x *= 1e37  # squares are beyond float32
    elif kind == "small":
        x *= 1e-30  # squares vanish in float32
    elif kind == "subnormal":
        x *= 1e-42
    elif kind == "of every size":
        x *= 10.0 ** rng.uniform(-40, 37, x.shape)
    return x.astype(np.float32)


KINDS = ["gauss", "far from zero", "outlier columns", "large", "small", "subnormal", "of every size"]


def check(found: Moments, x: npt.NDArray[Any], ids: npt.NDArray[Any], w: npt.NDArray[Any], *, times: int = 1) -> None:
    """Each sum within `times` the bound of the module's docstring of its value in extended precision."""
    wide = x.astype(np.longdouble)
    for expert in range(found.n_experts):
        mine = ids == expert
        rows, weight, n = wide[mine], w[mine].astype(np.longdouble)[:, None], int(mine.sum())
        assert found.counts[expert] == n
        assert abs(found.weights[expert] - weight.sum()) <= times * gamma(n, U64) * weight.sum()
        for array, values in ((found.sums, weight * rows), (found.squares, weight * rows**2)):
            slack = times * gamma(n + 2, U64) * np.abs(values).sum(axis=0)
            assert (np.abs(array[expert] - values.sum(axis=0)) <= slack).all()
        if found.second == "full":
            exact, w64 = x[mine].astype(np.float64), w[mine][:, None]  # its products round by gamma(n + 1, U64)
            size = np.abs(exact)
            slack = (times * (gamma(ROWS + 2, U32) + gamma(n + 4, U64)) + gamma(n + 1, U64)) * ((w64 * size).T @ size)
            slack += times * n * 2.0**-146 * (w64 * size**2).max(initial=0)
            products = found.products[expert]
            assert (np.abs(products - (w64 * exact).T @ exact) <= slack).all()
            assert np.array_equal(products, products.T)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(KINDS),
    st.integers(0, 60),
    st.integers(1, 33),
    st.booleans(),
    st.sampled_from(["diagonal", "full"]),
    st.integers(0, 2**32 - 1),
)
def test_sums_are_within_their_bound(kind: str, n: int, cols: int, weighted: bool, second: Second, seed: int) -> None:
    x = activations(kind, n, cols, seed)
    rng = np.random.default_rng(seed)
    ids, w = rng.integers(0, 4, n), rng.random(n) * (rng.random(n) < 0.9)
    check(moments(x, ids, w if weighted else None, n_experts=4, second=second), x, ids, w if weighted else np.ones(n))


@pytest.mark.parametrize("second", ["diagonal", "full"])
def test_many_rows_and_columns(second: Second) -> None:
    """More than one float32 product, and more than one panel of columns; experts of very different size."""
    rng = np.random.default_rng(5)
    x = activations("far from zero", 1300, 700, 5)
    ids, w = np.minimum(rng.integers(0, 30, 1300), 2), rng.random(1300)
    check(moments(x, ids, w, n_experts=3, second=second), x, ids, w)


def test_squares_of_integers_are_exact() -> None:
    x = np.random.default_rng(6).integers(-(2**12), 2**12, (ROWS, 9)).astype(np.float32)
    found = moments(x, 0, n_experts=1)
    exact = x.astype(np.int64)
    assert np.array_equal(found.sums[0], exact.sum(axis=0))
    assert np.array_equal(found.squares[0], (exact**2).sum(axis=0))
    tiny = x[:, :2] % 8  # all partial sums below 2**24: float32 products are exact too
    assert np.array_equal(moments(tiny, 0, n_experts=1).products[0], tiny.astype(np.int64).T @ tiny.astype(np.int64))


def test_a_long_axis_does_not_lose_small_addends() -> None:
    """In float32 the sum would stand still at 2**24."""
    found = Moments(1, 1)
    found.add(np.full((1, 1), 2.0**24, np.float32), 0)
    for _ in range(10):
        found.add(np.ones((1000, 1), np.float32), [0] * 1000)
    assert found.sums[0, 0] == 2**24 + 10_000
    assert Fraction(found.squares[0, 0]) == 2**48 + 10_000


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(KINDS), st.lists(st.integers(0, 60), max_size=4), st.integers(0, 2**32 - 1))
def test_merged_parts_are_those_of_the_whole(kind: str, cuts: list[int], seed: int) -> None:
    x = activations(kind, 60, 17, seed)
    rng = np.random.default_rng(seed)
    ids, w = rng.integers(0, 4, 60), rng.random(60)
    merged = Moments(4, 17, "full")
    for first, end in zip([0, *sorted(cuts)], [*sorted(cuts), 60], strict=True):
        merged.merge(moments(x[first:end], ids[first:end], w[first:end], n_experts=4))
    whole = moments(x, ids, w, n_experts=4)
    assert np.array_equal(merged.counts, whole.counts)
    check(merged, x, ids, w)
    check(whole, x, ids, w)


def test_merging_leaves_the_other_as_it_was() -> None:
    one, other = moments(), moments(X[:7], IDS[:7])
    before = {name: array.copy() for name, array in other.arrays().items()}
    one.merge(other)
    assert all(np.array_equal(array, before[name]) for name, array in other.arrays().items())
    assert one.counts.sum() == 47


@pytest.mark.parametrize("other", [Moments(4, 24, "full"), Moments(5, 23, "full"), Moments(5, 24)])
def test_what_cannot_be_merged(other: Moments) -> None:
    with pytest.raises(UsageError, match="does not go into"):
        moments().merge(other)


def test_products_can_be_read_between_batches() -> None:
    one = Moments(5, 24, "full")
    for first in range(0, 40, 10):
        one.add(X[first : first + 10], IDS[first : first + 10])
        assert np.array_equal(one.products, one.products.transpose(0, 2, 1))
    check(one, X, IDS, np.ones(40))


@pytest.mark.parametrize(
    "given",
    [
        torch.from_numpy(X).bfloat16(),
        mx.array(X).astype(mx.bfloat16),
        X.astype(ml_dtypes.bfloat16),
        X.astype(ml_dtypes.bfloat16).view(np.uint16),
        torch.from_numpy(X).bfloat16().float().T.contiguous().T,
    ],
)
def test_activations_of_other_libraries(given: Any) -> None:
    expected = moments(X.astype(ml_dtypes.bfloat16).astype(np.float32))
    found = Moments(5, 24, "full")
    found.add(given, torch.from_numpy(IDS))
    for name, array in expected.arrays().items():
        assert np.array_equal(found.arrays()[name], array), name


def test_one_number_for_all_rows() -> None:
    assert np.array_equal(moments(X, 3).sums, moments(X, np.full(40, 3)).sums)


def test_mean_squares_are_an_importance() -> None:
    found = moments(second="diagonal")
    importance = found.squares / found.weights[:, None]
    weights = np.random.default_rng(1).standard_normal((5, 2, 24)).astype(np.float32)
    assert quantize(weights, "f32", importance=importance).shape == (5, 2, 96)


@pytest.mark.parametrize(
    ("x", "ids", "weights", "error", "words"),
    [
        (X[:, :23], IDS, None, UsageError, "activations must be (n, 24), not of shape (40, 23)"),
        (X[0], IDS, None, UsageError, "activations must be (n, 24), not of shape (24,)"),
        (X.astype(int), IDS, None, UsageError, "activations has dtype int64"),
        (X, IDS[:-1], None, UsageError, "expert_ids has shape (39,), not (40,)"),
        (X, IDS.astype(float), None, UsageError, "expert_ids has dtype float64"),
        (X, np.where(np.arange(40) == 31, 5, IDS), None, UsageError, "expert_ids: 5 at row 31 is not in 0 .. 4"),
        (X, np.where(np.arange(40) == 31, -1, IDS), None, UsageError, "expert_ids: -1 at row 31 is not in 0 .. 4"),
        (X, 5, None, UsageError, "expert_ids: 5 at row 0 is not in 0 .. 4"),
        (X, IDS, np.ones(39), UsageError, "weights have shape (39,), not (40,)"),
        (X, IDS, np.arange(40) - 1.0, UsageError, "weight -1.0 at row 0 is negative"),
        (X, IDS, np.where(np.arange(40) == 8, np.nan, 1), UsageError, "weight nan at row 8"),
        (X, IDS, np.full(40, 1e39), UsageError, "weight 1e+39 at row 0"),
        (np.where(np.arange(24) == 7, np.inf, X), IDS, None, NonFiniteError, "activations: inf at row 0, column 7"),
        (np.where(np.arange(40)[:, None] == 9, np.nan, X), IDS, None, NonFiniteError, "nan at row 9, column 0"),
    ],
)
def test_a_batch_that_is_refused_leaves_no_trace(x: Any, ids: Any, weights: Any, error: Any, words: str) -> None:
    found = moments()
    before = {name: array.copy() for name, array in found.arrays().items()}
    with pytest.raises(error, match=re.escape(words)):
        found.add(x, ids, weights)
    assert all(np.array_equal(array, before[name]) for name, array in found.arrays().items())


@pytest.mark.parametrize(("n_experts", "cols", "second"), [(0, 4, "full"), (4, 0, "full"), (4, 4, "half")])
def test_moments_of_nothing(n_experts: int, cols: int, second: Any) -> None:
    with pytest.raises(UsageError):
        Moments(n_experts, cols, second)


def test_memory_is_what_the_docstring_says() -> None:
    assert Moments(16, 5120).nbytes == pytest.approx(16 * 16 * 5120, rel=1e-3)
    full = Moments(16, 5120, "full")  # nothing is written, so the system gives no memory
    assert full.nbytes == pytest.approx(16 * 210e6, rel=2e-3)


@pytest.mark.parametrize("second", ["diagonal", "full"])
def test_saved_and_loaded(second: Second, tmp_path: Path) -> None:
    found = moments(second=second)
    found.save(tmp_path / "moments.npz")
    assert [file.name for file in tmp_path.iterdir()] == ["moments.npz"]
    again = Moments.load(str(tmp_path / "moments.npz"))
    assert (again.n_experts, again.cols, again.second) == (5, 24, second)
    with np.load(tmp_path / "moments.npz") as file:
        for name, array in found.arrays().items():
            assert np.array_equal(again.arrays()[name], array)
            assert np.array_equal(file[name], array)
    again.add(X, IDS)
    found.merge(moments(second=second))
    assert np.array_equal(again.counts, found.counts)


def test_diagonal_moments_have_no_products() -> None:
    with pytest.raises(UsageError, match=r'no products\n.*second="full"'):
        _ = Moments(2, 4).products


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"counts": np.zeros(5)}, "counts is float64"),
        ({"weights": np.zeros(4)}, "weights is float64 of shape (4,)"),
        ({"sums": np.full((5, 24), np.nan)}, "sums holds values that are not finite"),
        ({"other": np.zeros(1)}, "not those of moments"),
        ({"sums": np.zeros(5)}, "not those of moments"),
    ],
)
def test_arrays_that_are_none_of_moments(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    arrays = moments(second="diagonal").arrays() | change
    with pytest.raises(UsageError, match=re.escape(words)):
        Moments.from_arrays(arrays)
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(CheckpointError, match=rf"x\.npz: .*{re.escape(words)}"):
        Moments.load(tmp_path / "x.npz")


@pytest.mark.parametrize("data", [b"", b"nonsense", b"PK\x03\x04 cut off"])
def test_a_file_that_is_none_of_moments(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"x\.npz: cannot be read as moments"):
        Moments.load(tmp_path / "x.npz")
    np.save(tmp_path / "x.npy", X)
    with pytest.raises(CheckpointError, match=r"x\.npy: cannot be read as moments"):
        Moments.load(tmp_path / "x.npy")
    with pytest.raises(CheckpointError, match=r"missing\.npz: cannot be read"):
        Moments.load(tmp_path / "missing.npz")
