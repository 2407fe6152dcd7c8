"""The kernels against ggml, ik_llama.cpp, MLX, torch and numpy's BLAS, side by side, beside the machine's own ceilings.

    python tools/bench/kernels.py [--only PART ...] [--formats FORMAT ...] [--threads 1 2] [--ik LIBGGML] [--write]

Peers are C functions of the libraries that their packages ship (`pip install -e '.[test,bench]'`), called through
ctypes: ggml_backend_graph_compute on n threads for products, ggml_quantize_chunk and the decoders of rows on n threads
that share the rows. Each side is a process of its own; they take turns, and medians are compared. `--ik` names another
libggml of ik_llama.cpp, its source built for this machine, because its wheel knows AVX2 only.

Figures are kept in docs/benchmarks/kernels.json; runs of the same machine and code come together there, so that parts
can be measured one by one, and `--write` makes the document of all that is there.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

import document  # noqa: E402
import parts  # noqa: E402
import records  # noqa: E402
from ceilings import Ceilings  # noqa: E402
from turns import players  # noqa: E402

from quantkit.kernels import build_info  # noqa: E402

DATA = ROOT / "docs" / "benchmarks" / "kernels.json"
DOCUMENT = DATA.with_suffix(".md")
SHOWN = ("q4_0", "q4_k", "q5_k", "q6_k", "q8_0", "iq4_xs")
PARTS = ("matmul", "experts", "encode", "decode", "groups")
EXPERT_ROWS = {16: parts.SCOUT_ROWS, 128: 2048}  # 128 whole matrices on every side would fill the memory


def contenders(wanted: set[str], ik: Path | None, tiers: list[str]) -> dict[str, tuple[str, str, dict[str, Any]]]:
    """What to start: label -> (module, class, settings)."""
    found: dict[str, tuple[str, str, dict[str, Any]]] = {}
    for tier in tiers:
        found[f"quantkit {tier}"] = ("contenders", "Quantkit", {"tier": tier})
        if wanted & {"matmul", "experts"}:
            found[f"quantkit {tier} repacked"] = ("contenders", "QuantkitRepacked", {"tier": tier})
    builds: dict[str, tuple[str, list[str] | None]] = {
        "ggml": ("llama-cpp-python", None),
        "ggml wheel": ("libggml-python", None),
    }
    builds |= {"ik": ("ik-llama-cpp-python", [str(ik)])} if ik else {}
    builds |= {"ik wheel": ("ik-llama-cpp-python", None)}
    if wanted & {"matmul", "experts", "encode", "decode"}:
        for label, (distribution, objects) in builds.items():
            for repacked in (False, True) if wanted & {"matmul", "experts"} else (False,):
                settings = {"distribution": distribution, "objects": objects, "repacked": repacked}
                found[label + " repacked" * repacked] = ("contenders", "Ggml", settings)
    if "matmul" in wanted:
        found["numpy f32"] = ("contenders", "Blas", {})
    if "groups" in wanted:
        found |= {"mlx": ("contenders", "Mlx", {}), "torch int4": ("contenders", "Torch", {})}
    return found


def measure(bench: parts.Bench, args: argparse.Namespace) -> Iterator[records.Record]:
    formats = {part: args.formats or (parts.BLOCK_FORMATS if part in ("encode", "decode") else SHOWN) for part in PARTS}
    if "matmul" in args.only:
        for format in formats["matmul"]:
            yield from parts.matmul(bench, format, args.rows, args.modes)
    if "experts" in args.only:
        for n_experts in args.experts:
            bench.rows = EXPERT_ROWS.get(n_experts, parts.SCOUT_ROWS) if args.size is None else args.size[0]
            for format in formats["experts"]:
                yield from parts.experts(bench, format, n_experts)
            bench.rows = args.size[0] if args.size else parts.SCOUT_ROWS
    for part in ("encode", "decode"):
        if part in args.only:
            for format in formats[part]:
                yield from getattr(parts, part)(bench, format, *(args.size or ())[:1])
    if "groups" in args.only:
        yield from parts.groups(bench)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--formats", nargs="+", choices=parts.BLOCK_FORMATS, metavar="FORMAT")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8, 64, 512], help="of activations")
    parser.add_argument("--modes", nargs="+", choices=("fast", "exact"), default=["fast", "exact"])
    parser.add_argument("--experts", nargs="+", type=int, default=[16, 128])
    parser.add_argument("--tiers", nargs="+", help="of quantkit; all vector tiers of this machine by default")
    parser.add_argument("--ik", type=Path, help="libggml.so of ik_llama.cpp, built for this machine")
    parser.add_argument(
        "--without", nargs="+", default=[], metavar="TEXT", help="leave out sides with this in their name"
    )
    parser.add_argument("--size", nargs=2, type=int, metavar=("ROWS", "COLS"), help="of a matrix, for a quick look")
    parser.add_argument("--turns", type=int, help="instead of 3 to 7, by the length of a turn")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--write", action="store_true", help=f"write {DOCUMENT.relative_to(ROOT)} from all data")
    parser.add_argument("--no-run", action="store_true", help="measure nothing: with --write")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    if not args.no_run:
        run(args)
    if args.write:
        args.data.with_suffix(".md").write_text(document.markdown(records.load(args.data)))


def run(args: argparse.Namespace) -> None:
    tiers = args.tiers or [tier for tier in build_info()["tiers_supported"] if tier != "scalar"]
    small = args.size is not None
    limits = Ceilings(*((16, 0.002) if small else ()))
    for threads in args.threads:
        limits.survey(threads)
    for (threads, name), rate in limits.best.items():
        print(f"{threads} threads: {name} {rate / 1e9:.1f} G/s")
    sides = contenders(set(args.only), args.ik, tiers)
    sides = {label: side for label, side in sides.items() if not any(text in label for text in args.without)}
    with players(sides) as started:
        descriptions = {label: player.description for label, player in started.items()}
        for label, found in descriptions.items():
            print(f"{label}: {found['version']}, {found['threading']}, {' '.join(found['flags']) or found['tier']}")
        bench = parts.Bench(started, limits, args.threads, turns=args.turns)
        if small:
            bench.rows, bench.cols, bench.cold_bytes = args.size[0], args.size[1], 4e6
        done: list[records.Record] = []
        try:
            for record in measure(bench, args):
                done.append(record)
                print(document.line(record), flush=True)
        finally:  # what was measured before somebody lost patience is kept
            keep(args.data, descriptions, limits, done)
    limits.close()


def keep(data: Path, descriptions: dict[str, dict[str, Any]], limits: Ceilings, done: Sequence[records.Record]) -> None:
    best: dict[str, dict[str, float]] = {}
    for (threads, name), rate in limits.best.items():
        best.setdefault(str(threads), {})[name] = rate
    records.collect(records.this_run(descriptions, best, done), data)


if __name__ == "__main__":
    main()
