"""A model as a list of slabs to read and a list of tensors to write."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quantkit.checkpoint import TensorEntry
from quantkit.gguf import Field

# What the encoder's sources are called, by safetensors' spelling, and their sizes.
ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1}


@dataclass(frozen=True)
class Target:
    """Rows of one output tensor that lie in one slab.

    Element (i, j) of them is element offset_elements + i * row_stride + j * col_stride of the slab.

    Args:
        tensor: GGUF name.
        expert: index along the first of three axes, 0 for other tensors.
        row_start: first row, within the expert; a 1-D tensor is one row.
        n_rows: how many.
        offset_elements, row_stride, col_stride: in elements of the slab.
    """

    tensor: str
    expert: int
    row_start: int
    n_rows: int
    offset_elements: int
    row_stride: int
    col_stride: int


@dataclass(frozen=True)
class Slab:
    """One contiguous byte range of one checkpoint tensor.

    Args:
        entry: the tensor.
        offset_bytes: of the range, relative to the tensor.
        n_bytes: length of the range.
        targets: what lies in it.
        scale: fp8 only: a tensor of one element, or of one per row of the checkpoint tensor
            (row `target.row_start + i` of the target is row `target.row_start + i` of the scale).
    """

    entry: TensorEntry
    offset_bytes: int
    n_bytes: int
    targets: tuple[Target, ...]
    scale: TensorEntry | None = None


@dataclass(frozen=True)
class OutputTensor:
    """One tensor of the GGUF.

    Args:
        name: GGUF name.
        shape: numpy order, (experts, rows, cols), (rows, cols) or (n,).
        keep: the format that it has in every recipe ("f32" for norms, router, 1-D), None for what a recipe chooses.
        values: float32, for tensors that are computed and lie in no slab.
    """

    name: str
    shape: tuple[int, ...]
    keep: str | None = None
    values: npt.NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Model:
    """All that is written to one GGUF, and where it comes from.

    Args:
        outputs: in the order of the file.
        slabs: in the order of the checkpoint's files, so that they are read from front to back.
        metadata: all keys but `general.quantization_version`, `general.file_type`, `quantize.imatrix.*`
            and `quantkit.*` (see `provenance`), which are appended in this order.
    """

    outputs: list[OutputTensor]
    slabs: list[Slab]
    metadata: list[Field]


def file_order(output: OutputTensor) -> tuple[int, str]:
    """llama-quantize's order: tensors outside of blocks, then block by block, by name."""
    kind, _, rest = output.name.partition(".")
    number = rest.partition(".")[0]
    return (int(number) if kind == "blk" and number.isdecimal() else -1, output.name)
