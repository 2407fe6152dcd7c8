"""README's picture of the kernels: quantkit, ggml and ik_llama.cpp on one machine, from docs/benchmarks/kernels.json.

    python tools/bench/plot.py [--threads 2] [--data docs/benchmarks/kernels.json] [--out docs/kernels.svg]

Bars are rates, each side's better one of plain and repacked weights; the line across is the machine's own ceiling.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from document import TIERS, cases, ours_of, peers_of
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from records import ROOT, Record, Run, load

# Okabe and Ito's colours, which stay apart for every kind of colour vision, and differ in lightness too.
COLOURS = {"quantkit": "#0072B2", "ggml": "#E69F00", "ik_llama.cpp": "#8A8A8A"}
INK, FAINT = "#24292f", "#57606a"
WIDTH = 0.26


def rates(run: Run, case: Sequence[Record], tier: str) -> dict[str, float]:
    """The best rate of each name among quantkit's tier and the peers that it is held against."""
    found: dict[str, float] = {}
    for one in case:
        if one.contender in (*ours_of(tier), *peers_of(run, tier)):
            name = str(run.contenders[one.contender]["name"])
            if one.mode != "exact":
                found[name] = max(one.rate, found.get(name, 0.0))
    return found


def panel(axes: Axes, run: Run, chosen: Sequence[Sequence[Record]], tier: str, title: str, unit: str) -> None:
    shown = [rates(run, case, tier) for case in chosen]
    for place, (name, colour) in enumerate(COLOURS.items()):
        heights = [found.get(name, 0.0) for found in shown]
        at = [x + (place - 1) * WIDTH for x in range(len(shown))]
        bars = axes.bar(at, heights, WIDTH * 0.92, color=colour, label=name)
        if name == "quantkit":
            axes.bar_label(bars, [f"{height:.0f}" for height in heights], padding=2, fontsize=8, color=INK)
    axes.set_xticks(range(len(shown)), [case[0].format for case in chosen])
    axes.set_title(title, loc="left", fontsize=10.5, color=INK, pad=20)
    axes.set_ylabel(unit, color=FAINT)
    axes.margins(y=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK, length=0)
    mine = [one for case in chosen for one in case if one.contender == f"quantkit {tier}" and one.mode != "exact"]
    names = {one.limit for one in mine if one.limit}
    ceilings = [one.work / one.limit_seconds / 1e9 for one in mine if one.limit_seconds]
    if ceilings and len(names) == 1:
        height = statistics.median(ceilings)
        limit = names.pop()
        said = "reading memory" if limit == "read" else f"int8 peak ({limit.removeprefix('int8_').replace('_', ' ')})"
        axes.axhline(height, color=FAINT, lw=1, ls=(0, (4, 3)))
        axes.text(0, 1.03, f"dashed: {said}", transform=axes.transAxes, fontsize=8, color=FAINT)


def draw(run: Run, threads: int, out: Path) -> None:
    """One picture with a panel for each kind of product."""
    mpl.rcParams |= {"font.size": 9, "svg.hashsalt": "quantkit", "svg.fonttype": "path"}
    ours = {str(one["tier"]) for one in run.contenders.values() if one["name"] == "quantkit"}
    tier = max(ours, key=TIERS.index)
    matmul, grouped = cases(run, "matmul", threads), cases(run, "experts", threads)
    panels = [
        ([case for case in matmul if case[0].n == 512], "512 rows", "GOP/s"),
        ([case for case in grouped if case[0].experts == 16], "512 rows over 16 experts", "GOP/s"),
        ([case for case in matmul if case[0].n == 1], "1 row, weights from memory", "GB/s of weights"),
    ]
    panels = [one for one in panels if one[0]]
    figure = Figure(figsize=(11, 3.5), layout="constrained", facecolor="white")
    for axes, (chosen, title, unit) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        panel(axes, run, chosen, tier, title, unit)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=3, frameon=False, labelcolor=INK)
    note = f"Scout's 5120 × 8192, {threads} thread{'s' * (threads > 1)}, {run.machine}, {tier}; higher is better"
    figure.supxlabel(note, fontsize=8, color=FAINT)
    figure.savefig(out, metadata={"Date": None} if out.suffix == ".svg" else None, dpi=150)
    if out.suffix == ".svg":
        out.write_text("\n".join(line.rstrip() for line in out.read_text().splitlines()) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--data", type=Path, default=ROOT / "docs" / "benchmarks" / "kernels.json")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "kernels.svg", help=".svg or .png")
    args = parser.parse_args()
    draw(load(args.data), args.threads, args.out)


if __name__ == "__main__":
    main()
