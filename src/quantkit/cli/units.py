"""Bytes, rates and times as text, and back. Decimal units as disks and llama.cpp have them: 1 GB is 10^9 bytes."""

from __future__ import annotations

import math
import re
from typing import Any

import click

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def bytes_text(n_bytes: float) -> str:
    """65388478464 -> '65.4 GB'."""
    for unit, factor in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if n_bytes >= factor * 0.9995:  # 999.96 MB would round to 1000.0 MB
            return f"{n_bytes / factor:.1f} {unit}" if n_bytes < 99.95 * factor else f"{n_bytes / factor:.0f} {unit}"
    return f"{n_bytes:.0f} B"


def seconds_text(seconds: float) -> str:
    """4.21 -> '4.2 s', 75 -> '1:15', 7322 -> '2:02:02'."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def count_text(number: int) -> str:
    """Token counts as people write contexts: 8192 -> '8k', 131072 -> '128k', 10485760 -> '10M', 1000 -> '1000'."""
    for suffix, factor in (("M", 1 << 20), ("k", 1 << 10)):
        if number >= factor and number % factor == 0:
            return f"{number // factor}{suffix}"
    return str(number)


class ByteSize(click.ParamType[int]):
    """`50G`, `4.5GB`, `800M`, `1000000` -> bytes, decimal as in llama.cpp's --split-max-size."""

    name = "size"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", str(value).strip(), re.IGNORECASE)
        if match is None:
            self.fail(f"{value!r} is not a size. Write a number and K, M, G or T, such as 50G.", param, ctx)
        n_bytes = int(float(match[1]) * _UNITS[match[2].upper()])
        if n_bytes == 0:
            self.fail(f"{value!r} is zero bytes.", param, ctx)
        return n_bytes


class TokenCount(click.ParamType[int]):
    """`8192`, `128k`, `1M` -> tokens, where k is 1024 as in the names of contexts."""

    name = "tokens"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+)([kM]?)", str(value).strip().replace("K", "k"))
        if match is None or int(match[1]) == 0:
            self.fail(f"{value!r} is not a number of tokens. Write it like 8192, 128k or 1M.", param, ctx)
        return int(match[1]) * {"": 1, "k": 1 << 10, "M": 1 << 20}[match[2]]


class Bandwidth(click.FloatRange):
    """GB/s: a number above zero, and no `inf` or `nan`, which a range lets pass."""

    def __init__(self) -> None:
        super().__init__(min=0, min_open=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a bandwidth. Write GB/s such as 100.", param, ctx)
        return number
