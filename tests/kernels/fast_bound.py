"""What the fast products may be off by, derived from the layout of the weights and from how csrc/matmul computes.

x becomes codes of blocks with a step m / 127, m the block's largest |x|, or in panels of iq4_xs a 256th of the largest
sum of four of them if that is more: half a step an element. The rest is rounding
in float32 of terms |x| (|scale * code| + |minimum|): at most sixteen a term (its scales, their product, the product
with the integer sum, minimum, decoding itself, and the tree of lanes), and one for the sum over each block.
The offset of codes is taken from integer sums. Panels of super-blocks but iq4_xs cut these to sixteen bits besides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from quantkit.kernels import FORMATS, QuantizedTensor, dequantize
from quantkit.kernels.group_format import find_group_format

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

FEW = 3  # rows of x that are not multiplied in panels
# Where a block has its codes. With all bits 0 and all bits 1 they are its first and its last code, but for q8_0 and
# mxfp4, which have no minimum: there a term is no larger than the weight.
CODES = {
    "q4_0": slice(2, 18),
    "q4_1": slice(4, 20),
    "q5_0": slice(2, 22),
    "q5_1": slice(4, 24),
    "q8_0": slice(2, 34),
    "q2_k": slice(16, 80),
    "q3_k": slice(0, 96),
    "q4_k": slice(16, 144),
    "q5_k": slice(16, 176),
    "q6_k": slice(0, 192),
    "iq4_nl": slice(2, 18),
    "iq4_xs": slice(8, 136),
    "mxfp4": slice(1, 17),
}
# Of super-blocks: the last code less the first in scales, columns of a scale, and by how many bits a panel cuts sums of
# products so that they fit in 16.
SUPER: dict[str, tuple[int, int, int]] = {
    "q2_k": (3, 16, 0),
    "q3_k": (7, 16, 0),
    "q4_k": (15, 32, 1),
    "q5_k": (31, 32, 2),
    "q6_k": (63, 16, 1),
    "iq4_xs": (240, 32, 0),
}


@dataclass(frozen=True)
class Operand:
    """A matrix of packed weights as the derivation sees it.

    Attributes:
        weights: (rows, cols) decoded.
        reach: (rows, cols / 32) at least |scale * code| + |minimum| in each 32 columns.
        lost: (rows, cols / 256) of super-blocks: what cutting sums takes at most, in steps of x; else None.
        whole_scales: few rows of x take its scales as whole numbers.
        limited: panels keep four codes of x together below 258.
    """

    weights: Doubles
    reach: Doubles
    lost: Doubles | None = None
    whole_scales: bool = False
    limited: bool = False

    def block(self, n: int) -> int:
        """Columns of n rows of x that share a step."""
        return 256 if self.lost is not None and (n > FEW or self.whole_scales) else 32

    def steps(self, x: Floats) -> tuple[Floats, Floats]:
        """Per block of x, (n, cols / block): a magnitude, and the code that it has. Their ratio is the step."""
        size = self.block(len(x))
        blocks = np.abs(x).reshape(len(x), x.shape[1] // size, size)
        largest, code = blocks.max(axis=2), np.float32(127)
        if not self.limited or len(x) <= FEW:
            return largest, np.full_like(largest, code)
        columns = blocks.reshape(*largest.shape, 32, 2, 2, 2) * np.float32(0.25)  # of eight: 0, 1, 4, 5; 2, 3, 6, 7
        pairs = columns[..., 0] + columns[..., 1]
        quarter = (pairs[..., 0, :] + pairs[..., 1, :]).max(axis=(2, 3))
        more = quarter / np.float32(64) > largest / code
        return np.where(more, quarter, largest), np.where(more, np.float32(64), code)


def operand(packed: npt.NDArray[Any] | QuantizedTensor, name: str = "") -> Operand:
    """uint8 (rows, row_bytes) of a format, or a matrix of groups."""
    if isinstance(packed, QuantizedTensor):
        if find_group_format(packed.format) is not None:
            return _of_groups(packed)
        packed, name = packed.packed, packed.format
    weights = dequantize(packed, name).astype(np.float64)
    ends = np.repeat(packed.reshape(1, -1, FORMATS[name].block_bytes), 2, axis=0)
    ends[0, :, CODES[name]], ends[1, :, CODES[name]] = 0, 255
    low, high = (dequantize(one.reshape(packed.shape), name).astype(np.float64) for one in ends)
    per_element = np.maximum(np.abs(weights), np.abs(high - low) + np.abs(low))
    reach = per_element.reshape(len(packed), -1, 32).max(axis=2)
    if name not in SUPER:
        return Operand(weights, reach)
    span, size, shift = SUPER[name]
    scales = (np.abs(high - low) + 2.0**-22 * (np.abs(high) + np.abs(low))) / span  # low and high are rounded
    scales = scales.reshape(len(packed), -1, 256)[:, :, ::size].sum(axis=2)
    limited = name == "iq4_xs"
    return Operand(weights, reach, 2**shift // 2 * scales, whole_scales=not limited, limited=limited)


def _of_groups(qt: QuantizedTensor) -> Operand:
    weights = qt.dequantize().astype(np.float64)
    ones = QuantizedTensor(np.full_like(qt.packed, 2**32 - 1), qt.format, qt.scales, qt.biases)
    zeros = QuantizedTensor(np.zeros_like(qt.packed), qt.format, qt.scales, qt.biases)
    low, high = zeros.dequantize().astype(np.float64), ones.dequantize().astype(np.float64)
    per_element = np.abs(high - low) * (1 + 2.0**-20) + np.abs(low) * (1 + 2.0**-20)
    reach = per_element.reshape(len(qt), -1, 32).max(axis=2)
    return Operand(weights, reach)


def quantized_activations(x: Floats, w: Operand) -> Doubles:
    """What the products see: codes of at most 127, times steps."""
    largest, code = (each[..., np.newaxis] for each in w.steps(x))
    size = w.block(len(x))
    codes = np.rint(x.reshape(len(x), x.shape[1] // size, size) * (code / largest))
    assert np.abs(codes).max() <= 127
    return (codes.astype(np.float64) * (largest / code)).reshape(x.shape)


def _steps(x: npt.NDArray[Any], w: Operand) -> Doubles:
    largest, code = w.steps(x)
    return largest.astype(np.float64) / code


def computing(x: npt.NDArray[Any], w: Operand) -> Doubles:
    """A bound of what is lost beside the rounding of x: float32 and cut sums, (n, rows)."""
    size, cols = w.block(len(x)), x.shape[1]
    roundings = (cols / 32 + 16) * 2.0**-24
    seen = np.abs(x).astype(np.float64).reshape(len(x), cols // 32, 32).sum(axis=2)
    seen += 32 / 2 * np.repeat(_steps(x, w), size // 32, axis=1)
    # a product of two scales that underflows is off by up to 2^-150, times an integer sum below 2^27
    lost = roundings / (1 - roundings) * (seen @ w.reach.T) + cols / 32 * 2.0**-123
    if len(x) > FEW and w.lost is not None:
        lost += _steps(x, w) @ w.lost.T
    return lost


def fast_bound(x: npt.NDArray[Any], w: Operand) -> Doubles:
    """The most that each element of the product may be off, (n, rows): half a step of x, 2^-23 of it for the rounding
    of steps and codes, blocks below 2^-100 that count as zero, and computing()."""
    size = w.block(len(x))
    magnitudes = np.abs(w.weights).reshape(len(w.weights), x.shape[1] // size, size).sum(axis=2)
    steps = _steps(x, w) * (0.5 + 2.0**-15) + 2.0**-100
    return steps @ magnitudes.T + computing(x, w)
