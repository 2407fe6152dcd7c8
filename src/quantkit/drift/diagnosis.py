"""Why weights are not the reference's: which reordering of the one gives the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from quantkit.drift.findings import Piece, is_lost, suspects
from quantkit.drift.result import TensorDrift
from quantkit.llama4.forward import Weights
from quantkit.llama4.forward.gguf_weights import text_shapes

Floats = npt.NDArray[np.float32]

_MOST = 24  # pieces of a file that are searched: a broken converter breaks all, and in the same way
_MOST_WEIGHTS = 1 << 27  # of a piece; of a larger matrix only its first rows are looked at
_BLOCKS = 16  # of rows, from which a transposition of such a matrix is told
_BLOCK_WEIGHTS = 1 << 20
_SAMPLE = 64  # rows or columns
_SAME = 0.7  # cosine of weights that are the same but for quantization
TRANSPOSED, REORDERED = "the matrix is transposed", "{} are in another order"
_COMMON = (TRANSPOSED, REORDERED.format("rows"), REORDERED.format("columns"))  # what may be the same in all pieces
UNSEARCHED = "weights have nothing to do with the reference's, and the cause was not looked for: it is not one of"


def diagnose(reference: Weights, candidate: Weights, tensors: Sequence[TensorDrift]) -> dict[Piece, str]:
    """In words, what became of pieces whose weights are wrong; those of which it does not show are left out.

    Looks for transposed matrices, rows or columns in another order, and weights of another expert or tensor. Takes the
    memory of a few experts in float32. Of many pieces of a kind some are searched: where all of these have one cause,
    the others are said to be judged by them, and where they do not, to be unsearched.
    """
    kinds: dict[str, list[tuple[TensorDrift, int | None]]] = {}
    for tensor in tensors:
        kinds.setdefault(_kind(tensor), []).extend((tensor, expert) for expert in suspects(tensor))
    kinds = {kind: pieces for kind, pieces in kinds.items() if pieces}
    most = max(1, _MOST // max(1, len(kinds)))
    found: dict[Piece, str] = {}
    for kind, pieces in kinds.items():
        places = sorted({int(at) for at in np.linspace(0, len(pieces) - 1, min(most, len(pieces)))})
        searched = {at: _cause(reference, candidate, *pieces[at]) for at in places}
        causes = {cause for at, cause in searched.items() if _is_lost(*pieces[at])}
        for at, (tensor, expert) in enumerate(pieces):
            cause = searched.get(at, "")
            if at not in searched and _is_lost(tensor, expert):
                shared = next(iter(causes)) if len(causes) == 1 and causes <= set(_COMMON) else ""
                cause = f"{shared}, to judge by" if shared else UNSEARCHED
                cause += f" the {len(places)} pieces of {kind} that were searched"
            if cause:
                found[tensor.name, expert] = cause
    return found


def _is_lost(tensor: TensorDrift, expert: int | None) -> bool:
    """Nothing is left of the reference's weights."""
    return is_lost(tensor.error if expert is None else tensor.experts[expert])


def _kind(tensor: TensorDrift) -> str:
    """A tensor's name without its layer."""
    return tensor.name if tensor.layer is None else tensor.name.split(".", 2)[2]


def _cause(reference: Weights, candidate: Weights, tensor: TensorDrift, expert: int | None) -> str:
    if len(tensor.shape) < 2:
        return ""
    wanted, got = (_read(one, tensor, tensor.name, expert) for one in (reference, candidate))
    if wanted.shape == tensor.shape[-2:]:
        if _cosine(got.reshape(got.shape[::-1]).T, wanted) > _SAME:
            return TRANSPOSED
    elif _is_transposed(reference, candidate, tensor):
        return TRANSPOSED
    for name, other in _others(reference, tensor, expert):
        if _cosine(_read(reference, tensor, name, other), got) > _SAME:
            return f"these are the weights of {f'expert {other}' if name == tensor.name else name}"
    for noun, one, two in (("rows", wanted, got), ("columns", wanted.T, got.T)):
        moved = _moved(one, two)
        if moved > 0.9:
            return REORDERED.format(noun)
        if moved > 0.05:
            return f"{100 * moved:.0f} % of the {noun} are others of the same matrix"
    if _cosine(np.sort(got, axis=None), np.sort(wanted, axis=None)) > 0.99 and abs(_cosine(got, wanted)) < 0.5:
        return "the same values, but in another order"
    return ""


def _is_transposed(reference: Weights, candidate: Weights, tensor: TensorDrift) -> bool:
    """Of a matrix too large to be held: what the transposition would put into a few blocks of the candidate's rows.

    The transposed matrix has its bytes in the other order: value k of its rows is that at row k % rows and column
    k // rows of the reference. A block's values lie in few columns and in all rows, so the reference's are read once,
    a stretch of rows at a time.
    """
    rows, cols = tensor.shape
    n_rows = max(1, _BLOCK_WEIGHTS // _BLOCKS // cols)
    firsts = np.unique(np.linspace(0, rows - n_rows, _BLOCKS).astype(int))
    got = np.stack([candidate.rows(tensor.name, int(at), n_rows).tensor.dequantize() for at in firsts])
    places = (firsts[:, None] * cols + np.arange(n_rows * cols)).reshape(-1)
    row, col = places % rows, places // rows
    order = np.argsort(row, kind="stable")
    wanted = np.empty(len(places), np.float32)
    step = max(1, _MOST_WEIGHTS // 4 // cols)
    for first in range(0, rows, step):
        stop = min(rows, first + step)
        mine = order[slice(*np.searchsorted(row[order], [first, stop]))]
        if len(mine):
            part = reference.rows(tensor.name, first, stop - first).tensor.dequantize()
            wanted[mine] = part[row[mine] - first, col[mine]]
    return _cosine(got.reshape(-1), wanted) > _SAME


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
