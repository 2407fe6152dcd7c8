"""Which experts a token goes to, and with what weight."""

from __future__ import annotations

import numpy as np

from quantkit.llama4.forward.floats import Floats, Ids


def choose(logits: Floats, n_used: int) -> Ids:
    """The experts with the largest logits, largest first, of equal ones the lowest: (n, experts) -> (n, n_used)."""
    return np.argsort(-logits, axis=1, kind="stable")[:, :n_used]


def sigmoid(x: Floats) -> Floats:
    """1 / (1 + exp(-x)) without overflow."""
    small = np.exp(-np.abs(x))
    y: Floats = np.where(x >= 0, np.float32(1), small) / (np.float32(1) + small)
    return y
