"""Encoders against ggml's, on one thread, on the same rows, in one run: CPU time and weighted squared error.

    python tools/bench/encode.py [FORMAT ...] [--checkpoint tests/data/tiny-llama4 ...] [--rows 256] [--repeats 9]
                                 [--write docs/benchmarks/encode.md]

The peer is ggml_quantize_chunk of the library inside `llama-cpp-python`. Both sides take turns on the same rows of
float32; medians of CPU time are printed, with the weighting that `convert` uses for the format. Errors are those under
the weights that are given, summed over all rows, and the worst single row is given too.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import ml_dtypes  # noqa: F401  (numpy knows bfloat16 by name once this is imported)
import numpy as np
from safetensors.numpy import load_file

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from machine import cpu_model  # noqa: E402
from tests import ggml  # noqa: E402

from quantkit.convert.weighting import weighting  # noqa: E402
from quantkit.kernels import FORMATS, build_info, dequantize, quantize  # noqa: E402
from quantkit.kernels.codec import Weighting  # noqa: E402

COLS = 4096
FAMILIES: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "normal": lambda rng, rows: rng.standard_normal((rows, COLS)) * 0.02,
    "student-t(5)": lambda rng, rows: rng.standard_t(5, (rows, COLS)) * 0.02,
}


def trained(checkpoint: Path, rows: int) -> np.ndarray:
    """Rows of every matrix of a checkpoint's language model, output-major, as many weights as `rows` rows have."""
    found = []
    for shard in sorted(checkpoint.glob("*.safetensors")):
        for name, tensor in load_file(shard).items():
            if tensor.ndim > 1 and not any(part in name for part in ("vision", "multi_modal", "router")):
                x = tensor.astype(np.float32)  # experts lie input-major
                found.append(x if x.ndim == 2 else x.transpose(0, 2, 1).reshape(-1, x.shape[1]))
    cols = {x.shape[1] for x in found}
    if len(cols) != 1:
        raise SystemExit(f"{checkpoint}: no matrices of one width, but of {sorted(cols)} columns")
    x = np.concatenate(found)
    return np.ascontiguousarray(x[:: max(1, x.size // (rows * COLS))])


def cpu_seconds(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def measure(name: str, x: np.ndarray, importance: np.ndarray | None, repeats: int) -> str:
    """One row of the table."""
    weights = 1.0 if importance is None else importance

    def ours(kind: Weighting) -> np.ndarray:
        return quantize(x, name, importance=importance, weighting=kind, threads=1)

    def theirs() -> np.ndarray:
        return ggml.quantize(x, name, importance)

    def errors(packed: np.ndarray) -> np.ndarray:
        return (weights * (dequantize(packed, name).astype(np.float64) - x) ** 2).sum(axis=1)

    a, b = errors(ours("plain")), errors(theirs())
    kind = weighting(name)
    times = [(cpu_seconds(lambda: ours(kind)), cpu_seconds(theirs)) for _ in range(repeats)]
    mine, peer = (x.size / statistics.median(side) / 1e6 for side in zip(*times, strict=True))
    return f"{mine:.0f} | {peer:.1f} | {mine / peer:.2f} | {a.sum() / b.sum():.4f} | {(a / b).max():.4f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("formats", nargs="*", help="all block formats when absent")
    parser.add_argument("--checkpoint", type=Path, action="append", default=[], help="rows of its matrices too")
    parser.add_argument("--rows", type=int, default=256, help=f"rows of {COLS} weights")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--write", type=Path, help="write the table as markdown")
    args = parser.parse_args()
    lines = [
        "# Encoding rows: quantkit against ggml, one thread",
        "",
        f"{cpu_model()}, tier {build_info()['tier']}, {build_info()['compiler']}; peer: {ggml.VERSION}. "
        f"{args.rows} rows of {COLS} float32 weights, median CPU time of {args.repeats} turns; millions of weights a "
        "second (M/s). Importance is log-normal. Error: weighted squared error over ggml's, and that of the worst row.",
        "",
        f"Written by `python tools/bench/encode.py --rows {args.rows} --repeats {args.repeats} --write FILE`"
        + (" with `--checkpoint` for rows of trained matrices." if args.checkpoint else "."),
        "",
        "| format | weights | importance | quantkit M/s | ggml M/s | times as fast | error / ggml's | worst row |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    print("\n".join(lines))
    rng = np.random.default_rng(0)
    importance = np.exp(rng.standard_normal(COLS)).astype(np.float32)
    matrices = {family: make(rng, args.rows).astype(np.float32) for family, make in FAMILIES.items()}
    matrices |= {path.name: trained(path, args.rows) for path in args.checkpoint}
    for name in args.formats or [name for name, found in FORMATS.items() if found.block_size > 1]:
        for family, x in matrices.items():
            for columns in (None, importance[: x.shape[1]]):
                kind = "no" if columns is None else "yes"
                lines.append(f"| {name} | {family} | {kind} | " + measure(name, x, columns, args.repeats))
                print(lines[-1], flush=True)
    if args.write:
        args.write.parent.mkdir(parents=True, exist_ok=True)
        args.write.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
