"""Weights out of a checkpoint: slabs read, transposed where experts lie input-major, in the source's own precision."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt

from quantkit.checkpoint import Checkpoint
from quantkit.errors import NonFiniteError
from quantkit.kernels import encode_into, row_bytes
from quantkit.kernels.codec import Scalar
from quantkit.llama4.claims import FP8, Claim
from quantkit.llama4.fault import located
from quantkit.llama4.forward.buffers import Buffers
from quantkit.llama4.forward.floats import Floats
from quantkit.llama4.forward.weights import Matrix, refuse_unknown_functions
from quantkit.llama4.hyperparameters import Hyperparameters
from quantkit.llama4.model import ITEM_BYTES, Slab, Target
from quantkit.llama4.rope import rope_factors
from quantkit.llama4.scale import read_scales, row_scales
from quantkit.llama4.slabs import MAX_SLAB_BYTES
from quantkit.llama4.sources import Part
from quantkit.llama4.tensors import text_claims

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class _Place:
    """Where a matrix, one expert's or a norm lies."""

    claim: Claim
    part: Part

    @property
    def is_input_major(self) -> bool:
        return len(self.claim.source.shape) == 3

    @property
    def cols(self) -> int:
        return self.claim.source.shape[1 if len(self.claim.source.shape) > 1 else 0]

    @property
    def format(self) -> str:
        # codes times scale are numbers that neither 8 nor 16 bits hold
        return "f32" if self.claim.entry.dtype == FP8 else self.claim.entry.dtype.lower()

    def slab(self, expert: int) -> Slab:
        """The slab of an input-major expert, and in it this matrix."""
        n_experts, inputs, outputs = self.claim.source.shape
        n_bytes = self.claim.entry.n_bytes // n_experts
        target = Target(self.part.tensor, expert, 0, self.part.n_rows, self.part.first_column, 1, outputs)
        assert inputs == self.cols
        return Slab(self.claim.entry, expert * n_bytes, n_bytes, (target,), self.claim.scale)

    def row_slab(self, first: int, count: int) -> Slab:
        """The slab of rows of an output-major matrix."""
        n_bytes = self.cols * ITEM_BYTES[self.claim.entry.dtype]
        target = Target(self.part.tensor, self.part.expert or 0, first, count, 0, self.cols, 1)
        return Slab(self.claim.entry, first * n_bytes, count * n_bytes, (target,), self.claim.scale)


class CheckpointWeights:
    """See `Weights`. FP8 becomes float32, everything else stays as the checkpoint has it.

    Args:
        checkpoint: closed by `close`.
        hp: instead of config.json's.
        threads: of transposing; one, since it goes on while products are computed.
    """

    def __init__(self, checkpoint: Checkpoint, hp: Hyperparameters | None = None, threads: int = 1) -> None:
        self._checkpoint, self._threads = checkpoint, threads
        self.source = checkpoint.root
        self.hp = hp or Hyperparameters.from_checkpoint(checkpoint)
        refuse_unknown_functions(self.hp, self.source)
        self._places = {
            (part.tensor, part.expert): _Place(claim, part)
            for claim in text_claims(checkpoint, self.hp)
            for part in claim.source.parts
        }
        self.reading_bytes = max(
            place.claim.entry.n_bytes // place.claim.source.shape[0]
            if place.is_input_major
            else min(place.claim.entry.n_bytes, MAX_SLAB_BYTES)
            for place in self._places.values()
        )
        self._buffer = np.empty(0, np.uint8)
        self._buffers = Buffers()
        self._lock = threading.Lock()

    def rope_divisors(self) -> Floats | None:
        scaling = self.hp.rope_scaling
        return None if scaling is None else rope_factors(scaling, self.hp.rope_theta, self.hp.head_dim)

    def vector(self, name: str) -> Floats:
        values: Floats = self.rows(name, 0, 1).tensor.dequantize()[0]
        return values

    def matrices(self, names: Sequence[str], expert: int | None = None) -> list[Matrix]:
        found: dict[str, Matrix] = {}
        with self._lock:
            loaded: tuple[str, int] | None = None
            for name in names:
                place = self._place(name, expert)
                if not place.is_input_major:
                    found[name] = self._read_rows(place, 0, place.part.n_rows)
                    continue
                slab = place.slab(expert or 0)
                if loaded != (slab.entry.name, slab.offset_bytes):  # gate and up are halves of one
                    self._load(slab)
                    loaded = (slab.entry.name, slab.offset_bytes)
                out = self._rows_of(place, place.part.n_rows)
                self._encode(slab, out, place)
                found[name] = Matrix(name, out, place.format)
        return [found[name] for name in names]

    def rows(self, name: str, first: int, count: int) -> Matrix:
        with self._lock:
            return self._read_rows(self._place(name, None), first, count)

    def n_bytes(self, name: str) -> int:
        place = self._places.get((name, None)) or self._places[name, 0]
        return place.part.n_rows * row_bytes(place.format, place.cols)

    def give_back(self, matrices: Iterable[Matrix]) -> None:
        for matrix in matrices:
            self._buffers.give(matrix.packed)

    def close(self) -> None:
        self._checkpoint.close()

    def _place(self, name: str, expert: int | None) -> _Place:
        # experts have places of their own where they are stored one by one
        return self._places.get((name, expert)) or self._places[name, None]

    def _read_rows(self, place: _Place, first: int, count: int) -> Matrix:
        out = self._rows_of(place, count)
        step = max(1, MAX_SLAB_BYTES // (place.cols * ITEM_BYTES[place.claim.entry.dtype]))
        for start in range(0, count, step):
            part = out[start : start + step]
            slab = place.row_slab(first + start, len(part))
            self._load(slab)
            self._encode(slab, part, place)
        return Matrix(place.part.tensor, out, place.format)

    def _rows_of(self, place: _Place, count: int) -> Bytes:
        n_bytes = row_bytes(place.format, place.cols)
        return self._buffers.take(count * n_bytes).reshape(count, n_bytes)

    def _load(self, slab: Slab) -> None:
        if self._buffer.size < slab.n_bytes:
            self._buffer = np.empty(slab.n_bytes, np.uint8)
        self._checkpoint.read_into(slab.entry, self._buffer.data, slab.offset_bytes, slab.n_bytes)

    def _encode(self, slab: Slab, out: Bytes, place: _Place) -> None:
        """From the buffer, which holds `slab`."""
        (target,) = slab.targets
        try:
            encode_into(
                out,
                self._buffer[: slab.n_bytes],
                format=place.format,
                dtype=cast(Scalar, slab.entry.dtype.lower()),
                rows=target.n_rows,
                cols=place.cols,
                offset_elements=target.offset_elements,
                row_stride=target.row_stride,
                col_stride=target.col_stride,
                scale=row_scales(read_scales(self._checkpoint, slab), target, 0, target.n_rows),
                threads=self._threads,
            )
        except NonFiniteError as error:
            raise located(error, slab, target, 0) from error
