"""Where the blocks of each format keep their scales."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from quantkit.kernels.formats import find_format

Bytes = npt.NDArray[np.uint8]

F16_SCALES: dict[str, tuple[int, ...]] = {
    "q4_0": (0,),
    "q4_1": (0, 2),
    "q5_0": (0,),
    "q5_1": (0, 2),
    "q8_0": (0,),
    "q2_k": (80, 82),
    "q3_k": (108,),
    "q4_k": (0, 2),
    "q5_k": (0, 2),
    "q6_k": (208,),
    "iq4_nl": (0,),
    "iq4_xs": (0,),
    "mxfp4": (),
}
"""Byte offsets of the f16 scales (and offsets, which scale with the weights too) within a block."""

E8M0_SCALES: dict[str, tuple[int, ...]] = {"mxfp4": (0,)}
"""Byte offsets of scales that are an exponent and nothing else."""


def split_scales(packed: Bytes, format: str) -> tuple[npt.NDArray[np.float64], Bytes]:
    """Scales (blocks, n) as numbers, those of E8M0 without the power that the format's values are counted in; and the
    blocks (blocks, block_bytes) with zeros in the scales' place. For formats with blocks only."""
    blocks = packed.reshape(-1, find_format(format).block_bytes).copy()
    columns: list[npt.NDArray[Any]] = []
    for offset in F16_SCALES[format]:
        columns.append(np.ascontiguousarray(blocks[:, offset : offset + 2]).view("<f2")[:, 0].astype(np.float64))
        blocks[:, offset : offset + 2] = 0
    for offset in E8M0_SCALES.get(format, ()):
        columns.append(np.ldexp(1.0, blocks[:, offset].astype(np.int64) - 127))
        blocks[:, offset] = 0
    return np.stack(columns, axis=-1), blocks
