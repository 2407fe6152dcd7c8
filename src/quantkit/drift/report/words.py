"""Numbers as the page writes them."""

from __future__ import annotations


def size(n_bytes: float) -> str:
    for unit, factor in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if n_bytes >= factor:
            return f"{n_bytes / factor:.3g} {unit}"
    return f"{n_bytes:.0f} B"


def percent(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f} %"


def number(value: float | None, form: str = "#.3g") -> str:
    return "–" if value is None else f"{value:{form}}"


def interval(ends: tuple[float, float] | None, form: str = "#.3g") -> str:
    return "too little text" if ends is None else f"{ends[0]:{form}} to {ends[1]:{form}}"


def percents(ends: tuple[float, float] | None, form: str = ".2f") -> str:
    return interval(None if ends is None else (100 * ends[0], 100 * ends[1]), form) + ("" if ends is None else " %")
