"""What quantization costs: mean KLD to the 16-bit file, quantkit against llama.cpp's own quantizer, type by type.

    python tools/bench/kld.py CHECKPOINT... --texts FOLDER --cache FOLDER [--stage select] [--types q4_k_m] [--write]
    python tools/bench/kld.py CHECKPOINT... --texts FOLDER --cache FOLDER --stage calibrated [--write]

FOLDER has calibration/*.jsonl and evaluation/*.jsonl with lines {"domain": ..., "text": ...}. Both files of a pair are
made from the same 16-bit weights, with the same importance matrix or with none, and both are judged by llama.cpp's
logits. The evaluation texts are cut in two by document: the encoder's weighting is chosen on one half (--stage select),
the ratios are measured on the other (--stage report). Scores are cached by what is in the file that was scored.

--stage calibrated gives both sides one and the same file that `quantkit calibrate` has made, and llama-quantize once
more what `quantkit imatrix export --shrunk` makes of it. With --write it replaces its own section of the document.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from itertools import cycle
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.oracle import drift, imatrix, llama  # noqa: E402

import quantkit  # noqa: E402
from quantkit.checkpoint import open_checkpoint  # noqa: E402
from quantkit.gguf import read_imatrix, write_imatrix  # noqa: E402
from quantkit.recipes import RECIPES  # noqa: E402

N_CTX, CALIBRATION_CTX = 256, 512
WEIGHTINGS = ("magnitude", "unbiased")  # against "plain"
JUDGED = 1.03
CALIBRATED_TYPES, CALIBRATED_JUDGED = ("q4_k_m", "q3_k_m", "q2_k", "iq4_xs"), 1.0
INTRODUCTION = """\
# Drift against llama.cpp's quantizer

Written by `tools/bench/kld.py`. Mean KLD in nats to the BF16 file that both sides are made from, by the logits of
llama.cpp (llama-cpp-python {version}), context {n_ctx}, second half of each chunk scored. ± is one standard error of
the paired ratio, clustered by chunk. Below 1 quantkit drifts less; {judged} is what we allow. As long as the ratio is
within two errors of that, more is scored: all of the text instead of a part; then the half too on which weightings were
compared (all that was chosen on it is one rule for all formats); then once more with chunks that begin half a chunk
later, so that other tokens count. The mean hangs on the few tokens whose expert changes, most of all where little is
lost (two thirds of q8_0's mean comes from a hundredth of the tokens), so the ratio of the medians is given too. An
imatrix does not reach q8_0, on either side. Perplexity of models this small hides damage; it is printed for
completeness."""
SELECTION = """\
## Which weights reach the encoder

KLD with llama.cpp's magnitude weighting, and with unbiased scales, over KLD with plain weights: every matrix in the one
format, on the half of the evaluation documents that the tables below do not use. Least squares makes decoded blocks
shorter than the originals, by the share of the error: the one part of it that has the same sign everywhere. `unbiased`
stretches the scales by as much. In two and three bits that takes 3 to 12 % off the KLD, from four bits on up to 5 %,
and no format loses by more than the noise; so `convert/weighting.py` takes it for all but q8_0 and q4_1, whose
quick search has no time to spare.
In q4_1 and q5_1 without importance magnitude is better still, but their plain search is four times as fast.
"""
CALIBRATED = """\
## One file of quantkit's calibration for both

Importance from `quantkit calibrate`, and the same file for both quantizers: llama-quantize takes each expert's own
means, `convert` shrinks them (`quantkit/gguf/shrinkage.py`). The last column but one is over llama-quantize with
`quantkit imatrix export --shrunk`, so that the encoders alone differ. Every tensor has the same type on both sides.
All else is as above; what is allowed is {judged:.2f}.
"""
DOCUMENT = ROOT / "docs" / "benchmarks" / "kld.md"


def documents(folder: Path) -> Iterator[tuple[int, str]]:
    """(number within its domain, text) of every document."""
    for file in sorted(folder.glob("*.jsonl")):
        for number, line in enumerate(file.read_text().splitlines()):
            yield number, json.loads(line)["text"]


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:24]


def content(path: Path) -> bytes:
    """What a file computes with: its tensors. Metadata may change without making a score stale."""
    hashed = hashlib.sha256()
    for tensor in gguf.GGUFReader(path).tensors:
        hashed.update(f"{tensor.name} {tensor.tensor_type} {tensor.shape}".encode())
        hashed.update(tensor.data.tobytes())
    return hashed.digest()


@dataclass
class Bench:
    """One checkpoint: its 16-bit file, importance matrix and texts, made when first asked for."""

    checkpoint: Path
    texts: Path
    cache: Path
    half: str  # "selection" or "report"
    n_chunks: int
    n_calibration_chunks: int
    skip: int = 0  # tokens of the evaluation text

    @cached_property
    def folder(self) -> Path:
        folder = self.cache / self.checkpoint.name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @cached_property
    def base(self) -> Path:
        return self.ours("bf16", name="base")

    @cached_property
    def _bos(self) -> int:
        return open_checkpoint(self.checkpoint).tokenizer().bos_id

    @cached_property
    def calibration(self) -> NDArray[np.int32]:
        texts = (text for _, text in documents(self.texts / "calibration"))
        return drift.spread(drift.chunked(self.base, texts, CALIBRATION_CTX, self._bos), self.n_calibration_chunks)

    @cached_property
    def evaluation(self) -> NDArray[np.int32]:
        parity = 0 if self.half == "selection" else 1
        texts = (text for number, text in documents(self.texts / "evaluation") if number % 2 == parity)
        return drift.spread(drift.chunked(self.base, texts, N_CTX, self._bos, skip=self.skip), self.n_chunks)

    @cached_property
    def entries(self) -> dict[str, imatrix.Entry]:
        kept = self.folder / f"entries-{digest(content(self.base) + self.calibration.tobytes())}.npz"
        if not kept.exists():
            entries = imatrix.collect(self.base, self.calibration)
            flat = {name: entry.sums for name, entry in entries.items()}
            np.savez(kept, **flat, **{f"{name}:counts": entry.counts for name, entry in entries.items()})
        stored = np.load(kept)
        names = [name for name in stored if not name.endswith(":counts")]
        return {name: imatrix.Entry(stored[name], stored[f"{name}:counts"]) for name in names}

    @cached_property
    def imatrix(self) -> Path:
        chunks = self.calibration
        return imatrix.write(
            self.folder / "imatrix.gguf",
            self.entries,
            dataset=self.texts.name,
            n_chunks=len(chunks),
            chunk_size=CALIBRATION_CTX,
        )

    @cached_property
    def calibrated(self) -> tuple[Path, int]:
        """What `quantkit calibrate` makes of the calibration texts, and of how many tokens."""
        path = self.folder / f"calibrated-{self.half}.gguf"
        text = sorted((self.texts / "calibration").glob("*.jsonl"))
        done = quantkit.calibrate(self.checkpoint, path, text=text, context=CALIBRATION_CTX, force=True)
        return path, done.tokens

    @cached_property
    def calibrated_means(self) -> dict[bool, dict[str, NDArray[np.float32]]]:
        """What llama-quantize takes from that file, by ggml's own reader; and (True) from its export with estimates."""
        raw, _ = self.calibrated
        shrunk = raw.with_name(f"shrunk-{self.half}.gguf")
        write_imatrix(shrunk, read_imatrix(raw).as_shrunk())
        return {
            is_shrunk: imatrix.importance(imatrix.load(path).entries) for is_shrunk, path in enumerate((raw, shrunk))
        }

    @cached_property
    def _key(self) -> str:
        return digest(content(self.base) + self.evaluation.tobytes())

    @cached_property
    def reference(self) -> NDArray[np.float32]:
        """Log-probabilities of the 16-bit file, on disk: they are the largest thing here."""
        path = self.folder / f"reference-{self._key}.npy"
        if not path.exists():
            with llama.Model(self.base, vocab_only=True) as model:
                shape = (len(self.evaluation), drift.n_scored(N_CTX), model.n_vocab)
            part = path.with_suffix(".part")
            out = np.lib.format.open_memmap(part, "w+", np.float32, shape)
            drift.log_probabilities(self.base, self.evaluation, out)
            out.flush()
            part.rename(path)
        return np.load(path, mmap_mode="r")

    def ours(
        self,
        recipe: str,
        *,
        name: str,
        importance: Path | None = None,
        weighting: str | None = None,
        pure: bool = False,
    ) -> Path:
        path = self.folder / f"{name}-{self.half}.gguf"
        quantkit.convert(
            self.checkpoint,
            path,
            [recipe],
            imatrix=importance,
            weighting=weighting,
            pure=pure,
            threads=1,
            force=True,
        )
        return path

    def theirs(self, recipe: str, *, importance: dict[str, NDArray[np.float32]] | None) -> Path:
        path = self.folder / f"theirs-{self.half}.gguf"
        return llama.quantize(self.base, path, RECIPES[recipe].ftype, importance=importance)

    def scores(self, path: Path) -> drift.Scores:
        """Scores of a file, from the cache when the same tensors have been scored on the same text before."""
        kept = self.folder / f"scores-{self._key}-{digest(content(path))}.npz"
        if not kept.exists():
            scores = drift.score(path, self.evaluation, self.reference)
            np.savez(kept, kld=scores.kld, surprise=scores.surprise)
        stored = np.load(kept)
        return drift.Scores(stored["kld"], stored["surprise"])


def with_error(value: tuple[float, float]) -> str:
    return f"{value[0]:.3f} ± {value[1]:.3f}"


def select(benches: Sequence[Bench], formats: Sequence[str], with_importance: Sequence[bool]) -> list[str]:
    """KLD with each weighting over KLD with plain weights, every matrix in one format (--pure)."""
    heads = [f"{bench.checkpoint.name}, {name}" for name in WEIGHTINGS for bench in benches]
    lines = [f"| format | imatrix | {' | '.join(heads)} | least |", f"| --- | --- |{' ---: |' * len(heads)} --- |"]
    print(*lines, sep="\n", flush=True)
    for recipe in formats:
        for importance in with_importance:
            klds = {
                (weighting, bench.checkpoint): bench.scores(
                    bench.ours(
                        recipe,
                        name="ours",
                        importance=bench.imatrix if importance else None,
                        weighting=weighting,
                        pure=True,
                    )
                ).kld
                for weighting in ("plain", *WEIGHTINGS)
                for bench in benches
            }
            ratios = {
                weighting: [
                    drift.ratio(klds[weighting, bench.checkpoint], klds["plain", bench.checkpoint]) for bench in benches
                ]
                for weighting in WEIGHTINGS
            }
            means = {"plain": (0.0, 0.0)} | {weighting: combined(ratios[weighting]) for weighting in WEIGHTINGS}
            least = min(means, key=lambda weighting: means[weighting][0])
            open_question = least == "plain" or abs(means[least][0]) < 2 * means[least][1]
            cells = " | ".join(with_error(ratio) for weighting in WEIGHTINGS for ratio in ratios[weighting])
            line = (
                f"| {RECIPES[recipe].default_type} | {'yes' if importance else 'no'} | {cells} "
                f"| {'any' if open_question else least} |"
            )
            print(line, flush=True)
            lines.append(line)
    return lines


def combined(ratios: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Mean of the logarithms of the ratios, and its standard error."""
    mean = sum(math.log(ratio) for ratio, _ in ratios) / len(ratios)
    return mean, math.sqrt(sum((error / ratio) ** 2 for ratio, error in ratios)) / len(ratios)


def more_and_more(bench: Bench) -> tuple[list[Bench], ...]:
    """The text to score on, as long as the error leaves the answer open."""
    whole = replace(bench, n_chunks=sys.maxsize)
    both = [whole, replace(whole, half="selection")]
    return [bench], [whole], both, both + [replace(part, skip=N_CTX // 2) for part in both]


def verdict(ratio: float, error: float, allowed: float) -> str:
    if ratio <= allowed:
        return ""
    return " over, by less than 2 errors" if ratio - 2 * error <= allowed else " **over**"


def types_of(path: Path) -> dict[str, int]:
    return {tensor.name: tensor.tensor_type for tensor in gguf.GGUFReader(path).tensors}


def report_calibrated(bench: Bench, recipes: Sequence[str]) -> list[str]:
    """Ours over theirs, with one file of quantkit's for both."""
    path, n_tokens = bench.calibrated
    lines = [
        f"{bench.checkpoint.name}, {n_tokens:,} tokens of other text:",
        "",
        "| type | tokens | KLD llama.cpp | KLD quantkit | ratio | ratio of medians | over --shrunk "
        "| perplexity quantkit / llama.cpp |",
        f"| --- |{' ---: |' * 7}",
    ]
    print(*lines, sep="\n", flush=True)
    for recipe in recipes:
        for step in more_and_more(bench):
            theirs: dict[bool, list[drift.Scores]] = {False: [], True: []}
            ours = []
            for part in step:
                made = part.ours(recipe, name="ours", importance=path)
                ours.append(part.scores(made))
                for shrunk, scores in theirs.items():
                    peer = part.theirs(recipe, importance=bench.calibrated_means[shrunk])
                    if types_of(peer) != types_of(made):
                        raise SystemExit(f"{recipe}: the sides have tensors of different types")
                    scores.append(part.scores(peer))
            a, b, c = (drift.joined(scores) for scores in (ours, theirs[False], theirs[True]))
            ratio, error = drift.ratio(a.kld, b.kld)
            if abs(ratio - CALIBRATED_JUDGED) >= 2 * error:
                break
        lines.append(
            f"| {recipe} | {a.kld.size:,} | {b.mean_kld:.5f} | {a.mean_kld:.5f} "
            f"| {with_error((ratio, error))}{verdict(ratio, error, CALIBRATED_JUDGED)} "
            f"| {np.median(a.kld) / np.median(b.kld):.3f} | {with_error(drift.ratio(a.kld, c.kld))} "
            f"| {a.perplexity / b.perplexity:.4f} |"
        )
        print(lines[-1], flush=True)
    return lines


def with_section(document: str, section: Sequence[str]) -> str:
    """`document` with a section (its title comes first) in place of the one of that title, or at the end."""
    kept, skipping = [], False
    for line in document.splitlines():
        if line.startswith("## "):
            skipping = line == section[0]
        if not skipping:
            kept.append(line)
    return "\n".join([*kept, *([] if kept[-1] == "" else [""]), *section]) + "\n"


def report(bench: Bench, recipes: Sequence[str], with_importance: Sequence[bool]) -> list[str]:
    """Ours over theirs, as shipped; on more and more text as long as the error leaves the answer open."""
    steps = more_and_more(bench)
    lines = [
        "| type | imatrix | tokens | KLD llama.cpp | KLD quantkit | ratio | ratio of medians "
        "| perplexity llama.cpp | perplexity quantkit |",
        f"| --- | --- |{' ---: |' * 7}",
    ]
    print(*lines, sep="\n", flush=True)
    for recipe in recipes:
        for importance in with_importance:
            for step in steps:
                theirs, ours = [], []
                for part in step:
                    means = imatrix.importance(part.entries) if importance else None
                    theirs.append(part.scores(part.theirs(recipe, importance=means)))
                    made = part.ours(recipe, name="ours", importance=part.imatrix if importance else None)
                    ours.append(part.scores(made))
                a, b = drift.joined(ours), drift.joined(theirs)
                ratio, error = drift.ratio(a.kld, b.kld)
                if abs(ratio - JUDGED) >= 2 * error:
                    break
            over = verdict(ratio, error, JUDGED)
            line = (
                f"| {recipe} | {'yes' if importance else 'no'} | {a.kld.size:,} "
                f"| {b.mean_kld:.5f} | {a.mean_kld:.5f} | {with_error((ratio, error))}{over} "
                f"| {np.median(a.kld) / np.median(b.kld):.3f} | {b.perplexity:.3f} | {a.perplexity:.3f} |"
            )
            print(line, flush=True)
            lines.append(line)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True, help="files and scores are kept here (a few GB)")
    parser.add_argument("--stage", choices=("select", "report", "both", "calibrated"), default="both")
    parser.add_argument("--types", help="comma-separated recipes (default: all that quantize)")
    parser.add_argument("--imatrix", choices=("no", "yes", "both"), default="both")
    parser.add_argument("--chunks", type=int, default=240, help="of 256 tokens, to report on")
    parser.add_argument("--selection-chunks", type=int, nargs="+", default=[240], help="to select on, by checkpoint")
    parser.add_argument("--calibration-chunks", type=int, default=128, help="of 512 tokens")
    parser.add_argument("--write", action="store_true", help=f"write {DOCUMENT.relative_to(ROOT)}")
    args = parser.parse_args()
    if args.stage == "calibrated":
        chosen = args.types.split(",") if args.types else CALIBRATED_TYPES
        section = CALIBRATED.format(judged=CALIBRATED_JUDGED).splitlines()
        for checkpoint in args.checkpoints:
            bench = Bench(checkpoint.resolve(), args.texts, args.cache, "report", args.chunks, args.calibration_chunks)
            section += ["", *report_calibrated(bench, chosen)]
        if args.write:
            DOCUMENT.write_text(with_section(DOCUMENT.read_text(), section))
        return
    lossy = [name for name in RECIPES if name not in ("f32", "f16", "bf16")]
    recipes = args.types.split(",") if args.types else lossy
    with_importance = [
        importance for importance in (False, True) if args.imatrix in (("no", "yes")[importance], "both")
    ]
    benches: dict[str, list[Bench]] = {"selection": [], "report": []}
    for checkpoint, n_selection in zip(args.checkpoints, cycle(args.selection_chunks), strict=False):
        for half, n_chunks in (("selection", n_selection), ("report", args.chunks)):
            benches[half].append(
                Bench(checkpoint.resolve(), args.texts, args.cache, half, n_chunks, args.calibration_chunks)
            )
    text = [INTRODUCTION.format(version=version("llama-cpp-python"), n_ctx=N_CTX, judged=JUDGED)]
    if args.stage != "report":
        by_type = {RECIPES[name].default_type: name for name in reversed(recipes)}
        text += [
            "",
            SELECTION,
            *select(benches["selection"], list(reversed(by_type.values())), with_importance),
        ]
    if args.stage != "select":
        for bench in benches["report"]:
            text += [
                "",
                f"## {bench.checkpoint.name}",
                "",
                f"Importance from {bench.calibration.size:,} tokens of other text.",
                "",
                *report(bench, recipes, with_importance),
            ]
    if args.write:
        DOCUMENT.write_text("\n".join(text) + "\n")


if __name__ == "__main__":
    main()
