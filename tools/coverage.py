"""How often the intervals of `quantkit drift` hold the true mean, in simulated texts whose mean is known.

    python tools/coverage.py [--runs 10000] [--write docs/drift.md]

Writes the tables of docs/drift.md between its two markers, or prints them. tests/drift/simulated.py has the texts, and
tests/drift/test_intervals.py demands 93 to 97 % of what the tables promise.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from tests.drift.simulated import (  # noqa: E402
    Simulated,
    blocks,
    covered,
    kld_of_chunks,
    kld_of_documents,
    share_of_chunks,
    share_of_documents,
    share_of_uneven_documents,
)

from quantkit.drift.intervals import bootstrap_t, student_t, wilson  # noqa: E402

Doubles = npt.NDArray[np.float64]
Interval = Callable[[Doubles, Doubles], tuple[Doubles, ...]]  # sums, sizes -> low, high, ...

BEGIN, END = "<!-- table: coverage -->", "<!-- end -->"
DOCUMENTS = {5: 200, 8: 200, 12: 200, 20: 200, 40: 200, 100: 100, 300: 40}  # tokens of each, in the middle
CHUNKS = [8, 16, 32, 64, 128, 320]
STEP = 500  # runs at a time


def rate(make: Callable[..., Simulated], what: tuple[float, ...], interval: Interval, runs: int) -> str:
    """Of texts of `what` (their first number is that of clusters), in per cent."""
    rng, found = np.random.default_rng(int(what[0])), []
    for _ in range(0, runs, STEP):
        sums, sizes, truth = make(rng, STEP, *what)
        found.append(covered(*interval(sums, sizes)[:2], truth))
    return f"{np.mean(found):.1%}".replace("%", " %")


def pair(one: Simulated, other: Simulated) -> Simulated:
    """Differences of tokens of two files that are equally good, over the same clusters."""
    return one[0] - other[0] / other[1] * one[1], one[1], 0.0


def t_interval(sums: Doubles, sizes: Doubles) -> tuple[Doubles, ...]:
    """What most would take: the mean over clusters, and Student's t."""
    n, value = sums.shape[1], sums.sum(1) / sizes.sum(1)
    squares = np.square(sums - value[:, None] * sizes).sum(1) * n / (n - 1)
    reach = student_t(n - 1) * np.sqrt(squares) / sizes.sum(1)
    return value - reach, value + reach


def kld(chunks: int | None) -> Interval:
    return lambda sums, sizes: bootstrap_t(sums, sizes, positive=True, chunks_per_block=chunks)


def difference(chunks: int | None) -> Interval:
    return lambda sums, sizes: bootstrap_t(sums, sizes, chunks_per_block=chunks)


def share(chunks: int | None) -> Interval:
    return lambda sums, sizes: wilson(sums, sizes, chunks_per_block=chunks)


def documents_table(runs: int) -> list[str]:
    rows: dict[str, tuple[Callable[..., Simulated], Interval]] = {
        "KLD": (kld_of_documents, kld(None)),
        "the same, by Student's t": (kld_of_documents, t_interval),
        "KLD, documents twice as unlike": (lambda *args: kld_of_documents(*args, level=0.8), kld(None)),
        "KLD, neighbouring tokens more alike (0.9)": (lambda *args: kld_of_documents(*args, like=0.9), kld(None)),
        "difference of two files' KLD": (
            lambda *args: pair(kld_of_documents(*args), kld_of_documents(*args)),
            difference(None),
        ),
        "share of 50 %": (lambda *args: share_of_documents(*args, 0.5), share(None)),
        "share of 90 %": (lambda *args: share_of_documents(*args, 0.9), share(None)),
        "share of 99 %": (lambda *args: share_of_documents(*args, 0.99), share(None)),
        "share of 99 %, misses in few documents": (lambda *args: share_of_uneven_documents(*args, 0.99), share(None)),
    }
    lines = ["| documents | " + " | ".join(map(str, DOCUMENTS)) + " |", "| --- |" + " ---: |" * len(DOCUMENTS)]
    for name, (make, interval) in rows.items():
        cells = [rate(make, what, interval, runs) for what in DOCUMENTS.items()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
        print(lines[-1], file=sys.stderr, flush=True)
    return lines


def chunks_table(runs: int) -> list[str]:
    rows: dict[str, tuple[Callable[..., Simulated], Callable[[int | None], Interval]]] = {
        "KLD": (kld_of_chunks, kld),
        "difference of two files' KLD": (
            lambda *args: pair(kld_of_chunks(*args), kld_of_chunks(*args)),
            difference,
        ),
        "share of 90 %": (lambda *args: share_of_chunks(*args, 0.9), share),
    }
    lines = [
        "| chunks of one text | neighbours' correlation | " + " | ".join(map(str, CHUNKS)) + " |",
        "| --- | ---: |" + " ---: |" * len(CHUNKS),
    ]
    for name, (make, interval) in rows.items():
        for alike in (0.0, 0.4, 0.7):
            cells = [rate(make, (n, alike), interval(blocks(n).chunks_per_block), runs) for n in CHUNKS]
            lines.append(f"| {name} | {alike:g} | " + " | ".join(cells) + " |")
            print(lines[-1], file=sys.stderr, flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--write", type=Path, metavar="FILE", help="replace the tables in this Markdown file")
    args = parser.parse_args()
    tables = "\n".join([*documents_table(args.runs), "", *chunks_table(args.runs)])
    if args.write is None:
        print(tables)
        return
    before, rest = args.write.read_text().split(BEGIN)
    args.write.write_text(f"{before}{BEGIN}\n{tables}\n{END}{rest.split(END, 1)[1]}")


if __name__ == "__main__":
    main()
