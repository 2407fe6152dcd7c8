"""Calibration against llama.cpp computing the same tokens; how its cost grows; its memory; what whole models will take.

    python tools/bench/calibrate.py --folder FOLDER [--only PART ...] [--turns 2] [--threads 2] [--write]

- speed: a walk with statistics over two layers of Scout's true shapes, and llama.cpp (llama-cpp-python) computing the
  same random tokens from the BF16 GGUF of the same checkpoint, in turns. 17 GB in FOLDER, and as much memory beside it,
  or the disk is measured.
- tokens, layers: the same walk at three sizes each.
- memory: the whole command on one layer of Scout's and two of Maverick's shapes. Experts are zeros in sparse files.

FOLDER keeps what was made, to be used again. Figures are kept in docs/benchmarks/calibrate.json, where a part that is
measured again replaces what was there, and `--write` makes the document of all that is there. `--around` runs each
process that is timed under another command, such as `taskset -c 0,1`.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

import calibration_document as document  # noqa: E402
from machine import cpu_model  # noqa: E402
from records import last_commit  # noqa: E402
from tests.llama4.checkpoints import MAVERICK, SCOUT, build  # noqa: E402

import quantkit  # noqa: E402
from quantkit.kernels import build_info  # noqa: E402
from quantkit.kernels.blas import blas_identity  # noqa: E402

DATA = ROOT / "docs" / "benchmarks" / "calibrate.json"
CODE = ("csrc", "src/quantkit/kernels", "src/quantkit/llama4/forward", "src/quantkit/calibration")
PARTS = ("speed", "tokens", "layers", "memory")
CONTEXT = 512
WALKS = Path(__file__).with_name("walks.py")
SMALL = {"heads": 8, "kv_heads": 2, "head_dim": 128, "hidden": 1024, "expert_width": 1024, "experts": 16}
TINY = {"heads": 4, "kv_heads": 2, "head_dim": 64, "hidden": 256, "expert_width": 256, "experts": 4}
ROUTERS = {"random": r"\.experts\.|lm_head", "all tokens to one expert": r"\.experts\.|lm_head|router"}  # zeros
VOCABULARY = 202_048
Record = dict[str, Any]


class Bench:
    """Checkpoints in a folder, and processes that use them."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._folder, self._around, self.threads = args.folder.resolve(), shlex.split(args.around), args.threads
        self.tiny: bool = args.tiny
        self._folder.mkdir(parents=True, exist_ok=True)

    def checkpoint(self, name: str, **shape: Any) -> Path:
        """Made once; a name stands for one shape."""
        path = self._folder / name
        if not (path / "model.safetensors").exists():
            part = self._folder / f"{name}.part"
            build(part, **shape, conditional=False)
            part.rename(path)
        return path

    def pair(self) -> tuple[Path, Path]:
        """Two layers of Scout's shapes, the second without RoPE, and their BF16 GGUF."""
        shape = (TINY if self.tiny else SCOUT) | {"layers": 2, "vocab": 1024}
        path = self.checkpoint("scout-2-layers", **shape, text_config={"no_rope_layers": [1, 0]})
        gguf = self._folder / "scout-2-layers.gguf"
        if not gguf.exists():
            quantkit.convert(path, gguf, ["bf16"], allow_mismatch=True, threads=self.threads)
        return path, gguf

    def with_vocabulary(self, name: str, **shape: Any) -> Path:
        """The same with a tokenizer of Llama 4's size, whose ids are o200k's."""
        from tests.oracle.o200k import write_checkpoint

        thin = self._folder / "o200k"
        if not (thin / "model.safetensors").exists():
            write_checkpoint(thin)
        described = json.loads((thin / "config.json").read_text())
        ids = {key: described[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
        path = self.checkpoint(name, **shape | {"vocab": VOCABULARY}, text_config=ids)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(thin / file, path / file)
        return path

    def text(self) -> Path:
        """What the documents of this repository say, over and over: which tokens they are does not matter here."""
        path = self._folder / "text.txt"
        path.write_text("\n".join(file.read_text() for file in sorted((ROOT / "docs").rglob("*.md"))) * 4)
        return path

    def logits(self, side: str) -> Path:
        return self._folder / f"logits-{side}.npy"

    def output(self) -> Path:
        return self._folder / "statistics.gguf"

    def run(self, walk: str, *, is_timed: bool = True, **arguments: Any) -> Record:
        around = self._around if is_timed else []
        line = [*around, sys.executable, str(WALKS), walk, json.dumps(arguments)]
        done = subprocess.run(line, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise SystemExit(f"{walk} {arguments} ended with {done.returncode}")
        found: Record = json.loads(done.stdout.strip().splitlines()[-1])
        return found

    def walk(self, checkpoint: Path, tokens: int, **more: Any) -> Record:
        more = {"first": not more.get("cold")} | more
        found = self.run(
            "quantkit", checkpoint=str(checkpoint), tokens=tokens, context=CONTEXT, threads=self.threads, **more
        )
        return found | {"side": "quantkit", "tokens": tokens}


def speed(bench: Bench, sizes: list[int], turns: int) -> Iterator[Record]:
    checkpoint, gguf = bench.pair()
    inputs, outputs = (256, 1024) if bench.tiny else (SCOUT["hidden"], SCOUT["expert_width"])
    experts = TINY["experts"] if bench.tiny else SCOUT["experts"]
    for turn in range(turns):
        yield bench.run("ceilings", threads=bench.threads, inputs=inputs, outputs=outputs) | {"side": "ceilings"}
        for tokens in sizes:
            yield bench.walk(checkpoint, tokens, logits=str(bench.logits("quantkit")))
            for ubatch in (CONTEXT, 4 * CONTEXT):
                found = bench.run(
                    "llama",
                    gguf=str(gguf),
                    tokens=tokens,
                    context=CONTEXT,
                    threads=bench.threads,
                    ubatch=ubatch,
                    step=2,
                    logits=str(bench.logits("llama")),
                )
                yield found | {"side": "llama.cpp", "tokens": tokens, "ubatch": ubatch}
        if turn:
            continue
        a, b = (np.load(bench.logits(side)).astype(np.float64) for side in ("quantkit", "llama"))
        differences = np.linalg.norm(a - b, axis=1) / np.linalg.norm(a, axis=1)
        yield {"side": "difference of logits", "median": float(np.median(differences))}
        for cold in (False, True):
            found = bench.run("reading", checkpoint=str(checkpoint), experts=experts, cold=cold)
            yield found | {"side": "reading", "cold": cold}
        yield bench.walk(checkpoint, sizes[-1], cold=True) | {"cold": True}


def tokens(bench: Bench, sizes: list[int], turns: int) -> Iterator[Record]:
    checkpoint, _ = bench.pair()
    for _ in range(turns):
        for size in sizes:
            yield bench.walk(checkpoint, size) | {"layers": 2}


def layers(bench: Bench, sizes: list[int], turns: int) -> Iterator[Record]:
    shape = (TINY if bench.tiny else SMALL) | {"vocab": 1024}
    n_tokens = CONTEXT if bench.tiny else 16 * CONTEXT
    for _ in range(turns):
        for size in sizes:
            path = bench.checkpoint(f"small-{size}-layers", **shape, layers=size)
            yield bench.walk(path, n_tokens) | {"layers": size}


def memory(bench: Bench, n_tokens: int) -> Iterator[Record]:
    shapes = {"Scout": SCOUT | {"layers": 1}, "Maverick": MAVERICK | {"layers": 2}}
    if bench.tiny:
        shapes = {"Maverick": TINY | {"layers": 2, "moe_step": 2}}
    for model, shape in shapes.items():
        for number, (router, zeros) in enumerate(ROUTERS.items()):
            path = bench.with_vocabulary(f"{model.lower()}-zeros-{number}", **shape, zeros=zeros)
            line = ["calibrate", str(path), "-o", str(bench.output()), "--text", str(bench.text()), "--tokens"]
            line += [str(n_tokens), "--threads", str(bench.threads), "--force"]
            case = {
                "model": model,
                "router": router,
                "tokens": n_tokens,
                "states_bytes": 4 * n_tokens * shape["hidden"],
            }
            yield case | {"side": "command"} | bench.run("command", is_timed=False, arguments=line)
            settings = {"tokens": n_tokens, "context": CONTEXT, "threads": bench.threads, "collect": False}
            yield case | {"side": "stream"} | bench.run("quantkit", is_timed=False, checkpoint=str(path), **settings)


def measure(args: argparse.Namespace) -> None:
    """The parts that are wanted, each kept when it is whole."""
    bench = Bench(args)
    parts: dict[str, Iterator[Record]] = {
        "speed": speed(bench, args.sizes, args.turns),
        "tokens": tokens(bench, args.token_sizes, args.turns),
        "layers": layers(bench, args.layer_sizes, args.turns),
        "memory": memory(bench, args.sizes[-1]),
    }
    for part in args.only:
        found = []
        for record in parts[part]:
            found.append(record)
            print(
                part,
                *(f"{name}={value}" for name, value in record.items() if name not in ("flags", "blas")),
                flush=True,
            )
        keep(args.data, part, {"code": last_commit(CODE), "threads": args.threads, "records": found})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where checkpoints go: 17 GB")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument(
        "--sizes", nargs="+", type=int, default=[16384], help="tokens, against llama.cpp; the last for memory"
    )
    parser.add_argument("--token-sizes", nargs="+", type=int, default=[8192, 16384, 32768])
    parser.add_argument("--layer-sizes", nargs="+", type=int, default=[4, 8, 16])
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--around", default="", metavar="COMMAND", help="to run what is timed under")
    parser.add_argument("--tiny", action="store_true", help="sizes at which figures mean nothing")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--write", action="store_true", help="write the document beside the data")
    parser.add_argument("--no-run", action="store_true", help="measure nothing: with --write")
    args = parser.parse_args()
    if not args.no_run:
        if args.folder is None:
            parser.error("--folder: where checkpoints go")
        measure(args)
    if args.write:
        args.data.with_suffix(".md").write_text(document.markdown(json.loads(args.data.read_text())))


def keep(data: Path, part: str, found: Record) -> None:
    """Beside the other parts that were measured on this machine."""
    head = {
        "machine": cpu_model(),
        "processors": os.cpu_count(),
        "tier": build_info()["tier"],
        "blas": blas_identity(),
        "llama-cpp-python": version("llama-cpp-python"),
    }
    parts = json.loads(data.read_text()) if data.exists() else {}
    if parts.get("head") != head:
        parts = {"head": head}
    data.parent.mkdir(parents=True, exist_ok=True)
    data.write_text(json.dumps(parts | {part: found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
