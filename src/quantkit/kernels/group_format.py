"""Names of group formats: "int4_g64" is 4 bits a code and a scale and bias for 64 weights, "int8_row" one for a row."""

from __future__ import annotations

import re
from dataclasses import dataclass

from quantkit.errors import UsageError

_NAME = re.compile(r"int([234568])_(?:g(32|64|128)|row)")


@dataclass(frozen=True)
class GroupFormat:
    """What a name says.

    Attributes:
        bits: of a code: 2, 3, 4, 5, 6 or 8.
        group_size: 32, 64 or 128 weights, or -1 for a whole row.
    """

    name: str
    bits: int
    group_size: int

    def cols(self, n_words: int) -> int:
        """Weights in a row of that many uint32 words. UsageError unless they are whole codes and groups."""
        cols, rest = divmod(32 * n_words, self.bits)
        group = 32 if self.group_size < 0 else self.group_size
        if rest or cols % group or not cols:
            raise UsageError(
                f"packed has rows of {n_words} words: in {self.name} those are not whole groups of {group}"
            )
        return cols

    def group_cols(self, cols: int) -> int:
        """Weights that share a scale, in rows of `cols`."""
        return cols if self.group_size < 0 else self.group_size


def find_group_format(name: str) -> GroupFormat | None:
    """The group format of that name; None where the name is no group format's. UsageError where it would be one."""
    if not isinstance(name, str) or not name.startswith("int"):
        return None
    match = _NAME.fullmatch(name)
    if not match:
        raise UsageError(
            f"unknown format {name!r}",
            hint="Group formats are called like int4_g64 or int8_row: 2 to 6 or 8 bits, groups of 32, 64 or 128.",
        )
    return GroupFormat(name, int(match[1]), int(match[2] or -1))
