"""Figures with a line or a point for each file."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from quantkit.drift.report.svg import INK, SERIES, Drawing, Picture
from quantkit.drift.result import Candidate

_MARKERS = "osD^vP"
_LINES = ("-", "--", "-.", ":")
_WIDTH, _HEIGHT = 460, 320

Named = Sequence[tuple[str, Candidate]]


def size_and_kld(named: Named) -> Picture | None:
    """Mean KLD with its interval against the file's size."""
    known = [(name, one) for name, one in named if one.kld is not None]
    if not known:
        return None
    unit, divisor = _unit(max(one.bytes for _, one in known))
    with Drawing("kld", 540, 340) as drawing:
        axes = drawing.figure.subplots()
        points = []
        for place, (name, one) in enumerate(known):
            assert one.kld is not None
            x, y = one.bytes / divisor, one.kld.mean
            low, high = one.kld.ci95 or (y, y)
            bars = [[max(0.0, y - low)], [max(0.0, high - y)]]
            axes.errorbar(
                [x], [y], yerr=bars, fmt=_MARKERS[place % 6], color=SERIES[place % 6], capsize=4, markersize=8, zorder=3
            )
            points.append((x, y, name))
        _log_scale(axes, [y for _, y, _ in points])
        axes.margins(x=0.18, y=0.15)
        axes.set_xlabel(f"size of the file, {unit}")
        axes.set_ylabel("mean KLD, nats a token")
        middle = (min(points)[0] + max(points)[0]) / 2
        for place, (x, y, name) in enumerate(points):
            right = x > middle
            crowded = any(_are_near(axes, (x, y), one[:2]) and (one[0] > middle) == right for one in points[:place])
            axes.annotate(
                _short(name),
                (x, y),
                xytext=(-9 if right else 9, -14 if crowded else 5),
                textcoords="offset points",
                ha="right" if right else "left",
                color=INK,
            )
        values = "; ".join(f"{name} {x:.3g} {unit}, {y:.3g}" for x, y, name in points)
        return drawing.picture(
            "KL divergence against the size of the file", f"Size and mean KLD of each file: {values}."
        )


def by_layer(
    name: str,
    title: str,
    label: str,
    named: Named,
    values: Callable[[Candidate], Sequence[tuple[int, float]]],
    *,
    percent: bool = False,
    log: bool = False,
) -> Picture | None:
    """A line for each file over layers.

    Args:
        values: (layer, value) of a candidate; none where it was not measured.
        percent: values are shares.
    """
    known = [(place, file, values(one)) for place, (file, one) in enumerate(named)]
    known = [(place, file, found) for place, file, found in known if found]
    if not known:
        return None
    with Drawing(name, _WIDTH, _HEIGHT + 18 * math.ceil(len(known) / 2)) as drawing:
        axes = drawing.figure.subplots()
        for place, file, found in known:
            axes.plot(
                [layer for layer, _ in found],
                [value for _, value in found],
                linestyle=_LINES[place % 4],
                marker=_MARKERS[place % 6],
                markersize=5 if len(found) < 30 else 3,
                color=SERIES[place % 6],
                label=_short(file),
            )
        axes.set_xlabel("layer")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylabel(label)
        if log:
            _log_scale(axes, [value for _, _, found in known for _, value in found])
        elif percent:
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g} %"))
            low = min(value for _, _, found in known for _, value in found)
            room = 0.1 * max(1 - low, 0.01)
            axes.set_ylim(min(low, 0.99) - room, 1 + room)
        drawing.figure.legend(loc="outside lower center", ncols=2, frameon=False, handlelength=3)
        parts = []
        for _, file, found in known:
            pick = min if percent else max
            layer, value = pick(found, key=lambda pair: pair[1])
            shown = f"{value:.2%}" if percent else f"{value:.3g}"
            parts.append(f"{file}: {'least' if percent else 'most'} in layer {layer}, {shown}")
        return drawing.picture(title, f"{title}. {'; '.join(parts)}.")


def _log_scale(axes: Axes, values: Sequence[float]) -> None:
    """Logarithmic if that can be, with numbers that people read."""
    positive = [value for value in values if value > 0]
    if len(positive) < len(values) or not positive:
        if positive:
            axes.set_yscale("symlog", linthresh=min(positive))
        return
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    if max(positive) / min(positive) < 30:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _are_near(axes: Axes, one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Labels at these points would touch."""
    (x, y), (u, v) = (axes.transData.transform(point) for point in (one, other))
    return bool(abs(x - u) < 180 and abs(y - v) < 16)


def _unit(n_bytes: int) -> tuple[str, int]:
    for unit, factor in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if n_bytes >= factor:
            return unit, factor
    return "bytes", 1


def _short(name: str) -> str:
    """The end of a name says more than its beginning; control characters have no place in SVG."""
    shown = "".join(char if char.isprintable() else "?" for char in name)
    return shown if len(shown) <= 28 else f"…{shown[-27:]}"
