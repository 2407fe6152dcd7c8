"""Weights out of a GGUF: packed bytes as they are, or float32 where the machine room does not know their type."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from quantkit.checkpoint.reader import FileReader
from quantkit.errors import CheckpointError, UsageError
from quantkit.gguf import GgufFile, GgufTensor
from quantkit.kernels import FORMATS, row_bytes
from quantkit.llama4.forward import foreign
from quantkit.llama4.forward.buffers import Buffers
from quantkit.llama4.forward.floats import Floats
from quantkit.llama4.forward.weights import Matrix, refuse_unknown_functions
from quantkit.llama4.gguf_hyperparameters import gguf_hyperparameters
from quantkit.llama4.hyperparameters import Hyperparameters
from quantkit.llama4.rope import rope_factors
from quantkit.llama4.sources import text_sources

ROPE = "rope_freqs.weight"


class GgufWeights:
    """See `Weights`. Read into memory, not mapped: what has been used does not count as the process's memory.

    Args:
        file: what `open_gguf` returned.
        hp: instead of the file's keys and the runtime's constants.
    """

    def __init__(self, file: GgufFile, hp: Hyperparameters | None = None) -> None:
        self.source = file.files[0]
        self.hp = hp or gguf_hyperparameters(file)
        refuse_unknown_functions(self.hp, self.source)
        self._tensors = {tensor.name: tensor for tensor in file.tensors}
        self._reader = FileReader()
        self._buffers = Buffers()
        for name, shape in text_shapes(self.hp).items():
            self._check(name, shape)
        if ROPE in self._tensors:
            self._check(ROPE, (self.hp.head_dim // 2,))
        self.reading_bytes = max(
            (
                foreign.reading_bytes(tensor.type, _n_rows(tensor), tensor.shape[-1])
                for tensor in file.tensors
                if tensor.type not in FORMATS
            ),
            default=0,
        )

    def _check(self, name: str, shape: tuple[int, ...]) -> None:
        tensor = self._tensors.get(name)
        if tensor is None:
            raise CheckpointError(f"{self.source}: tensor {name} {list(shape)} is missing")
        if tensor.shape != shape:
            raise CheckpointError(f"{tensor.file}: {name} has shape {list(tensor.shape)}, and the keys make it {shape}")
        if tensor.type not in FORMATS and not foreign.is_known(tensor.type):
            hint = f"Known: {', '.join(FORMATS)}, and what the gguf package decodes; a newer one may decode more."
            raise UsageError(f"{tensor.file}: {name} is {tensor.type}, which quantkit does not decode", hint=hint)

    def rope_divisors(self) -> Floats | None:
        if ROPE in self._tensors:
            return self.vector(ROPE)
        scaling = self.hp.rope_scaling  # of constants that were given
        return None if scaling is None else rope_factors(scaling, self.hp.rope_theta, self.hp.head_dim)

    def vector(self, name: str) -> Floats:
        values: Floats = self.rows(name, 0, 1).tensor.dequantize()[0]
        return values

    def matrices(self, names: Sequence[str], expert: int | None = None, *, input_major: bool = False) -> list[Matrix]:
        return [self._read(name, (expert or 0) * _n_rows(self._tensors[name])) for name in names]

    def rows(self, name: str, first: int, count: int) -> Matrix:
        return self._read(name, first, count)

    def n_bytes(self, name: str) -> int:
        tensor = self._tensors[name]
        return _n_rows(tensor) * row_bytes(tensor.type if tensor.type in FORMATS else "f32", tensor.shape[-1])

    def give_back(self, matrices: Iterable[Matrix]) -> None:
        for matrix in matrices:
            self._buffers.give(matrix.packed)

    def close(self) -> None:
        self._reader.close()

    def _read(self, name: str, first: int, count: int | None = None) -> Matrix:
        """`count` rows from the `first` on, those of all experts counted; an expert's, or all of a matrix, for None."""
        tensor = self._tensors[name]
        is_ours, cols = tensor.type in FORMATS, tensor.shape[-1]
        n_bytes = row_bytes(tensor.type, cols) if is_ours else foreign.row_bytes(tensor.type, cols)
        n_rows = _n_rows(tensor) if count is None else count
        packed = self._buffers.take(n_rows * n_bytes).reshape(n_rows, n_bytes)
        try:
            self._reader.read_into(tensor.file, packed.reshape(-1).data, tensor.offset_bytes + first * n_bytes)
        except (OSError, EOFError) as error:
            raise CheckpointError(f"{tensor.file}: {name} cannot be read: {error}") from error
        if not is_ours:
            return Matrix(f"{tensor.file}: {name}", foreign.decoded(packed, tensor.type, cols).view(np.uint8), "f32")
        return Matrix(f"{tensor.file}: {name}", packed, tensor.type)


def _n_rows(tensor: GgufTensor) -> int:
    """Of a matrix, or of one expert."""
    return tensor.shape[-2] if len(tensor.shape) > 1 else 1


def text_shapes(hp: Hyperparameters) -> dict[str, tuple[int, ...]]:
    """Shapes in numpy order of all tensors that a text model has, by GGUF name."""
    found: dict[str, tuple[int, ...]] = {}
    for source in text_sources(hp):
        for part in source.parts:
            shape = source.shape
            found[part.tensor] = (shape[0], part.n_rows, shape[1]) if len(shape) == 3 else shape
    return found
