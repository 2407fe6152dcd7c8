"""Figures of one file: a cell for each tensor of each layer, or for each expert.

All files of a page share a scale, so that colours can be compared from map to map.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from quantkit.drift.report.svg import Drawing, Picture
from quantkit.drift.result import Candidate

Cells = npt.NDArray[np.float64]
Colour = tuple[float, ...]
_LABELLED = 32  # columns: with more, cells have no room for numbers
_COLOURS = 40  # of a scale
_LEAST_SHIFT = 1.0  # percentage points that have the scale's last colour, or more


@dataclass(frozen=True)
class Map:
    """What a heat map shows.

    Args:
        cells: (rows, columns), shares; NaN where there is nothing.
        rows, columns: their names.
        axis_names: of columns and of rows.
        worst: in words.
        signed: changes, not errors.
    """

    title: str
    cells: Cells
    rows: list[str]
    columns: list[str]
    axis_names: tuple[str, str]
    worst: str
    signed: bool = False


def heat_maps(candidates: Sequence[Candidate]) -> list[list[Picture]]:
    """Those of each candidate."""
    found: list[list[Picture]] = [[] for _ in candidates]
    for name, make in _MAPS.items():
        maps = [make(one) for one in candidates]
        known = [one.cells.reshape(-1) for one in maps if one is not None]
        if not known:
            continue
        norm = _norm(100 * np.concatenate(known), signed=any(one.signed for one in maps if one is not None))
        for place, one in enumerate(maps):
            if one is not None:
                found[place].append(_draw(f"{name}{place}", one, norm))
    return found


def _weight_errors(candidate: Candidate) -> Map | None:
    """Of each tensor: layers are columns, so that they are read from left to right."""
    tensors = [one for one in candidate.tensors if one.layer is not None and len(one.shape) > 1]
    if not tensors:
        return None
    layers = sorted({one.layer for one in tensors if one.layer is not None})
    kinds = list(dict.fromkeys(_kind(one.name) for one in tensors))
    cells = np.full((len(kinds), len(layers)), np.nan)
    for one in tensors:
        assert one.layer is not None
        cells[kinds.index(_kind(one.name)), layers.index(one.layer)] = one.error.relative_error
    worst = max(tensors, key=lambda one: one.error.relative_error)
    return Map(
        title="Relative error of weights, by tensor and layer, %",
        cells=cells,
        rows=kinds,
        columns=list(map(str, layers)),
        axis_names=("layer", ""),
        worst=f"{worst.name}, {100 * worst.error.relative_error:.2f} %",
    )


def _expert_weight_errors(candidate: Candidate) -> Map | None:
    errors: dict[int, list[list[float]]] = {}
    for one in candidate.tensors:
        if one.experts and one.layer is not None:
            errors.setdefault(one.layer, []).append([expert.relative_error for expert in one.experts])
    if not errors:
        return None
    layers = sorted(errors)
    cells = np.array([np.max(errors[layer], axis=0) for layer in layers])
    return _by_expert("Relative error of an expert's weights, the worst of its three matrices, %", cells, layers)


def _expert_output_errors(candidate: Candidate) -> Map | None:
    layers = [one for one in candidate.layers if any(expert.error is not None for expert in one.experts)]
    if not layers:
        return None
    errors = [
        [math.nan if expert.error is None else expert.error.relative_error for expert in one.experts] for one in layers
    ]
    title = "Relative error of what an expert adds to hidden states, on the reference's inputs, %"
    return _by_expert(title, np.array(errors), [one.layer for one in layers])


def _load_shifts(candidate: Candidate) -> Map | None:
    routing = candidate.routing
    if routing is None:
        return None
    cells = np.array(routing.load) - np.array(routing.load_reference)
    title = "Change of an expert's share of tokens, percentage points"
    return _by_expert(title, cells, routing.layers, signed=True)


_MAPS: dict[str, Callable[[Candidate], Map | None]] = {
    "weights": _weight_errors,
    "experts": _expert_weight_errors,
    "outputs": _expert_output_errors,
    "load": _load_shifts,
}


def _by_expert(title: str, cells: Cells, layers: Sequence[int], *, signed: bool = False) -> Map:
    row, column = divmod(int(np.argmax(np.abs(np.nan_to_num(cells)))), cells.shape[1])
    value = 100 * cells[row, column]
    return Map(
        title=title,
        cells=cells,
        rows=list(map(str, layers)),
        columns=list(map(str, range(cells.shape[1]))),
        axis_names=("expert", "layer"),
        worst=f"expert {column} of layer {layers[row]}, {value:+.2f}"
        if signed
        else f"expert {column} of layer {layers[row]}, {value:.2f} %",
        signed=signed,
    )


def _kind(name: str) -> str:
    return name.split(".", 2)[2].removesuffix(".weight")


def _draw(name: str, shown: Map, norm: Normalize) -> Picture:
    n_rows, n_columns = shown.cells.shape
    percent = 100 * np.where(np.isfinite(shown.cells), shown.cells, np.nan)
    labelled = n_columns <= _LABELLED
    label = max(map(len, shown.rows)) * 7 + 60
    width = max(420, label + (44 if labelled else 12) * n_columns + 90)
    with Drawing(name, width, max(200, (26 if labelled or n_rows < 20 else 13) * n_rows + 70)) as drawing:
        axes = drawing.figure.subplots()
        colours = colormaps["PuOr" if shown.signed else "viridis"].resampled(_COLOURS)
        shades = [[tuple(map(float, one)) for one in row] for row in colours(norm(percent))]
        _fill(axes, percent, shades)
        axes.set_xlim(0, n_columns)
        axes.set_ylim(n_rows, 0)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        every = 1 if labelled or n_rows < 20 else 4
        axes.set_yticks(np.arange(0, n_rows, every) + 0.5, shown.rows[::every])
        step = 1 if labelled else 8
        axes.set_xticks(np.arange(0, n_columns, step) + 0.5, shown.columns[::step])
        axes.tick_params(length=0)
        axes.set_xlabel(shown.axis_names[0])
        axes.set_ylabel(shown.axis_names[1])
        if labelled:
            for (row, column), value in np.ndenumerate(percent):
                known = math.isfinite(value)
                colour = _readable_on(shades[row][column]) if known else "gray"
                text = _cell_text(value, signed=shown.signed) if known else "–"
                shown_text = axes.text(
                    column + 0.5, row + 0.5, text, ha="center", va="center", color=colour, fontsize=11
                )
                shown_text.set_in_layout(False)
        scale = ScalarMappable(norm, colours)
        bar: Any = drawing.figure.colorbar(scale, ax=axes, pad=0.02, fraction=0.04)
        bar.outline.set_visible(False)
        bar.solids.set_rasterized(False)  # it would become an image
        bar.solids.set_edgecolor("face")
        ticks = _evenly(norm) if shown.signed else list(_round_numbers(norm))
        bar.set_ticks(ticks, labels=[f"{value:+.2g}" if shown.signed else f"{value:g}" for value in ticks])
        bar.minorticks_off()
        return drawing.picture(shown.title, f"{shown.title}. Largest: {shown.worst}.", f"Largest: {shown.worst}")


def _fill(axes: Axes, percent: Cells, shades: Sequence[Sequence[Colour]]) -> None:
    """One shape for all cells of a colour: a model may have six thousand experts."""
    shapes: dict[Colour | None, list[Path]] = {}
    for row, values in enumerate(percent):
        column = 0
        known = (shade if math.isfinite(value) else None for shade, value in zip(shades[row], values, strict=True))
        for colour, run in groupby(known):
            end = column + len(list(run))
            corners = [(column, row), (end, row), (end, row + 1), (column, row + 1), (column, row)]
            shapes.setdefault(colour, []).append(Path(corners, closed=True))
            column = end
    shapes.pop(None, None)
    for colour, paths in shapes.items():
        axes.add_patch(PathPatch(Path.make_compound_path(*paths), facecolor=colour, edgecolor=colour, linewidth=0.2))


def _norm(percent: Cells, *, signed: bool) -> Normalize:
    """Logarithmic for errors: types are factors of two apart, and a fault is far beyond."""
    known = percent[np.isfinite(percent)]
    if signed:
        most = max(float(np.abs(known).max(initial=0.0)), _LEAST_SHIFT)
        return Normalize(-most, most)
    positive = known[known > 0]
    if not len(positive):
        return Normalize(0, 1)
    low, high = float(positive.min()), float(positive.max())
    return LogNorm(low / 1.5, max(high, 10 * low) * 1.2, clip=True)


def _evenly(norm: Normalize) -> list[float]:
    assert norm.vmax is not None
    return [norm.vmax * part for part in (-1, -0.5, 0, 0.5, 1)]


def _round_numbers(norm: Normalize) -> Iterator[float]:
    """1, 2, 5, 10, ... on a logarithmic scale; 0 and 1 where there is no error."""
    assert norm.vmin is not None
    assert norm.vmax is not None
    if norm.vmin <= 0:
        yield from (0.0, 1.0)
        return
    decades = math.log10(norm.vmax / norm.vmin)
    for power in range(math.floor(math.log10(norm.vmin)), math.ceil(math.log10(norm.vmax)) + 1):
        for first in (1, 2, 5) if decades < 4 else (1,):
            value = float(f"{first}e{power}")
            if norm.vmin <= value <= norm.vmax:
                yield value


def _cell_text(value: float, *, signed: bool) -> str:
    if signed:
        return f"{value:+.2f}" if abs(value) < 9.995 else f"{value:+.1f}"
    if value == 0:
        return "0"
    return f"{value:#.2g}" if value < 9.95 else f"{value:.0f}"


def _readable_on(colour: Colour) -> str:
    """Black or white, whichever has more contrast as WCAG defines it."""
    linear = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in colour[:3]]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "black" if (luminance + 0.05) ** 2 > 1.05 * 0.05 else "white"
