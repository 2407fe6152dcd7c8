"""What a type leaves of weights when nothing is wrong, and the next type that leaves more."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from quantkit.kernels import FORMATS, QuantizedTensor

if TYPE_CHECKING:
    from quantkit.drift.result import TensorDrift

_ROWS, _COLS = 64, 1024
_SUPER_BLOCK = 256
_SLACK = 1.5  # other encoders, importance and heavy tails cost this much, and faults far more
_LEAST = 1e-3  # below it nothing is called a fault: floats of another kind


@cache
def expected_error(type: str) -> float | None:
    """Relative error of quantkit's encoder on normally distributed weights; None for a type that it does not encode."""
    if type not in FORMATS:
        return None
    weights = np.random.default_rng(0).standard_normal((_ROWS, _COLS), np.float32)
    return QuantizedTensor.quantize(weights, type, threads=1).error(weights).relative


def largest_error(type: str, bits_per_weight: float) -> float:
    """The relative error beyond which something else than the type must be the cause.

    Args:
        bits_per_weight: tells of a type that quantkit does not encode how good it can be, in the order of magnitude.
    """
    expected = expected_error(type)
    return max(_LEAST, 2 ** (1.1 - bits_per_weight) if expected is None else _SLACK * expected)


@dataclass(frozen=True)
class Improvement:
    """The next type up for a tensor.

    Args:
        type: "q5_k".
        relative_error: that the tensor would have, about.
        bytes: more than now.
    """

    type: str
    relative_error: float
    bytes: int


def improvement(tensor: TensorDrift) -> Improvement | None:
    """The next type up of the same family, and the error to expect: the tensor's own, times the ratio of what both
    types leave of normally distributed weights. None for floats.

    Families are k-quants with q8_0 for rows of super-blocks, and q4_0 q5_0 q8_0 or q4_1 q5_1 q8_0 for others.
    """
    if tensor.type in ("f32", "f16", "bf16") or len(tensor.shape) < 2:
        return None
    n_weights = int(np.prod(tensor.shape))
    bits = 8 * tensor.bytes / n_weights
    now = expected_error(tensor.type)
    for name in (*_family(tensor), "q8_0", "bf16"):
        found = FORMATS[name]
        expected = expected_error(name)
        assert expected is not None
        if found.bits_per_weight <= bits or (now is not None and expected >= now) or name == tensor.type:
            continue
        error = expected if now is None else min(tensor.error.relative_error, 1.0) * expected / now
        return Improvement(name, error, round(n_weights * found.bits_per_weight / 8) - tensor.bytes)
    return None


def _family(tensor: TensorDrift) -> list[str]:
    in_blocks_of_32 = tensor.type in FORMATS and FORMATS[tensor.type].block_size < _SUPER_BLOCK
    if in_blocks_of_32 or tensor.shape[-1] % _SUPER_BLOCK:
        ending = "_1" if tensor.type.endswith("_1") else "_0"
    else:
        ending = "_k"
    return sorted((name for name in FORMATS if name.endswith(ending)), key=lambda name: FORMATS[name].bits_per_weight)
