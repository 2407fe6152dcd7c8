"""One JSON object of a configuration file, read key by key, with types, ranges and errors that name the key."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantkit.errors import CheckpointError

U32_MAX = 2**32 - 1


class Section:
    """A JSON object inside `file`; a missing key and null are the same thing, as they are to transformers.

    Args:
        file: the file that errors name.
        values: the object.
        path: dotted path of the object inside the file, "" for the file itself.
    """

    def __init__(self, file: Path, values: Mapping[str, Any], path: str = "") -> None:
        self.file = file
        self.values = values
        self.path = path

    def __contains__(self, key: str) -> bool:
        return self.values.get(key) is not None

    def wrong(self, key: str, expected: str) -> CheckpointError:
        """The error for a value that is missing, of another type, or out of range."""
        where = f"{self.path}.{key}" if self.path else key
        value = self.values.get(key)
        if value is None:
            return CheckpointError(f"{self.file}: {where} is missing, expected {expected}")
        shown = repr(value)
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        return CheckpointError(f"{self.file}: {where} is {shown}, expected {expected}")

    def section(self, key: str) -> Section | None:
        """The object under `key`, None when there is none."""
        if key not in self:
            return None
        if not isinstance(self.values[key], dict):
            raise self.wrong(key, "an object")
        return Section(self.file, self.values[key], f"{self.path}.{key}" if self.path else key)

    def integer(self, key: str, *, default: int | None = None, minimum: int = 1, maximum: int = U32_MAX) -> int:
        if key not in self and default is not None:
            return default
        value = self.values.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not minimum <= value <= maximum:
            raise self.wrong(key, f"an integer from {minimum} to {maximum}")
        return value

    def number(self, key: str, *, default: float | None = None, positive: bool = True) -> float:
        if key not in self and default is not None:
            return default
        value = self.values.get(key)
        # float(10**400) overflows, hence the bound before the conversion
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= 3e38:
            raise self.wrong(key, "a finite number")
        if not math.isfinite(value) or (positive and not value > 0):
            raise self.wrong(key, "a number above 0" if positive else "a finite number")
        return float(value)

    def boolean(self, key: str, *, default: bool) -> bool:
        if key not in self:
            return default
        value = self.values[key]
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def string(self, key: str, *, default: str) -> str:
        if key not in self:
            return default
        value = self.values[key]
        if not isinstance(value, str):
            raise self.wrong(key, "a string")
        return value

    def integers(self, key: str, *, maximum: int = U32_MAX) -> tuple[int, ...] | None:
        """A list of integers from 0 to `maximum`, None when there is none."""
        if key not in self:
            return None
        value = self.values[key]
        if not isinstance(value, list) or not all(
            isinstance(item, int) and not isinstance(item, bool) and 0 <= item <= maximum for item in value
        ):
            raise self.wrong(key, f"a list of integers from 0 to {maximum}")
        return tuple(value)

    def numbers(self, key: str, *, length: int) -> tuple[float, ...]:
        """A list of exactly `length` finite numbers."""
        value = self.values.get(key)
        if not isinstance(value, list) or len(value) != length:
            raise self.wrong(key, f"a list of {length} numbers")
        items = {str(index): item for index, item in enumerate(value)}
        inner = Section(self.file, items, f"{self.path}.{key}" if self.path else key)
        return tuple(inner.number(index, positive=False) for index in items)

    def strings(self, key: str) -> tuple[str, ...] | None:
        if key not in self:
            return None
        value = self.values[key]
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.wrong(key, "a list of strings")
        return tuple(value)
