"""The list of formats, as the machine room was built with it (csrc/formats/formats.def)."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from quantkit.errors import UsageError
from quantkit.kernels import _machine


@dataclass(frozen=True)
class Format:
    """A GGUF tensor type that quantkit encodes and decodes."""

    name: str
    ggml_type: int
    """ggml's number of the type, as a GGUF stores it."""
    block_size: int
    """Weights per block; a row is a whole number of blocks."""
    block_bytes: int
    max_abs: float
    """The largest magnitude that can be encoded."""

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.block_bytes / self.block_size


FORMATS: dict[str, Format] = {row[0]: Format(*row) for row in _machine.formats()}


def find_format(name: str) -> Format:
    """The format of that name; UsageError with the nearest names otherwise."""
    if isinstance(name, str) and name in FORMATS:
        return FORMATS[name]
    near = difflib.get_close_matches(name, FORMATS, 3) if isinstance(name, str) else []
    hint = f"Did you mean {' or '.join(near)}?" if near else f"Known formats: {', '.join(FORMATS)}."
    if isinstance(name, str) and name.startswith("int"):
        hint = "Groups are quantized by QuantizedTensor.quantize or quantize_groups."
    raise UsageError(f"unknown format {name!r}", hint=hint)


def row_bytes(format: str, cols: int) -> int:
    """Bytes of one row of `cols` weights. UsageError when cols is not a whole number of blocks."""
    found = find_format(format)
    if cols % found.block_size:
        raise UsageError(
            f"{format} stores blocks of {found.block_size} weights, and a row of {cols} is not a whole number of them"
        )
    return cols // found.block_size * found.block_bytes
