"""The kinds of arrays that the forward pass is made of."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
Rows = slice | Ids  # of hidden states
