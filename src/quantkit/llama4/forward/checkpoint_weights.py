"""Weights out of a checkpoint, in the source's own precision; experts may stay input-major, as it has them."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import cast

import numpy as np
import numpy.typing as npt

from quantkit.checkpoint import Checkpoint
from quantkit.errors import NonFiniteError
from quantkit.kernels import FORMATS, encode_into, row_bytes
from quantkit.kernels.codec import Scalar
from quantkit.kernels.panel import InputMajorWeights
from quantkit.llama4.claims import FP8, Claim
from quantkit.llama4.fault import located
from quantkit.llama4.forward.buffers import Buffers
from quantkit.llama4.forward.floats import Floats
from quantkit.llama4.forward.weights import Matrix, refuse_unknown_functions
from quantkit.llama4.hyperparameters import Hyperparameters
from quantkit.llama4.model import ITEM_BYTES, Slab, Target
from quantkit.llama4.rope import rope_factors
from quantkit.llama4.scale import read_scales, row_scales
from quantkit.llama4.sources import Part
from quantkit.llama4.tensors import text_claims

Bytes = npt.NDArray[np.uint8]
_STEP_BYTES = 1 << 19  # read at a time: a core's cache holds them until they are checked and put in place


@dataclass(frozen=True)
class _Place:
    """Where a matrix, one expert's or a norm lies: in lines of its source, which are its rows, or if input-major its
    columns."""

    claim: Claim
    part: Part

    @property
    def is_input_major(self) -> bool:
        return len(self.claim.source.shape) == 3

    @property
    def format(self) -> str:
        # codes times scale are numbers that neither 8 nor 16 bits hold
        return "f32" if self.claim.entry.dtype == FP8 else self.claim.entry.dtype.lower()

    @property
    def n_lines(self) -> int:
        """Of a matrix, or of one expert."""
        return self.claim.source.shape[1] if self.is_input_major else self.part.n_rows

    @property
    def width(self) -> int:
        """Elements of a line that belong to it."""
        return self.part.n_rows if self.is_input_major else self.claim.source.shape[-1]

    @property
    def line_bytes(self) -> int:
        """Of the source."""
        return self.claim.source.shape[-1] * ITEM_BYTES[self.claim.entry.dtype]

    def slab(self, first: int, count: int) -> Slab:
        """Lines of the source, and in them this matrix."""
        expert = first // self.n_lines if self.is_input_major else self.part.expert or 0
        stride = self.claim.source.shape[-1]
        target = Target(self.part.tensor, expert, first, count, self.part.first_column, stride, 1)
        return Slab(self.claim.entry, first * self.line_bytes, count * self.line_bytes, (target,), self.claim.scale)


class CheckpointWeights:
    """See `Weights`. FP8 becomes float32, everything else stays as the checkpoint has it.

    Args:
        checkpoint: closed by `close`.
        hp: instead of config.json's.
        threads: of putting in place; one, since it goes on while products are computed.
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
        # lines on their way, and a matrix that is turned
        self.reading_bytes = max(
            max(_STEP_BYTES, place.line_bytes) + place.is_input_major * self.n_bytes(tensor)
            for (tensor, _), place in self._places.items()
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

    def matrices(self, names: Sequence[str], expert: int | None = None, *, input_major: bool = False) -> list[Matrix]:
        places = [self._place(name, expert) for name in names]
        found: list[Matrix] = []
        with self._lock:
            for _, group in groupby(places, key=lambda place: place.claim.entry.name):  # gate and up are halves of one
                together = list(group)
                n_lines = together[0].n_lines
                first = (expert or 0) * n_lines if together[0].is_input_major else 0
                found += self._read(together, first, n_lines)
        return found if input_major else [self._turned(matrix) if matrix.input_major else matrix for matrix in found]

    def rows(self, name: str, first: int, count: int) -> Matrix:
        with self._lock:
            return self._read([self._place(name, None)], first, count)[0]

    def n_bytes(self, name: str) -> int:
        place = self._places.get((name, None)) or self._places[name, 0]
        return place.n_lines * row_bytes(place.format, place.width)

    def give_back(self, matrices: Iterable[Matrix]) -> None:
        for matrix in matrices:
            self._buffers.give(matrix.packed)

    def close(self) -> None:
        self._checkpoint.close()

    def _place(self, name: str, expert: int | None) -> _Place:
        # experts have places of their own where they are stored one by one
        return self._places.get((name, expert)) or self._places[name, None]

    def _read(self, places: Sequence[_Place], first: int, count: int) -> list[Matrix]:
        """Lines of a source that all the places have, so few at a time that a cache holds them."""
        claim = places[0].claim
        found = [
            Matrix(place.part.tensor, self._lines(place.format, count, place.width), place.format, place.is_input_major)
            for place in places
        ]
        step = max(1, _STEP_BYTES // places[0].line_bytes)
        for start in range(0, count, step):
            n_lines = min(step, count - start)
            slabs = [place.slab(first + start, n_lines) for place in places]
            if self._buffer.size < slabs[0].n_bytes:
                self._buffer = np.empty(slabs[0].n_bytes, np.uint8)
            self._checkpoint.read_into(claim.entry, self._buffer.data, slabs[0].offset_bytes, slabs[0].n_bytes)
            for slab, matrix, place in zip(slabs, found, places, strict=True):
                self._encode(slab, matrix.packed[start : start + n_lines], place)
        return found

    def _turned(self, matrix: Matrix) -> Matrix:
        """With outputs as rows."""
        stored = InputMajorWeights(matrix.packed, FORMATS[matrix.format])
        out = self._lines(matrix.format, *stored.shape)
        stored.transpose(0, out, matrix.format, self._threads)
        self._buffers.give(matrix.packed)
        return Matrix(matrix.name, out, matrix.format)

    def _lines(self, format: str, count: int, width: int) -> Bytes:
        n_bytes = row_bytes(format, width)
        return self._buffers.take(count * n_bytes).reshape(count, n_bytes)

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
                cols=place.width,
                offset_elements=target.offset_elements,
                row_stride=target.row_stride,
                scale=row_scales(read_scales(self._checkpoint, slab), target, 0, target.n_rows),
                threads=self._threads,
            )
        except NonFiniteError as error:
            raise located(error, slab, target, 0) from error
