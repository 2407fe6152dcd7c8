"""matplotlib's figures as SVG for a page: text stays text, colours are the page's, bytes always the same."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from typing import Any

from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

# Colours that matplotlib draws with, and what stands for them in the page, which knows light from dark.
INK, FAINT, GROUND = "#010203", "#040506", "#070809"
SERIES = ("#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04", "#0a0b05", "#0a0b06")
_STYLE = {INK: "currentColor", FAINT: "var(--faint)", GROUND: "var(--ground)"} | {
    colour: f"var(--series-{place})" for place, colour in enumerate(SERIES)
}
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "quantkit",
    "text.parse_math": False,  # a file's name may have dollars
    "font.family": "sans-serif",
    "font.size": 12,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.8,
}


@dataclass(frozen=True)
class Picture:
    """A figure of the page.

    Args:
        svg: to be put into HTML as it is.
        title: what it shows.
        description: the same for who does not see it, with the numbers that matter.
        width: in CSS pixels, below which its text is hard to read.
        note: below the title.
    """

    svg: str
    title: str
    description: str
    width: int
    note: str


class Drawing:
    """A figure to draw on, as a context in which matplotlib has the page's settings.

    Args:
        width, height: in CSS pixels.
    """

    def __init__(self, name: str, width: int, height: int) -> None:
        self._name, self._width = name, width
        self._context = rc_context(_SETTINGS)
        self._size = width / 72, height / 72

    def __enter__(self) -> Drawing:
        self._context.__enter__()
        self.figure = Figure(figsize=self._size, dpi=72, layout="constrained")
        return self

    def __exit__(self, *error: object) -> None:
        self._context.__exit__(None, None, None)

    def picture(self, title: str, description: str, note: str = "") -> Picture:
        file = io.BytesIO()
        canvas: Any = FigureCanvasSVG(self.figure)
        canvas.print_svg(file, metadata={"Date": None, "Creator": None})
        return Picture(_embedded(file.getvalue().decode(), self._name), title, description, self._width, note)


def _embedded(svg: str, name: str) -> str:
    """Without what a file of its own needs, and with ids that no other figure of the page has."""
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    head, rest = svg.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)
    assert box is not None
    rest = rest.replace("xlink:href=", "href=")
    rest = re.sub(r'\bid="', f'id="{name}-', rest)
    rest = re.sub(r'href="#', f'href="#{name}-', rest)
    rest = re.sub(r"url\(#", f"url(#{name}-", rest)
    rest = re.sub(r"(font: [^;'\"]*?px) '[^;\"]*", r"\1 sans-serif", rest)
    for colour, style in _STYLE.items():
        rest = rest.replace(colour, style)
    return f'<svg {box[0]} aria-hidden="true">{re.sub(chr(10) + "+ *", chr(10), rest)}'
