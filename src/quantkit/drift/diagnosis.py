"""Why weights are not the reference's: which reordering of the one gives the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from quantkit.drift.findings import Piece, suspects
from quantkit.drift.result import TensorDrift
from quantkit.llama4.forward import Weights
from quantkit.llama4.forward.gguf_weights import text_shapes

Floats = npt.NDArray[np.float32]

_MOST = 24  # pieces of a file that are looked into: a broken converter breaks all, and in the same way
_MOST_WEIGHTS = 1 << 27  # of a piece; of a larger matrix only its first rows are looked at
_SAMPLE = 64  # rows or columns
_SAME = 0.7  # cosine of weights that are the same but for quantization


def diagnose(reference: Weights, candidate: Weights, tensors: Sequence[TensorDrift]) -> dict[Piece, str]:
    """In words, what became of pieces whose weights are wrong; those of which it does not show are left out.

    Looks for transposed matrices, rows or columns in another order, and weights of another expert or tensor. Takes the
    memory of a few experts in float32.
    """
    found: dict[Piece, str] = {}
    wrong = [(tensor, expert) for tensor in tensors for expert in suspects(tensor)]
    for tensor, expert in wrong[:_MOST]:
        cause = _cause(reference, candidate, tensor, expert)
        if cause:
            found[tensor.name, expert] = cause
    return found


def _cause(reference: Weights, candidate: Weights, tensor: TensorDrift, expert: int | None) -> str:
    if len(tensor.shape) < 2:
        return ""
    wanted, got = (_read(one, tensor, tensor.name, expert) for one in (reference, candidate))
    is_whole = wanted.shape == tensor.shape[-2:]
    if is_whole and _cosine(got.reshape(got.shape[::-1]).T, wanted) > _SAME:
        return "the matrix is transposed"
    for name, other in _others(reference, tensor, expert):
        if _cosine(_read(reference, tensor, name, other), got) > _SAME:
            return f"these are the weights of {f'expert {other}' if name == tensor.name else name}"
    for noun, one, two in (("rows", wanted, got), ("columns", wanted.T, got.T)):
        moved = _moved(one, two)
        if moved > 0.9:
            return f"{noun} are in another order"
        if moved > 0.05:
            return f"{100 * moved:.0f} % of the {noun} are others of the same matrix"
    if _cosine(np.sort(got, axis=None), np.sort(wanted, axis=None)) > 0.99 and abs(_cosine(got, wanted)) < 0.5:
        return "the same values, but in another order"
    return ""


def _read(weights: Weights, tensor: TensorDrift, name: str, expert: int | None) -> Floats:
    if expert is not None:
        (matrix,) = weights.matrices([name], expert)
    else:
        n_rows = min(tensor.shape[0], max(1, _MOST_WEIGHTS // tensor.shape[-1]))
        matrix = weights.rows(name, 0, n_rows)
    return matrix.tensor.dequantize()


def _others(weights: Weights, tensor: TensorDrift, expert: int | None) -> Iterator[tuple[str, int | None]]:
    """Weights of the same shape with which these may have been confused."""
    shapes = text_shapes(weights.hp)
    prefix = tensor.name.partition(".")[0] + "."
    if tensor.layer is not None:
        prefix = f"blk.{tensor.layer}."
    names = [name for name, shape in shapes.items() if shape == tensor.shape and name.startswith(prefix)]
    if expert is None:
        yield from ((name, None) for name in names if name != tensor.name)
        return
    for other in range(tensor.shape[0]):
        if other != expert:
            yield tensor.name, other
    yield from ((name, expert) for name in names if name != tensor.name)


def _moved(wanted: Floats, got: Floats) -> float:
    """The share of a sample of rows that are another row of the reference."""
    n = len(wanted)
    sample = np.unique(np.linspace(0, n - 1, min(n, _SAMPLE)).astype(int))
    cosines = _unit(got[sample]) @ _unit(wanted).T
    best = cosines.argmax(1)
    return float(((best != sample) & (cosines.max(1) > _SAME)).mean())


def _unit(rows: Floats) -> Floats:
    norms = np.sqrt(np.einsum("rc,rc->r", rows, rows))[:, None]
    unit: Floats = rows / np.where(norms > 0, norms, np.float32(1))
    return unit


def _cosine(a: Floats, b: Floats) -> float:
    one, two = a.reshape(-1), b.reshape(-1)
    product = float(np.linalg.norm(one)) * float(np.linalg.norm(two))
    return float(np.vdot(one, two)) / product if product else 0.0
