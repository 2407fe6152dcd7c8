"""Sums over the activations that each expert sees: Σx, Σx², Σxxᵀ.

numpy is fast enough: a core reads 2 to 4 GB/s of activations for the diagonal, a hundredth of the time of the products
with weights that the same activations are for; Σxxᵀ is BLAS, of which half the square is computed.

Rounding, with u = 2**-53, n rows of an expert and gamma(k, u) = k u / (1 - k u): `sums` and `squares` are within
gamma(n + 2, u) times the sum of absolute values (squares of float32 are exact in float64). `products` adds float32
BLAS of at most ROWS = 512 rows, brought to at most 1 by a power of two, in float64: element (i, j) is within
(gamma(514, 2**-24) + gamma(n + 4, u)) Σ w |x_i x_j| + n 2**-146 max(w x²), whatever BLAS does in which order. Any two
ways of cutting the same rows into batches and merging them thus agree within twice that.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from quantkit.errors import CheckpointError, QuantkitError, UsageError
from quantkit.kernels.arrays import Float, check_finite, float_array, index_array, number_array, widened
from quantkit.kernels.atomic_file import atomic_file

Second = Literal["diagonal", "full"]
Doubles = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]

ROWS = 512  # of a float32 product, so that its rounding stays small and its work large beside adding it up
_PANEL = 512  # columns of a product at a time: of the square, only what lies below the diagonal's panels is computed
_BUFFER = 1 << 17  # elements in float64 at a time: a megabyte, which a core's cache holds


class Moments:
    """Per expert: rows seen, Σw, Σwx, Σwx², and with second="full" Σwxxᵀ; w is 1 unless weights are given.

    Memory: 16 bytes x n_experts x cols. "full" adds 8 bytes x n_experts x cols², taken from the system as experts are
    seen: 210 MB for each expert at 5120 columns, 537 MB at 8192.

    Args:
        n_experts: at least 1; a dense layer has one.
        cols: columns of the activations.
        second: "diagonal" or "full".

    Attributes:
        counts: int64 (n_experts,), rows seen.
        weights: float64 (n_experts,), Σw.
        sums: float64 (n_experts, cols), Σwx.
        squares: float64 (n_experts, cols), Σwx²; divided by `weights` it is an importance for `quantize`.
    """

    def __init__(self, n_experts: int, cols: int, second: Second = "diagonal") -> None:
        if second not in get_args(Second):
            raise UsageError(f"unknown second moment {second!r}", hint=f"Known: {', '.join(get_args(Second))}.")
        if n_experts < 1 or cols < 1:
            raise UsageError(f"moments of {n_experts} experts and {cols} columns", hint="Both are at least 1.")
        self.n_experts, self.cols, self.second = n_experts, cols, second
        self.counts = np.zeros(n_experts, np.int64)
        self.weights = np.zeros(n_experts)
        self.sums = np.zeros((n_experts, cols))
        self.squares = np.zeros((n_experts, cols))
        self._products = np.zeros((n_experts, cols, cols)) if second == "full" else None
        self._one_sided: set[int] = set()  # experts whose products are complete on and below the diagonal only

    @property
    def products(self) -> Doubles:
        """float64 (n_experts, cols, cols), Σwxxᵀ, symmetric. UsageError if second is "diagonal"."""
        if self._products is None:
            raise UsageError("these moments have no products", hint='Make them with second="full".')
        for expert in self._one_sided:
            _mirror(self._products[expert])
        self._one_sided.clear()
        return self._products

    @property
    def nbytes(self) -> int:
        """Bytes of all sums, those that the system has not given yet included."""
        held = [self.counts, self.weights, self.sums, self.squares]
        return sum(array.nbytes for array in held) + (0 if self._products is None else self._products.nbytes)

    def add(self, x: Any, expert_ids: Any, weights: Any | None = None) -> None:
        """Add a batch. After an error nothing of it has been added.

        Args:
            x: (n, cols), finite; float32, float16, bfloat16, or uint16 holding bfloat16 bits, of any library.
            expert_ids: whole numbers (n,), 0 <= id < n_experts, or one for all rows.
            weights: (n,), finite, not negative. None: ones.

        Raises:
            NonFiniteError: an activation is NaN or infinite; its row and column are named.
            UsageError: shapes or dtypes that do not fit; an id or a weight out of range, named by its row.
        """
        array, type = float_array(x, "activations")
        if array.ndim != 2 or array.shape[1] != self.cols:
            raise UsageError(f"activations must be (n, {self.cols}), not of shape {array.shape}")
        n = len(array)
        if np.ndim(expert_ids) == 0:
            expert_ids = np.broadcast_to(np.asarray(expert_ids), n)
        ids = index_array(expert_ids, "expert_ids", length=n, limit=self.n_experts)
        w = None if weights is None else _row_weights(weights, n)
        check_finite(array, type, "activations")

        order, counts = np.argsort(ids, kind="stable"), np.bincount(ids, minlength=self.n_experts)
        for expert, rows in _runs(order, counts):
            self.weights[expert] += len(rows) if w is None else math.fsum(w[rows])
            self._add_diagonal(expert, array, type, rows, w)
            if self._products is not None:
                self._add_products(self._products[expert], array, type, rows, w)
                self._one_sided.add(expert)
        self.counts += counts

    def _add_diagonal(self, expert: int, x: npt.NDArray[Any], type: Float, rows: Rows, w: Doubles | None) -> None:
        for mine in _pieces(rows, max(1, _BUFFER // self.cols)):
            part = widened(x[mine], type).astype(np.float64)
            weighted = part if w is None else part * w[mine, None]
            self.sums[expert] += weighted.sum(axis=0)
            self.squares[expert] += np.multiply(weighted, part, out=part).sum(axis=0)

    def _add_products(self, total: Doubles, x: npt.NDArray[Any], type: Float, rows: Rows, w: Doubles | None) -> None:
        for mine in _pieces(rows, ROWS):
            part = widened(x[mine], type).astype(np.float64)
            if w is not None:
                part *= np.sqrt(w[mine, None])
            scale = 2.0 ** -math.frexp(max(part.max(), -part.min()))[1]  # so that no square leaves float32's range
            small = np.multiply(part, scale, out=part).astype(np.float32)
            for first in range(0, self.cols, _PANEL):
                panel = small[:, first : first + _PANEL].T @ small[:, : first + _PANEL]
                total[first : first + _PANEL, : first + _PANEL] += panel * np.float64(scale**-2)

    def merge(self, other: Moments) -> None:
        """Add what another has seen, of as many experts and columns and with the same second moment (or UsageError)."""
        if (other.n_experts, other.cols, other.second) != (self.n_experts, self.cols, self.second):
            raise UsageError(f"{other!r} does not go into {self!r}")
        mine, others = self.arrays(), other.arrays()
        for name, array in mine.items():
            array += others[name]

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The sums by name, without a copy: counts, weights, sums, squares, and products where there are some."""
        found: dict[str, npt.NDArray[Any]] = {
            "counts": self.counts,
            "weights": self.weights,
            "sums": self.sums,
            "squares": self.squares,
        }
        return found if self._products is None else found | {"products": self.products}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> Moments:
        """Moments that hold copies of what `arrays` returned. UsageError for anything else."""
        names = {"counts", "weights", "sums", "squares"}
        if not names <= set(arrays) <= names | {"products"} or np.ndim(arrays["sums"]) != 2:
            raise UsageError(f"arrays {', '.join(sorted(arrays)) or 'of no name'} are not those of moments")
        n_experts, cols = np.shape(arrays["sums"])
        made = cls(n_experts, cols, second="full" if "products" in arrays else "diagonal")
        for name, array in made.arrays().items():
            given = np.asarray(arrays[name])
            if given.shape != array.shape or given.dtype != array.dtype:
                raise UsageError(f"{name} is {given.dtype} of shape {given.shape}, not {array.dtype} of {array.shape}")
            if not np.isfinite(given).all():
                raise UsageError(f"{name} holds values that are not finite")
            array[...] = given
        return made

    def save(self, path: str | Path) -> None:
        """Write `arrays` as a numpy .npz under exactly this name, whole or not at all. OutputError if writing fails."""
        with atomic_file(Path(path)) as file:
            np.savez(file, **self.arrays())  # type: ignore[arg-type]  # numpy takes any binary file

    @classmethod
    def load(cls, path: str | Path) -> Moments:
        """What `save` wrote. CheckpointError for a file that is missing, damaged or another."""
        try:
            with Path(path).open("rb") as file, np.lib.npyio.NpzFile(file) as members:  # which does not unpickle
                arrays = dict(members)
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
            raise CheckpointError(f"{path}: cannot be read as moments: {error}") from error
        try:
            return cls.from_arrays(arrays)
        except QuantkitError as error:
            raise CheckpointError(f"{path}: {error.what}") from error

    def __repr__(self) -> str:
        seen = f"{int(self.counts.sum()):,} rows in {int((self.counts > 0).sum())} of {self.n_experts} experts"
        return f"Moments({seen}, {self.cols} columns, {self.second})"


def _runs(order: Rows, counts: Rows) -> Iterator[tuple[int, Rows]]:
    """(expert, its rows) of each that has some."""
    ends = np.cumsum(counts)
    for expert in np.flatnonzero(counts):
        yield int(expert), order[ends[expert] - counts[expert] : ends[expert]]


def _pieces(rows: Rows, size: int) -> Iterator[Rows]:
    for first in range(0, len(rows), size):
        yield rows[first : first + size]


def _row_weights(weights: Any, n: int) -> Doubles:
    array: Doubles = number_array(weights, "weights").astype(np.float64)
    if array.shape != (n,):
        raise UsageError(f"weights have shape {array.shape}, not ({n},): one number a row")
    held = (array >= 0) & (array <= np.finfo(np.float32).max)
    if not held.all():
        row = int(np.argmin(held))
        raise UsageError(f"weight {array[row]} at row {row} is negative, not finite or beyond float32")
    return array


def _mirror(square: Doubles) -> None:
    """What lies below the diagonal also above it."""
    for first in range(0, len(square), _PANEL):
        rows = square[first : first + _PANEL]
        square[:first, first : first + _PANEL] = rows[:, :first].T
        block = rows[:, first : first + _PANEL]
        block[...] = np.tril(block) + np.tril(block, -1).T
