"""What shrinking an importance matrix is worth: mean KLD with each expert's own means, and with the estimates.

    python tools/bench/imatrix.py CHECKPOINT --texts FOLDER --cache FOLDER [--calibration-chunks 2 8 32 128] [--write]

Folders as for kld.py. Raw means are what llama-quantize computes: ones for an expert that saw no token. Both files are
made by quantkit and judged by llama.cpp's logits. Beforehand the noise of mean squares is measured, by chunk of text,
which is what the constant in quantkit/gguf/shrinkage.py goes by.
"""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

import numpy as np
from kld import CALIBRATION_CTX, N_CTX, ROOT, Bench
from tests.oracle import drift, imatrix
from tests.oracle.llama import Model

import quantkit
from quantkit.gguf import Imatrix, ImatrixEntry, write_imatrix
from quantkit.gguf.shrinkage import NOISE

DOCUMENT = ROOT / "docs" / "benchmarks" / "imatrix.md"


def noise(bench: Bench) -> list[str]:
    """n × relative variance of the mean square of n tokens, from the scatter between chunks; median over columns."""
    chunks: list[dict[str, imatrix.Entry]] = []
    collector = imatrix.Collector()
    with Model(bench.base, n_ctx=CALIBRATION_CTX, observe=lambda *node: collector(*node)) as model:
        for chunk in bench.calibration:
            collector = imatrix.Collector()
            model.logits(chunk)
            chunks.append(collector.entries)
    by_tensor: dict[str, list[float]] = {}
    for name in chunks[0]:
        sums = np.stack([chunk[name].sums for chunk in chunks])
        counts = np.stack([chunk[name].counts for chunk in chunks]).astype(np.float64)
        means, total = sums.sum(0) / counts.sum(0)[:, None], counts.sum(0)[:, None]
        residuals = sums - counts[:, :, None] * means
        relative = total * np.square(residuals / total).sum(0) / np.square(means)
        by_tensor.setdefault(name.split(".")[2], []).append(float(np.median(relative)))
    return [
        f"| {name} | {min(values):.0f} | {np.median(values):.0f} | {max(values):.0f} |"
        for name, values in sorted(by_tensor.items())
    ]


def ratios(bench: Bench, recipes: list[str]) -> list[str]:
    """KLD with the estimates over KLD with raw means."""
    raw = bench.folder / "raw.gguf"
    means = imatrix.importance(bench.entries)
    # Marked as estimates, so that they are taken as they are.
    entries = {name: ImatrixEntry(values, np.ones(len(values))) for name, values in means.items()}
    write_imatrix(raw, Imatrix(entries, ("raw means",), 1, CALIBRATION_CTX, shrunk=True))
    counts = np.concatenate([entry.counts for name, entry in bench.entries.items() if "gate_exps" in name])
    lines = []
    for recipe in recipes:
        scores = {}
        for path in (raw, bench.imatrix):
            out = bench.folder / "weighted.gguf"
            quantkit.convert(bench.checkpoint, out, [recipe], imatrix=path, threads=1, force=True)
            scores[path] = bench.scores(out)
        ratio, error = drift.ratio(scores[bench.imatrix].kld, scores[raw].kld)
        lines.append(
            f"| {recipe} | {bench.calibration.size:,} | {counts.min()} | {np.median(counts):.0f} "
            f"| {scores[raw].mean_kld:.5f} | {scores[bench.imatrix].mean_kld:.5f} | {ratio:.3f} ± {error:.3f} |"
        )
        print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--types", nargs="+", default=["q2_k", "q4_k_m"])
    parser.add_argument("--calibration-chunks", type=int, nargs="+", default=[2, 8, 32, 128], help="of 512 tokens")
    parser.add_argument("--noise-chunks", type=int, default=200)
    parser.add_argument("--chunks", type=int, default=120, help=f"of {N_CTX} tokens, to score")
    parser.add_argument("--write", action="store_true", help=f"write {DOCUMENT.relative_to(ROOT)}")
    args = parser.parse_args()

    def bench(n_chunks: int) -> Bench:
        return Bench(args.checkpoint.resolve(), args.texts, args.cache, "report", args.chunks, n_chunks)

    lines = [
        "# Importance matrices with few tokens",
        "",
        f"Written by `tools/bench/imatrix.py` on {args.checkpoint.name}. Mean KLD in nats to the BF16 file by "
        f"llama.cpp's logits, second halves of {args.chunks} chunks of {N_CTX} tokens. Raw: own mean squares, and ones "
        "for an expert that saw no token, as llama-quantize has it. Shrunk: what `convert --imatrix` makes of the same "
        "file (`quantkit/gguf/shrinkage.py`). ± is one standard error of the paired ratio.",
        "",
        "| type | calibration tokens | least by expert | median | KLD raw | KLD shrunk | shrunk / raw |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        *(line for n in args.calibration_chunks for line in ratios(bench(n), args.types)),
        "",
        "How much a mean square of n tokens scatters: n × its relative variance (2 for independent Gaussian tokens), "
        f"from {args.noise_chunks} chunks of {CALIBRATION_CTX} tokens; median over columns and experts, for the layer "
        f"where it is least, in the median, and where it is largest. The estimator assumes {NOISE:.0f}.",
        "",
        "| input of | least | median | largest |",
        "| --- | ---: | ---: | ---: |",
        *noise(bench(args.noise_chunks)),
    ]
    text = "\n".join(line if line.startswith("|") else textwrap.fill(line, 120) for line in lines) + "\n"
    print(text)
    if args.write:
        DOCUMENT.write_text(text)


if __name__ == "__main__":
    main()
