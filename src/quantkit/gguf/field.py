"""One key-value pair of a GGUF header."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gguf import GGUFValueType


@dataclass(frozen=True)
class Field:
    """A key, its value and the type that it is stored as.

    Args:
        key: ASCII, for instance `llama4.block_count`.
        value: what `type` says; a non-empty sequence for arrays.
        type: GGUF's value type.
        sub_type: the items' type, for arrays only; None lets the `gguf` package infer it from the items.
    """

    key: str
    value: Any
    type: GGUFValueType
    sub_type: GGUFValueType | None = None
