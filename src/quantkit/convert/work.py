"""What the plan hands to the walk, beyond what it shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from quantkit.checkpoint import Checkpoint
from quantkit.convert.journal import Standing
from quantkit.gguf import FilePlan
from quantkit.kernels.codec import Weighting
from quantkit.llama4 import OutputTensor, Slab

Importance = Mapping[str, npt.NDArray[np.float32]]  # GGUF tensor -> (experts, cols)


@dataclass(frozen=True)
class OutputWork:
    """One GGUF: its layout, and type and shape of each tensor.

    Args:
        tensors: (tensor, format), in file order.
        importance: for the tensors that have one.
        weighting: GGUF tensor -> what the encoder is told.
    """

    files: tuple[FilePlan, ...]
    tensors: tuple[tuple[OutputTensor, str], ...]
    importance: Importance
    weighting: Mapping[str, Weighting]


@dataclass(frozen=True)
class Work:
    """The whole run. `journal` is None when no output was named, and nothing can be written then."""

    checkpoint: Checkpoint
    slabs: tuple[Slab, ...]
    outputs: tuple[OutputWork, ...]
    journal: Path | None
    fingerprint: dict[str, Any]
    standing: Standing
