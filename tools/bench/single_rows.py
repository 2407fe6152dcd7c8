"""Single rows of activations from memory: quantkit's weights and a peer's, in turns, on the same memory.

    python tools/bench/single_rows.py [--formats FORMAT ...] [--threads 1 2] [--placements 6] [--ik LIBGGML] [--write]

What one row of x takes is the reading of the weights, and that differs by a tenth with where in memory they happen to
lie: more than the sides differ. So for each peer both sides live in one process, with two pieces of memory of 512 MB.
Each side has its weights in one of them, and they take turns; then they change places, and take turns again; with
quantkit's weights as a file has them, and repacked. The ratio is the geometric mean of both ratios of medians, in which
the places drop out. Pieces are allocated anew several times, and the spread of those ratios gives the standard error.

Figures are kept in docs/benchmarks/single-rows.json; `--write` makes the document beside it. `kernels.py` has all
other cases, with each side in a process of its own.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

import parts  # noqa: E402
from contenders import Ggml  # noqa: E402
from ggml_library import GgmlLibrary, Products, Weights  # noqa: E402
from machine import cpu_model  # noqa: E402
from records import code_state  # noqa: E402
from turns import players, wait_until_idle  # noqa: E402

from quantkit.kernels import (  # noqa: E402
    FORMATS,
    QuantizedTensor,
    RepackedTensor,
    build_info,
    dequantize,
    matmul,
    quantize,
)

DATA = ROOT / "docs" / "benchmarks" / "single-rows.json"
FORMATS_SHOWN = ("q4_0", "q4_k", "q8_0")
Job = Callable[[], object]


class Place:
    """Copies of one matrix in one piece of memory, which either side can have."""

    def __init__(
        self, library: GgmlLibrary, backend: Callable[[int], int], format: str, packed: np.ndarray, copies: int,
        *, repacked: bool,
    ) -> None:  # fmt: skip
        cols = packed.shape[-1] // FORMATS[format].block_bytes * FORMATS[format].block_size
        source = np.broadcast_to(packed, (copies, *packed.shape))
        if not repacked:  # the peer takes weights where they lie; its memory begins where a cache line does
            room = np.empty(source.nbytes + 64, np.uint8)
            first = -room.ctypes.data % 64
            source = room[first : first + source.nbytes].reshape(source.shape)
            source[...] = packed
        self._weights = Weights(library, backend(1), FORMATS[format].ggml_type, source, cols, repacked=repacked)
        self._library, self._backend, self._products = library, backend, {}
        room_of = ctypes.c_uint8 * packed.nbytes
        self._matrices = [
            np.ctypeslib.as_array(room_of.from_address(library.ggml_get_data(tensor))).reshape(packed.shape)
            for tensor in self._weights.tensors
        ]
        self.theirs: np.ndarray = self._matrices[0].copy()  # a matrix as the peer has it
        self._format = format
        self._repacked = [RepackedTensor(matrix, format, len(packed)) for matrix in self._matrices]
        self._out = np.empty((1, len(packed)), np.float32)

    def hold(self, matrix: np.ndarray) -> None:
        for one in self._matrices:
            one[...] = matrix

    def ours(self, form: str, x: np.ndarray, threads: int) -> np.ndarray:
        for one in self._matrices if form == "plain" else ():
            matmul(x, one, self._format, mode="fast", threads=threads, out=self._out)
        for one in self._repacked if form == "repacked" else ():
            one.matmul(x, threads=threads, out=self._out)
        return self._out

    def peer(self, x: np.ndarray, threads: int) -> Products:
        if threads not in self._products:
            self._products[threads] = Products(self._backend(threads), self._weights, x)
        self._products[threads].compute()
        return self._products[threads]

    def close(self) -> None:
        for products in self._products.values():
            products.close()
        self._weights.close()


class Beside(Ggml):
    """A peer, with quantkit in the same process."""

    def compare(
        self, format: str, rows: int, cols: int, n_bytes: float, threads: Sequence[int], placements: int, turns: int
    ) -> list[dict[str, Any]]:
        """For each form of ours and number of threads: bytes a second of both sides, as geometric means over places.

        Raises:
            NotImplementedError: the peer does not repack this format.
        """
        rng = np.random.default_rng(0)
        packed = quantize(parts.weights_of(rng, rows, cols), format)
        ours = {"plain": packed, "repacked": QuantizedTensor(packed, format).repack().packed}
        x = rng.standard_normal((1, cols)).astype(np.float32)
        expected = x @ dequantize(packed[:64], format).T.astype(np.float64)
        copies = max(1, -(-int(n_bytes) // packed.nbytes))
        rates: dict[tuple[str, int], list[tuple[float, float]]] = {case: [] for case in product(ours, threads)}
        for _ in range(placements):
            places: list[Place] = []
            try:
                while len(places) < 2:
                    places.append(Place(self._library, self._backend, format, packed, copies, repacked=self._repacked))
                theirs = places[0].theirs
                seconds: dict[tuple[str, int], list[tuple[float, float]]] = {case: [] for case in rates}
                for mine, other in (places, places[::-1]):
                    other.hold(theirs)
                    for form, matrix in ours.items():
                        mine.hold(matrix)
                        for count in threads:
                            _check(mine.ours(form, x, count)[:, :64], expected, "quantkit")
                            _check(other.peer(x, count).output()[:, :64], expected, "the peer")
                            jobs = (partial(mine.ours, form, x, count), partial(other.peer, x, count))
                            seconds[form, count].append(_medians(jobs, turns))
                for case, both in seconds.items():
                    found = copies * packed.nbytes / np.exp(np.log(both).mean(axis=0))
                    rates[case].append((found[0], found[1]))
            finally:
                for place in places:
                    place.close()
        return [{"form": form, "threads": count, "rates": found} for (form, count), found in rates.items()]


def _check(found: np.ndarray, expected: np.ndarray, side: str) -> None:
    error = float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
    if not error < parts.IK_ERROR:
        raise RuntimeError(f"{side} computes something else: relative error {error:.3g}")


def _medians(jobs: tuple[Job, Job], turns: int) -> tuple[float, float]:
    """Seconds of both; either begins every other time, and the first turn does not count."""
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(turns + 1):
        for side in (0, 1) if turn % 2 else (1, 0):
            wait_until_idle("self")
            start = time.perf_counter()
            jobs[side]()
            if turn:
                times[side].append(time.perf_counter() - start)
    return statistics.median(times[0]), statistics.median(times[1])


def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    builds: dict[str, tuple[str, list[str] | None]] = {
        "ggml": ("llama-cpp-python", None),
        "ik": ("ik-llama-cpp-python", [str(args.ik)] if args.ik else None),
    }
    sides: dict[str, tuple[str, str, dict[str, Any]]] = {}
    for label, (name, objects) in builds.items():
        for repacked in (False, True):
            settings = {"distribution": name, "objects": objects, "repacked": repacked}
            sides[label + " repacked" * repacked] = (Path(__file__).stem, "Beside", settings)
    rows, cols = args.size or (parts.SCOUT_ROWS, parts.SCOUT_COLS)
    with players(sides) as started:
        for format in args.formats:
            for label, player in started.items():
                n_bytes = 4e6 if args.size else parts.COLD_BYTES
                found = player.call("compare", format, rows, cols, n_bytes, args.threads, args.placements, args.turns)
                if isinstance(found, NotImplementedError):
                    continue
                about = {key: player.description[key] for key in ("version", "flags", "threading")}
                for one in found:
                    record = {"format": format, "peer": label, **about, **one}
                    print(" ".join(row(record)), flush=True)
                    yield record


def row(record: dict[str, Any]) -> list[str]:
    """Peer, rates, ratio and its standard error."""
    rates = np.array(record["rates"]) / 1e9
    logs = np.log(rates[:, 0] / rates[:, 1])
    error = f"± {logs.std(ddof=1) / np.sqrt(len(logs)):.3f}" if len(logs) > 1 else ""
    shown = [record["format"], str(record["threads"]), record["form"], record["peer"]]
    shown += [f"{rate:.1f}" for rate in np.median(rates, axis=0)]
    return [*shown, f"{np.exp(logs.mean()):.3f}", error]


HEAD = """# Single rows of activations: quantkit and its peers on the same memory

{machine}, tier {tier}; {code}. Made by `tools/bench/single_rows.py`.

y = x Wᵀ with one row of x, W of 8192 × 5120, over 512 MB of weights, so that no cache helps. Both sides have them
as a file does, or repacked, as the row says. They live in one process, each with its weights in one of two pieces of
memory. They take turns, and change places: where memory happens to lie is up to a tenth of a rate, and drops out so. A
ratio is quantkit over the peer, the mean over {placements} allocations of the two pieces; the figure behind it is its
standard error. Rates are medians, in GB/s of packed weights.

| format | threads | quantkit's weights | peer | quantkit | peer's | ratio | |
| --- | ---: | --- | --- | ---: | ---: | ---: | --- |
"""


def markdown(data: dict[str, Any]) -> str:
    records = sorted(data["records"], key=lambda one: (one["format"], one["threads"], one["form"]))
    sides = {one["peer"]: f"{one['version']}; {one['threading']}; {' '.join(one['flags'])}" for one in records}
    return (
        HEAD.format(**{key: data[key] for key in ("machine", "tier", "code", "placements")})
        + "\n".join(f"| {' | '.join(row(one))} |" for one in records)
        + "\n\n"
        + "\n".join(f"- {label}: {about}" for label, about in sides.items())
        + "\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", nargs="+", choices=parts.BLOCK_FORMATS, default=FORMATS_SHOWN, metavar="FORMAT")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--placements", type=int, default=6)
    parser.add_argument("--turns", type=int, default=15, help="of each side in each of its places")
    parser.add_argument("--ik", type=Path, help="libggml.so of ik_llama.cpp, built for this machine")
    parser.add_argument("--size", nargs=2, type=int, metavar=("ROWS", "COLS"), help="of a matrix, for a quick look")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--write", action="store_true", help="write the document beside the data")
    args = parser.parse_args()
    data = {
        "machine": cpu_model(),
        "tier": build_info()["tier"],
        "code": code_state(),
        "placements": args.placements,
        "records": list(measure(args)),
    }
    args.data.parent.mkdir(parents=True, exist_ok=True)
    args.data.write_text(json.dumps(data, indent=1) + "\n")
    if args.write:
        args.data.with_suffix(".md").write_text(markdown(data))


if __name__ == "__main__":
    main()
