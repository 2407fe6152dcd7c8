"""Cutting claimed tensors into slabs that fit in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from quantkit.llama4.claims import Claim
from quantkit.llama4.model import ITEM_BYTES, OutputTensor, Slab, Target

MAX_SLAB_BYTES = 64 * 2**20


def cut(claims: Sequence[Claim], files: Sequence[Path], max_slab_bytes: int = MAX_SLAB_BYTES) -> list[Slab]:
    """All slabs, ordered as they lie in `files`.

    Matrices are cut between rows into slabs of at most `max_slab_bytes`, though never within a row. One expert of an
    input-major tensor is one slab whatever its size: every output row has elements in all of it.
    """
    place = {file: index for index, file in enumerate(files)}
    slabs = [slab for item in claims for slab in _slabs(item, max_slab_bytes)]
    return sorted(slabs, key=lambda slab: (place[slab.entry.file], slab.entry.offset_bytes + slab.offset_bytes))


def _slabs(item: Claim, max_slab_bytes: int) -> Iterator[Slab]:
    return _experts(item) if len(item.source.shape) == 3 else _rows(item, max_slab_bytes)


def _experts(item: Claim) -> Iterator[Slab]:
    n_experts, inputs, outputs = item.source.shape
    n_bytes = inputs * outputs * ITEM_BYTES[item.entry.dtype]
    for expert in range(n_experts):
        # output row r is the slab's column first_column + r
        targets = tuple(
            Target(part.tensor, expert, 0, part.n_rows, part.first_column, row_stride=1, col_stride=outputs)
            for part in item.source.parts
        )
        yield Slab(item.entry, expert * n_bytes, n_bytes, targets, item.scale)


def _rows(item: Claim, max_slab_bytes: int) -> Iterator[Slab]:
    rows, cols = item.source.shape if len(item.source.shape) == 2 else (1, item.source.shape[0])
    row_bytes = cols * ITEM_BYTES[item.entry.dtype]
    step = max(1, max_slab_bytes // row_bytes)
    (part,) = item.source.parts
    for start in range(0, rows, step):
        n_rows = min(step, rows - start)
        target = Target(part.tensor, part.expert or 0, start, n_rows, 0, row_stride=cols, col_stride=1)
        yield Slab(item.entry, start * row_bytes, n_rows * row_bytes, (target,), item.scale)


def outputs_of(claims: Sequence[Claim]) -> list[OutputTensor]:
    """The output tensors that the claimed sources fill, in no particular order."""
    found: dict[str, OutputTensor] = {}
    for item in claims:
        shape = item.source.shape
        for part in item.source.parts:
            if len(shape) == 3:
                full: tuple[int, ...] = (shape[0], part.n_rows, shape[1])
            elif item.source.n_experts is not None:
                full = (item.source.n_experts, *shape)
            else:
                full = shape
            found[part.tensor] = OutputTensor(part.tensor, full, item.source.keep)
    return list(found.values())
