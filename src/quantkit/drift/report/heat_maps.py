"""Figures of one file: a cell for each tensor of each layer, or for each expert."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.colors import LogNorm, Normalize
from matplotlib.ticker import FuncFormatter, NullFormatter

from quantkit.drift.report.svg import Drawing, Picture
from quantkit.drift.result import Candidate

Cells = npt.NDArray[np.float64]
_LABELLED = 32  # columns: with more, cells have no room for numbers


def weight_errors(name: str, candidate: Candidate) -> Picture | None:
    """Relative error of each tensor: layers are columns, so that they are read from left to right."""
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
    return _heat_map(
        name,
        cells,
        kinds,
        list(map(str, layers)),
        ("layer", ""),
        "Relative error of weights, %",
        f"Relative error of weights by layer and tensor. Largest: {worst.name}, {worst.error.relative_error:.2%}.",
    )


def expert_weight_errors(name: str, candidate: Candidate) -> Picture | None:
    """Relative error of the weights of each expert, over its three matrices: layers are rows."""
    errors: dict[int, list[list[float]]] = {}
    for one in candidate.tensors:
        if one.experts and one.layer is not None:
            errors.setdefault(one.layer, []).append([expert.relative_error for expert in one.experts])
    if not errors:
        return None
    layers = sorted(errors)
    cells = np.array([np.max(errors[layer], axis=0) for layer in layers])
    row, col = np.unravel_index(int(np.argmax(np.nan_to_num(cells))), cells.shape)
    return _heat_map(
        name,
        cells,
        list(map(str, layers)),
        list(map(str, range(cells.shape[1]))),
        ("expert", "layer"),
        "Relative error of an expert's weights (the worst of its matrices), %",
        f"Relative error of weights by layer and expert. Largest: expert {col} of layer {layers[row]}, "
        f"{cells[row, col]:.2%}.",
    )


def expert_errors(name: str, candidate: Candidate) -> Picture | None:
    """Relative error of what each expert adds to the hidden states."""
    layers = [one for one in candidate.layers if one.experts]
    if not any(expert.error is not None for one in layers for expert in one.experts):
        return None
    cells = np.array(
        [
            [math.nan if expert.error is None else expert.error.relative_error for expert in one.experts]
            for one in layers
        ]
    )
    row, col = np.unravel_index(int(np.argmax(np.nan_to_num(cells))), cells.shape)
    return _heat_map(
        name,
        cells,
        [str(one.layer) for one in layers],
        list(map(str, range(cells.shape[1]))),
        ("expert", "layer"),
        "Relative error of an expert's output, on the reference's inputs, %",
        f"Relative error of what experts add to hidden states, by layer and expert. Largest: expert {col} of layer "
        f"{layers[row].layer}, {cells[row, col]:.2%}. A dash: no token of the sample went there.",
    )


def load_shifts(name: str, candidate: Candidate) -> Picture | None:
    """Change of the share of tokens that each expert gets, in percentage points."""
    routing = candidate.routing
    if routing is None:
        return None
    cells = np.array(routing.load) - np.array(routing.load_reference)
    row, col = np.unravel_index(int(np.argmax(np.abs(cells))), cells.shape)
    return _heat_map(
        name,
        cells,
        list(map(str, routing.layers)),
        list(map(str, range(cells.shape[1]))),
        ("expert", "layer"),
        "Change of an expert's share of tokens, percentage points",
        f"Change of experts' share of tokens, by layer and expert. Largest: expert {col} of layer "
        f"{routing.layers[row]}, {100 * cells[row, col]:+.2f} percentage points.",
        signed=True,
    )


def _kind(name: str) -> str:
    return name.split(".", 2)[2].removesuffix(".weight")


def _heat_map(
    name: str,
    cells: Cells,
    rows: Sequence[str],
    columns: Sequence[str],
    axis_names: tuple[str, str],
    title: str,
    description: str,
    *,
    signed: bool = False,
) -> Picture:
    n_rows, n_columns = cells.shape
    percent = 100 * np.where(np.isfinite(cells), cells, np.nan)
    labelled = n_columns <= _LABELLED
    label = max(map(len, rows)) * 7 + 60
    cell = 44 if labelled else 12
    width = max(420, label + cell * n_columns + 90)
    with Drawing(name, width, max(200, 26 * n_rows + 70)) as drawing:
        axes = drawing.figure.subplots()
        norm = _norm(percent, signed=signed)
        colours = colormaps["PuOr" if signed else "viridis"]
        mesh = axes.pcolormesh(percent, cmap=colours, norm=norm, edgecolors="face", linewidth=0.2)
        axes.invert_yaxis()
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        axes.set_yticks(np.arange(n_rows) + 0.5, rows)
        step = 1 if labelled else 8
        axes.set_xticks(np.arange(0, n_columns, step) + 0.5, columns[::step])
        axes.tick_params(length=0)
        axes.set_xlabel(axis_names[0])
        axes.set_ylabel(axis_names[1])
        if labelled:
            for (row, column), value in np.ndenumerate(percent):
                known = math.isfinite(value)
                shade = _luminance(colours(norm(value))) if known else 0.0
                colour = ("black" if shade > 0.45 else "white") if known else "gray"
                text = _cell_text(value, signed=signed) if known else "–"
                axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", color=colour, fontsize=11)
        bar: Any = drawing.figure.colorbar(mesh, ax=axes, pad=0.02, fraction=0.04)
        bar.outline.set_visible(False)
        bar.solids.set_rasterized(False)  # it would become an image
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g}" if signed else f"{value:g}"))
        bar.ax.yaxis.set_minor_formatter(NullFormatter())
        return drawing.picture(title, description)


def _norm(percent: Cells, *, signed: bool) -> Normalize:
    """Logarithmic for errors: types are factors of two apart, and a fault is far beyond."""
    known = percent[np.isfinite(percent)]
    if signed:
        most = max(float(np.abs(known).max(initial=0.0)), 0.1)
        return Normalize(-most, most)
    positive = known[known > 0]
    if not len(positive):
        return Normalize(0, 1)
    low, high = float(positive.min()), float(positive.max())
    return LogNorm(low / 1.2, high * 1.2, clip=True)


def _cell_text(value: float, *, signed: bool) -> str:
    if signed:
        return f"{value:+.1f}"
    if value == 0:
        return "0"
    return f"{value:.2g}" if value < 10 else f"{value:.0f}"


def _luminance(colour: tuple[float, float, float, float]) -> float:
    red, green, blue, _ = colour
    return 0.299 * red + 0.587 * green + 0.114 * blue
