"""What `quantkit drift` says beside llama.cpp, and what it costs.

    python tools/bench/drift.py agreement CHECKPOINT... --text FILE... --folder FOLDER [--tokens 16384] [--write]
    python tools/bench/drift.py perplexity CHECKPOINT --binary LLAMA_PERPLEXITY --text FILE --folder FOLDER [--write]
    python tools/bench/drift.py cost --folder FOLDER [--tokens 8192] [--runs 2] [--write]

`agreement`: quantized files, each decoded by the `gguf` package to float32 and run in llama.cpp on the same tokens, and
the quantized files themselves, where llama.cpp rounds activations to 8 bits. `perplexity`: files of log-probabilities
to and from the real llama-perplexity, built from the sources in llama-cpp-python's sdist (docs/benchmarks/drift.md has
the commands). `cost`: memory and time of the command on
two layers of Scout's true shapes with its vocabulary (10 GB in FOLDER), in turns with the two plain forward passes,
each a process of its own. What was measured is kept in docs/benchmarks/drift.json, and the document is made of that.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from machine import cpu_model

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

RECORDS = ROOT / "docs" / "benchmarks" / "drift.json"
DOCUMENT = RECORDS.with_suffix(".md")
RECIPES = ["q8_0", "q6_k", "q4_k_m", "q3_k_m", "q2_k"]
CONTEXT, COST_CONTEXT = 256, 512
COST_TEXT = [ROOT / name for name in ("LICENSE", "docs/kernels.md", "docs/architecture.md", "docs/drift.md")]
SAID = {  # by llama-perplexity --kl-divergence, of KLD in nats and of tokens in per cent
    "kld": r"Mean\s+KLD:\s+(-?[0-9.]+)",
    "median": r"Median\s+KLD:\s+(-?[0-9.]+)",
    "p999": r"99\.9%\s+KLD:\s+(-?[0-9.]+)",
    "top1": r"Same top p:\s+([0-9.]+)",
}
BESIDE_STATES = 4e9  # bytes: the goal
PASSES = 1.3  # times the two forward passes, wall and processor seconds: the goal


def agreement(checkpoint: Path, texts: list[Path], folder: Path, tokens: int) -> dict[str, Any]:
    """One checkpoint, all recipes; `tests/oracle/divergence.py` says what each figure is."""
    from tests.drift.files import as_float, converted
    from tests.oracle.divergence import divergence, log_probabilities

    import quantkit
    from quantkit.calibration import checkpoint_encoder, documents
    from quantkit.checkpoint import open_checkpoint
    from quantkit.drift.sample import take_sample

    options: dict[str, Any] = {"context": CONTEXT, "tokens": tokens, "score": "second-half"}
    files = converted(folder, ["bf16", *RECIPES], checkpoint, force=True, allow_mismatch=True)
    with open_checkpoint(checkpoint) as cp:
        sample = take_sample(documents(texts), checkpoint_encoder(cp), paths=texts, **options)
    drift = quantkit.drift(checkpoint, [files[one] for one in RECIPES], text=texts, weights=False, **options)
    assert drift.text is not None
    assert drift.text.sha256 == sample.sha256
    decoded = folder / "decoded.gguf"
    p = log_probabilities(as_float(files["bf16"], decoded), sample)
    rows = []
    for recipe, candidate in zip(RECIPES, drift.candidates, strict=True):
        assert candidate.scores
        assert candidate.kld
        assert candidate.perplexity
        q = log_probabilities(as_float(files[recipe], decoded), sample)
        theirs = divergence(p, q, sample.targets)
        same = theirs.same_way(candidate.scores)
        rounded = log_probabilities(files[recipe], sample)
        row = {
            "recipe": recipe,
            "kld": [candidate.kld.mean, theirs.mean_kld],
            "ci95": candidate.kld.ci95,
            "kld_same_way": [float(candidate.scores.kld[same].mean()), float(theirs.kld[same].mean())],
            "other_way": int((~same).sum()),
            "top1": [candidate.top1_agreement, theirs.top1_agreement],
            "perplexity_ratio": [float(np.exp(candidate.perplexity.ln_ratio)), theirs.perplexity_ratio],
            "int8_kld": divergence(p, rounded, sample.targets).mean_kld,
            "int8_from_decoded": divergence(q, rounded, sample.targets).mean_kld,
        }
        rows.append(row)
        print(json.dumps(row), flush=True)
    decoded.unlink()
    for path in files.values():
        path.unlink()
    return {
        "checkpoint": checkpoint.name,
        "tokens": drift.text.tokens,
        "scored": drift.text.scored_tokens,
        "context": CONTEXT,
        "llama_cpp": version("llama-cpp-python"),
        "machine": machine(),
        "rows": rows,
    }


def perplexity(checkpoint: Path, binary: Path, text: Path, folder: Path) -> dict[str, Any]:
    """One checkpoint: llama-perplexity's base file read by quantkit, and quantkit's by llama-perplexity, candidates
    decoded to float32 so that both compute the same function."""
    from tests.drift.files import as_float, converted

    import quantkit

    files = converted(folder, ["bf16", *RECIPES], checkpoint, force=True, allow_mismatch=True)
    theirs, own = folder / "theirs.kld", folder / "own.kld"
    for path in (theirs, own):
        path.unlink(missing_ok=True)
    common = ["-f", str(text), "-c", str(CONTEXT), "-b", str(CONTEXT), "-t", "1"]

    def call(path: Path, *arguments: str) -> str:
        done = subprocess.run([str(binary), "-m", str(path), *common, *arguments], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{binary} failed: {done.stderr[-2000:]}")
        return done.stdout + done.stderr

    call(as_float(files["bf16"], folder / "reference.gguf"), "--kl-divergence-base", str(theirs))
    candidates = [as_float(files[one], folder / f"{one}-decoded.gguf") for one in RECIPES]
    models = quantkit.drift(
        files["bf16"], candidates, text=[text], context=CONTEXT, score="second-half", weights=False, write_kl_base=own
    )
    from_file = quantkit.drift(theirs, candidates)
    rows = []
    for recipe, path, side_by_side, read in zip(
        RECIPES, candidates, models.candidates, from_file.candidates, strict=True
    ):
        assert side_by_side.kld
        assert read.kld
        row: dict[str, Any] = {"recipe": recipe, "side_by_side": side_by_side.kld.mean}
        row["read"] = {"kld": read.kld.mean, "p999": read.kld.p999, "median": read.kld.median}
        row["read"]["top1"] = 100 * read.top1_agreement
        for name, base in (("theirs", theirs), ("own", own)):
            said = call(path, "--kl-divergence", "--kl-divergence-base", str(base))
            row[name] = {key: float(re.findall(pattern, said)[-1]) for key, pattern in SAID.items()}
        rows.append(row)
    assert from_file.text
    return {
        "checkpoint": checkpoint.name,
        "text": text.name,
        "tokens": from_file.text.tokens,
        "scored": from_file.text.scored_tokens,
        "context": CONTEXT,
        "llama_cpp": version("llama-cpp-python"),
        "same_bytes_before_records": _same_head(theirs, own),
        "machine": machine(),
        "rows": rows,
    }


def _same_head(first: Path, second: Path) -> bool:
    """Header, tokens and size of two files of log-probabilities."""
    from quantkit.drift.kl_base import file_bytes, open_kl_base

    base = open_kl_base(first)
    size = file_bytes(len(base.tokens), base.context, base.n_vocab, records=False)
    same_size = first.stat().st_size == second.stat().st_size
    return same_size and first.read_bytes()[:size] == second.read_bytes()[:size]


def machine() -> str:
    from quantkit import kernels

    info = kernels.build_info()
    return f"{cpu_model()}, {os.cpu_count()} processors, tier {info['tier']}, numpy {np.__version__}"


def run(*command: str) -> dict[str, Any]:
    """Wall and processor seconds and peak memory of a process, by the operating system's account, and its stdout."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT)
    assert process.stdout is not None
    text = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    cpu = usage.ru_utime + usage.ru_stime
    return {"wall": time.perf_counter() - start, "cpu": cpu, "peak": peak, "stdout": text.decode()}


def plain(reference: str, candidate: str, tokens: int, threads: int) -> None:
    """The two forward passes on the tokens that `drift` takes, logits included and thrown away."""
    from contextlib import closing

    from quantkit.calibration import documents
    from quantkit.drift.models import open_model
    from quantkit.drift.sample import take_sample
    from quantkit.llama4.forward import Stream

    for number, path in enumerate((reference, candidate)):
        model = open_model(path)
        with closing(model.weights):
            if number == 0:
                encoder = model.encoder()
                sample = take_sample(
                    documents(COST_TEXT), encoder, context=COST_CONTEXT, tokens=tokens, score="all", paths=COST_TEXT
                )
            with Stream(model.weights, sample.chunks, threads=threads) as stream:
                stream.run()
                for _ in stream.logit_blocks():
                    pass


def build_scout(folder: Path) -> tuple[Path, Path]:
    """Two layers of Scout's shapes with random weights but for the experts, which are zeros in sparse files."""
    from tests.llama4.checkpoints import SCOUT, build

    import quantkit

    checkpoint, quantized = folder / "scout-2-layers", folder / "scout-2-layers-q4_k_m.gguf"
    if not quantized.exists():
        build(checkpoint, **SCOUT | {"layers": 2}, zeros=r"feed_forward\.experts\.")
        quantkit.convert(checkpoint, quantized, ["q4_k_m"], force=True)
    return checkpoint, quantized


def cost(folder: Path, tokens: int, threads: int, runs: int) -> dict[str, Any]:
    reference, candidate = map(str, build_scout(folder))
    texts = [word for path in COST_TEXT for word in ("--text", str(path))]
    drift = [sys.executable, "-m", "quantkit", "drift", reference, candidate, *texts, "--threads", str(threads)]
    drift += ["--tokens", str(tokens), "--context", str(COST_CONTEXT), "--json", "-"]
    sides = {
        "two forward passes": [sys.executable, __file__, "plain", reference, candidate, str(tokens), str(threads)],
        "drift": drift,
        "drift --no-local --no-weights": [*drift, "--no-local", "--no-weights"],
    }
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    before = {path.name for path in folder.iterdir()}
    for _ in range(runs):
        for name, command in sides.items():
            one = run(*command)
            report = one.pop("stdout")
            if report:
                assert json.loads(report)["text"]["tokens"] == tokens
            found[name].append(one)
            print(name, json.dumps(one), flush=True)
    assert {path.name for path in folder.iterdir()} == before, "the command left files"
    return {
        "tokens": tokens,
        "context": COST_CONTEXT,
        "threads": threads,
        "runs": runs,
        "states": tokens * 5120 * 4,
        "machine": machine(),
        "sides": found,
    }


def document(records: dict[str, Any]) -> str:
    lines = ["# Drift: agreement with llama.cpp, and cost", "", "Written by `tools/bench/drift.py`.", ""]
    for one in records.get("agreement", {}).values():
        lines += _agreement_lines(one)
    for one in records.get("perplexity", {}).values():
        lines += _perplexity_lines(one)
    if "cost" in records:
        lines += _cost_lines(records["cost"])
    return "\n".join(lines).rstrip() + "\n"


def _agreement_lines(one: dict[str, Any]) -> list[str]:
    head = ["", *(row["recipe"] for row in one["rows"])]
    lines = [
        f"## {one['checkpoint']}",
        "",
        f"{one['tokens']:,} tokens in chunks of {one['context']}, {one['scored']:,} scored in second halves;",
        f"llama.cpp as of llama-cpp-python {one['llama_cpp']}, one thread; {one['machine']}.",
        "",
        "| " + " | ".join(head) + " |",
        "| --- |" + " ---: |" * len(one["rows"]),
    ]

    def row(name: str, *cells: str) -> None:
        lines.append(f"| {name} | " + " | ".join(cells) + " |")

    rows = one["rows"]
    row("mean KLD, quantkit", *(f"{row['kld'][0]:.6f}" for row in rows))
    row("mean KLD, llama.cpp with the decoded file", *(f"{row['kld'][1]:.6f}" for row in rows))
    row("difference", *(f"{row['kld'][0] / row['kld'][1] - 1:+.4%}" for row in rows))
    row("quantkit's 95 % interval", *(_interval(row["ci95"]) for row in rows))
    row(
        "tokens whose expert float32's rounding decides, and what they change", *(f"{row['other_way']}" for row in rows)
    )
    row("difference without them", *(f"{row['kld_same_way'][0] / row['kld_same_way'][1] - 1:+.1e}" for row in rows))
    row("top-1 agreement, quantkit", *(f"{row['top1'][0]:.3%}" for row in rows))
    row("top-1 agreement, llama.cpp", *(f"{row['top1'][1]:.3%}" for row in rows))
    row("perplexity ratio, quantkit", *(f"{row['perplexity_ratio'][0]:.6f}" for row in rows))
    row("perplexity ratio, llama.cpp", *(f"{row['perplexity_ratio'][1]:.6f}" for row in rows))
    row("mean KLD, llama.cpp with the quantized file", *(f"{row['int8_kld']:.6f}" for row in rows))
    row("quantized against decoded file in llama.cpp", *(f"{row['int8_from_decoded']:.6f}" for row in rows))
    return [
        *lines,
        "",
        "The last two lines have llama.cpp's rounding of activations to 8 bits in them.",
        "",
    ]


def _perplexity_lines(one: dict[str, Any]) -> list[str]:
    sides = {
        "quantkit drift --kl-base, llama-perplexity's file": "read",
        "llama-perplexity, its own file": "theirs",
        "llama-perplexity, the file of --write-kl-base": "own",
    }
    rows = one["rows"]
    lines = [
        f"## llama-perplexity itself, {one['checkpoint']}",
        "",
        f"{one['text']}, {one['tokens']:,} tokens in chunks of {one['context']}, {one['scored']:,} scored; candidates "
        "decoded to float32;",
        f"llama.cpp as of llama-cpp-python {one['llama_cpp']}, one thread; {one['machine']}.",
        "",
        "| | | " + " | ".join(row["recipe"] for row in rows) + " |",
        "| --- | --- |" + " ---: |" * len(rows),
    ]
    for key, what in (("kld", "mean KLD"), ("median", "median"), ("p999", "99.9 %"), ("top1", "same top token, %")):
        for name, side in sides.items():
            cells = (f"{row[side][key]:.3f}" if key == "top1" else f"{row[side][key]:.6f}" for row in rows)
            lines.append(f"| {what} | {name} | " + " | ".join(cells) + " |")
    cells = (f"{row['side_by_side']:.6f}" for row in rows)
    same = "the same bytes" if one["same_bytes_before_records"] else "NOT the same bytes"
    return [
        *lines,
        "| mean KLD | quantkit drift, both models | " + " | ".join(cells) + " |",
        "",
        f"Header and tokens of both files are {same}. What is left is float32's rounding; a token that it sends to",
        "another expert can be 1 % of a small mean.",
        "",
        "```console",
        f"$ pip download --no-deps --no-binary llama-cpp-python llama-cpp-python=={one['llama_cpp']}",
        f"$ tar xf llama_cpp_python-{one['llama_cpp']}.tar.gz",
        f"$ cd llama_cpp_python-{one['llama_cpp']}/vendor/llama.cpp",
        "$ cmake -B build -DCMAKE_BUILD_TYPE=Release -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_SERVER=OFF \\",
        "    -DLLAMA_BUILD_APP=OFF",
        "$ cmake --build build --target llama-perplexity",
        "```",
        "",
    ]


def _interval(ci95: list[float] | None) -> str:
    return "" if ci95 is None else f"{ci95[0]:.6f} to {ci95[1]:.6f}"


def _cost_lines(one: dict[str, Any]) -> list[str]:
    sides = one["sides"]
    middle = {
        name: {key: statistics.median(run[key] for run in runs) for key in ("wall", "cpu", "peak")}
        for name, runs in sides.items()
    }
    base = middle["two forward passes"]
    turns = "one run of each in turns" if one["runs"] == 1 else f"medians of {one['runs']} runs in turns"
    lines = [
        "## Cost",
        "",
        f"Two layers of Scout's shapes, 16 experts, 202,048 tokens of vocabulary; bf16 checkpoint (13 GB) against its "
        f"q4_k_m; {one['tokens']:,} tokens",
        f"in chunks of {one['context']}, {one['threads']} threads, {turns}, each a process of its own. Weights of "
        "experts are zeros,",
        f"which changes no work. Hidden states take 2 ×  {one['states'] / 1e9:.2f} GB. {one['machine']}.",
        "",
        "| | wall s | processor s | of the two passes: wall | processor | peak RSS GB | without hidden states |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, cost in middle.items():
        states = one["states"] * (1 if name == "two forward passes" else 2)
        lines.append(
            f"| {name} | {cost['wall']:.0f} | {cost['cpu']:.0f} | {cost['wall'] / base['wall']:.2f} | "
            f"{cost['cpu'] / base['cpu']:.2f} | {cost['peak'] / 1e9:.2f} | {(cost['peak'] - states) / 1e9:.2f} |"
        )
    drift = middle["drift"]
    fast = "met" if max(drift[key] / base[key] for key in ("wall", "cpu")) <= PASSES else "NOT met"
    fast = "one run does not tell" if one["runs"] == 1 else fast
    small = "met" if drift["peak"] - 2 * one["states"] <= BESIDE_STATES else "NOT met"
    lines += [
        "",
        f"Goals: at most {PASSES} × the two passes ({fast}), and {BESIDE_STATES / 1e9:.0f} GB "
        f"beside hidden states ({small}). `drift` also compares all weights, whatever the "
        "number\nof tokens, and runs an eighth more tokens for each layer's own error. No logits are written: at 4 "
        f"bytes they would be {one['tokens'] * 202048 * 4 / 1e9:.1f} GB a model.",
        "",
        *([one["note"], ""] if "note" in one else []),
    ]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    stages = parser.add_subparsers(dest="stage", required=True)
    first = stages.add_parser("agreement")
    first.add_argument("checkpoints", type=Path, nargs="+")
    first.add_argument("--text", type=Path, nargs="+", required=True, dest="texts")
    first.add_argument("--tokens", type=int, default=16384)
    second = stages.add_parser("cost")
    second.add_argument("--tokens", type=int, default=8192)
    second.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    second.add_argument("--runs", type=int, default=2)
    fourth = stages.add_parser("perplexity")
    fourth.add_argument("checkpoint", type=Path)
    fourth.add_argument("--binary", type=Path, required=True)
    fourth.add_argument("--text", type=Path, required=True, help="one file: llama-perplexity takes no more")
    for stage in (first, second, fourth):
        stage.add_argument("--folder", type=Path, required=True, help="where files are made")
        stage.add_argument("--write", action="store_true", help=f"keep the figures in {RECORDS.relative_to(ROOT)}")
    third = stages.add_parser("plain")
    third.add_argument("reference")
    third.add_argument("candidate")
    third.add_argument("tokens", type=int)
    third.add_argument("threads", type=int)
    args = parser.parse_args()
    if args.stage == "plain":
        plain(args.reference, args.candidate, args.tokens, args.threads)
        return
    args.folder.mkdir(parents=True, exist_ok=True)
    records: dict[str, Any] = json.loads(RECORDS.read_text()) if RECORDS.exists() else {}
    if args.stage == "agreement":
        for checkpoint in args.checkpoints:
            found = agreement(checkpoint.resolve(), args.texts, args.folder, args.tokens)
            records.setdefault("agreement", {})[checkpoint.name] = found
    elif args.stage == "perplexity":
        found = perplexity(args.checkpoint.resolve(), args.binary.resolve(), args.text, args.folder)
        records.setdefault("perplexity", {})[args.checkpoint.name] = found
    else:
        records["cost"] = cost(args.folder, args.tokens, args.threads, args.runs)
    print(document(records))
    if args.write:
        RECORDS.write_text(json.dumps(records, indent=1) + "\n")
        DOCUMENT.write_text(document(records))


if __name__ == "__main__":
    main()
