"""docs/benchmarks/calibrate.md: what `calibrate.py` has measured, and what follows from it for whole models."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
from tests.llama4.checkpoints import MAVERICK, SCOUT

from quantkit.calibration.collector import statistics_bytes
from quantkit.llama4 import Hyperparameters

Record = Mapping[str, Any]
Part = Mapping[str, Any]  # code, threads, records
CONTEXT = 512
MODELS = {"Scout": SCOUT, "Maverick": MAVERICK}
TEXT_TOKENS = 65536  # of the examples by arithmetic
DISKS = {"5 GB/s": 5e9, "1 GB/s": 1e9}
MAC_RATE = 1.4e12  # Accelerate's sgemm on an M1's matrix unit


def attention_weights(shape: Mapping[str, int]) -> int:
    return 2 * shape["hidden"] * shape["head_dim"] * (shape["heads"] + shape["kv_heads"])


def operations(shape: Mapping[str, int], layer: int) -> float:
    """Of one token in one layer, a multiply-add counted as two; a causal query sees half of its context."""
    hidden = shape["hidden"]
    attention = 2 * attention_weights(shape) + 4 * shape["heads"] * shape["head_dim"] * (CONTEXT + 1) / 2
    if (layer + 1) % shape["moe_step"]:
        return attention + 6 * hidden * shape["dense_width"]
    return attention + 2 * hidden * shape["experts"] + 2 * 6 * hidden * shape["expert_width"]


def model_operations(shape: Mapping[str, int]) -> float:
    return sum(operations(shape, layer) for layer in range(shape["layers"]))


def model_bytes(shape: Mapping[str, int]) -> float:
    """BF16 weights of all layers; embeddings are read by the row, and the output matrix not at all."""
    n_moe = shape["layers"] // shape["moe_step"]
    weights = shape["layers"] * attention_weights(shape)
    weights += n_moe * (shape["experts"] + 1) * 3 * shape["hidden"] * shape["expert_width"]
    weights += (shape["layers"] - n_moe) * 3 * shape["hidden"] * shape["dense_width"]
    return 2 * weights


def all_statistics_bytes(shape: Mapping[str, int]) -> int:
    """Of all layers, written out."""
    hp = SimpleNamespace(
        n_layers=shape["layers"],
        moe_layers=range(shape["moe_step"] - 1, shape["layers"], shape["moe_step"]),
        n_experts=shape["experts"],
        hidden_size=shape["hidden"],
        n_heads=shape["heads"],
        head_dim=shape["head_dim"],
        expert_width=shape["expert_width"],
        dense_width=shape["dense_width"],
    )
    return statistics_bytes(cast(Hyperparameters, hp))


def chosen(records: Sequence[Record], **of: Any) -> list[Record]:
    """Those with these values; None for a name that they do not have."""
    return [record for record in records if all(record.get(name) == value for name, value in of.items())]


def median(records: Sequence[Record], name: str, **of: Any) -> float:
    """Over the turns of one case."""
    return statistics.median(record[name] for record in chosen(records, **of))


class Speed:
    """What the part `speed` comes down to."""

    def __init__(self, part: Part) -> None:
        self.records: Sequence[Record] = part["records"]
        self.threads: int = part["threads"]
        self.sizes = sorted({record["tokens"] for record in self.records if "tokens" in record})
        self.work = 2 * operations(SCOUT, 0)  # of a token in two layers
        self.fma = median(self.records, "fma", side="ceilings")
        self.blas = median(self.records, "blas_rate", side="ceilings")
        self.rate = self.sizes[-1] * self.work / self.seconds(side="quantkit", tokens=self.sizes[-1], cold=None)

        largest = {"side": "quantkit", "tokens": self.sizes[-1], "cold": None}
        alone = [one["seconds"] - one["shared_seconds"] for one in chosen(self.records, **largest)]
        self.alone = statistics.median(alone) / self.seconds(
            **largest
        )  # share of the time in which one thread computes
        self.shared_rate = self.rate / (1 - self.alone)  # operations a second in the rest of it

    def at(self, shared_rate: float) -> float:
        """Operations a second where all threads together have that rate, and one thread is as quick as here."""
        return 1 / (1 / shared_rate + self.alone / self.rate)

    def seconds(self, **of: Any) -> float:
        return median(self.records, "seconds", **of)

    def reading(self, *, cold: bool) -> float:
        """Bytes a second."""
        found = chosen(self.records, side="reading", cold=cold)
        return statistics.median(record["bytes"] / record["seconds"] for record in found)


def markdown(data: Mapping[str, Any]) -> str:
    head = data["head"]
    speed = Speed(data["speed"]) if "speed" in data else None
    of: dict[str, list[str]] = {}
    for part in ("speed", "tokens", "layers", "memory"):
        if part in data:
            of.setdefault(data[part]["code"], []).append(part)
    states = "; ".join(f"{', '.join(parts)} at {code}" for code, parts in of.items())
    lines = [
        "# Calibration: speed, cost, memory",
        "",
        f"{head['machine']}, {head['processors']} processors, tier {head['tier']}; {head['blas']}; "
        f"llama-cpp-python {head['llama-cpp-python']}. Made by `tools/bench/calibrate.py`: {states}.",
    ]
    if speed:
        lines += ["", *speed_lines(speed)]
    writers: dict[str, Callable[[Part], list[str]]] = {
        "tokens": token_lines,
        "layers": layer_lines,
        "memory": memory_lines,
    }
    for part, write in writers.items():
        if part in data:
            lines += ["", *write(data[part])]
    if speed:
        lines += ["", *whole_model_lines(speed)]
    return "\n".join(line if line.startswith("|") else filled(line) for line in lines) + "\n"


def filled(line: str) -> str:
    return textwrap.fill(line, 120, subsequent_indent="  " if line.startswith("- ") else "", break_long_words=False)


def speed_lines(speed: Speed) -> list[str]:
    flags = next(record["flags"] for record in speed.records if "flags" in record)
    has_bf16 = "AVX512_BF16 = 1" in flags
    how = "multiplies BF16 with AVX-512-BF16" if has_bf16 else "has no instructions for BF16"
    lines = [
        "## Against llama.cpp",
        "",
        "Two layers of Scout's true shapes (5120 wide, 40 heads, 16 experts of 8192 and a shared one, random "
        f"weights, a vocabulary of 1024), random tokens in chunks of {CONTEXT}, {speed.threads} threads, each side "
        "alone, in turns. quantkit walks from the BF16 checkpoint and takes all statistics; its time has the "
        "reading of all weights in it, from the page cache unless it says otherwise. llama.cpp decodes the same "
        "tokens from the BF16 GGUF of the same weights, which lies in the page cache too, without any statistics. "
        "Loading and a first chunk come before on both sides, but not from a cold disk. Logits of all tokens are asked "
        "for, as llama-imatrix does: without, its last layer would leave its experts out. This build of llama.cpp "
        f"{how}, so the goal is "
        f"{1 if has_bf16 else 2} ×. A token is {speed.work / 1e9:.2f} GFLOP.",
        "",
        "| side | tokens | tokens/s by turn | median | GFLOP/s | quantkit over it |",
        "| --- | ---: | --- | ---: | ---: | ---: |",
    ]
    cases: list[tuple[str, dict[str, Any]]] = [("quantkit", {"side": "quantkit", "cold": None})]
    for n in sorted({record["ubatch"] for record in speed.records if "ubatch" in record}):
        cases.append((f"llama.cpp, {n:,} tokens at a time", {"side": "llama.cpp", "ubatch": n}))
    cases.append(("quantkit, weights from a cold disk", {"side": "quantkit", "cold": True}))
    for tokens in speed.sizes:
        ours = speed.seconds(side="quantkit", tokens=tokens, cold=None)
        for label, case in cases:
            mine = chosen(speed.records, tokens=tokens, **case)
            if not mine:
                continue
            rate = tokens / statistics.median(record["seconds"] for record in mine)
            turns = ", ".join(f"{tokens / record['seconds']:.0f}" for record in mine)
            ratio = f"{tokens / ours / rate:.2f}" if case["side"] == "llama.cpp" else ""
            lines.append(f"| {label} | {tokens:,} | {turns} | {rate:.0f} | {rate * speed.work / 1e9:.0f} | {ratio} |")
    difference = median(speed.records, "median", side="difference of logits")
    return [
        *lines,
        "",
        f"- Both compute the same: logits of the first chunk differ by {difference:.2%} of their length (median "
        "token); llama.cpp rounds activations to BF16, quantkit does not.",
        f"- Limits of {speed.threads} threads, sampled in the same turns: float32 multiply-adds in registers "
        f"{speed.fma / 1e9:.0f} GFLOP/s; numpy's BLAS {speed.blas / 1e9:.0f} GFLOP/s, on one product of a layer (960 "
        f"× 5120 × 8192, weights in float32 already). Of that the walk reaches {speed.rate / speed.blas:.0%}, and "
        f"{speed.rate / speed.fma:.0%} of the multiply-adds; at BLAS's rate it would be "
        f"{speed.blas / speed.work:.0f} tokens/s.",
        "- Experts are read and checked by one thread, beside the products: "
        f"{speed.reading(cold=False) / 1e9:.1f} GB/s from the page cache, {speed.reading(cold=True) / 1e9:.2f} GB/s "
        "from this machine's disk.",
        f"- llama.cpp says of itself: {flags}",
    ]


def cost_table(records: Sequence[Record], name: str) -> list[str]:
    """Seconds by `name`, tokens or layers, and how far they are from a line through them."""
    groups = {size: chosen(records, **{name: size}) for size in sorted({record[name] for record in records})}
    seconds = [median(group, "seconds") for group in groups.values()]
    slope, offset = np.polyfit(list(groups), seconds, 1)
    lines = [
        f"| {name} | seconds by turn | median | ms per token and layer | from the line |",
        "| ---: | --- | ---: | ---: | ---: |",
    ]
    for (size, group), middle in zip(groups.items(), seconds, strict=True):
        turns = ", ".join(f"{record['seconds']:.1f}" for record in group)
        each = 1e3 * middle / group[0]["tokens"] / group[0]["layers"]
        lines.append(
            f"| {size:,} | {turns} | {middle:.1f} | {each:.4g} | {middle / (offset + slope * size) - 1:+.1%} |"
        )
    return [*lines, "", f"The line: {offset:.2g} s and {1e3 * slope:.3g} ms for each of the {name}."]


def token_lines(part: Part) -> list[str]:
    return [
        "## Cost by tokens",
        "",
        "The same two layers. What does not grow with tokens is the reading of the weights. An expert's products "
        "are also a little slower where it has few tokens.",
        "",
        *cost_table(part["records"], "tokens"),
    ]


def layer_lines(part: Part) -> list[str]:
    tokens = part["records"][0]["tokens"]
    return [
        "## Cost by layers",
        "",
        f"Layers 1024 wide with 16 experts of 1024, {tokens:,} tokens.",
        "",
        *cost_table(part["records"], "layers"),
    ]


def memory_lines(part: Part) -> list[str]:
    lines = [
        "## Memory",
        "",
        "Peak resident memory (VmHWM), in GB: of `quantkit calibrate` as a whole, and of a stream alone, without "
        "statistics and tokenizer. Vocabulary and tokenizer have Llama 4's size (the tokens are o200k's). One layer of "
        "Scout's true shapes, and two of Maverick's (a dense one and one of 128 experts): embeddings, attention, "
        "routers, norms, shared experts and dense layers are random, experts are zeros; a router of zeros sends all "
        "tokens to one expert. The goal is hidden states and 1.5 GB.",
        "",
        "| layer | router | tokens | hidden states | command | beside hidden states | stream | beside hidden states |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for record in chosen(part["records"], side="command"):
        case = {name: record[name] for name in ("model", "router")}
        alone = chosen(part["records"], side="stream", **case)[0]["peak_bytes"]
        whole, held = record["peak_bytes"], record["states_bytes"]
        cells = " | ".join(f"{n / 1e9:.2f}" for n in (held, whole, whole - held, alone, alone - held))
        lines.append(f"| {record['model']} | {record['router']} | {record['tokens']:,} | {cells} |")
    totals = ", ".join(f"{all_statistics_bytes(shape) / 1e9:.2f} GB for {name}" for name, shape in MODELS.items())
    return [
        *lines,
        "",
        "Statistics (Σx and Σx² in float64, and in float32 while they are written) are in there for the layers "
        f"measured. For all 48 layers they take, by arithmetic, {totals}, beside what stands above; `--max-ram` "
        "counts them.",
    ]


def whole_model_lines(speed: Speed) -> list[str]:
    core, of_fma = speed.fma / speed.threads, speed.shared_rate / speed.fma
    of_blas = min(1.0, speed.shared_rate / speed.blas)  # products of our own can be ahead of it; a Mac has none
    reading = speed.reading(cold=False)
    machines = {
        f"this one, {speed.threads} threads": speed.rate,
        "16 such cores": speed.at(16 * core * of_fma),
        "16 cores at half that rate": speed.at(16 * core / 2 * of_fma),
        "M-series Mac": speed.at(MAC_RATE * of_blas),
    }
    lines = [
        "## Whole models, by arithmetic",
        "",
        f"A walk of {TEXT_TOKENS:,} tokens in chunks of {CONTEXT}. Computing and reading go on beside each other, so "
        "it takes the longer of the two.",
        "",
        "- Work: 2 operations for each weight that a token meets, and 4 × 5120 × 256.5 for scores and values: "
        + ", ".join(f"{model_operations(shape) / 1e9:.1f} GFLOP a token for {name}" for name, shape in MODELS.items())
        + f". Computing takes {TEXT_TOKENS:,} × work / rate.",
        f"- One thread alone computes in {speed.alone:.1%} of the time (statistics, mostly); that is taken to last "
        "as long on every machine, and the rest to be shared out.",
        f"- Rate of 16 cores in the rest: 16 × {core / 1e9:.0f} GFLOP/s of multiply-adds × {of_fma:.0%}, the share "
        "that the walk reaches here. It takes for granted that clocks and caches hold with all cores at work, and "
        "has not been measured. Half of it stands for cores with AVX2 alone.",
        f"- Rate of an M-series Mac in the rest: {MAC_RATE / 1e12:.1f} TFLOP/s, about what an M1's matrix unit gives "
        f"Accelerate, which numpy uses there, × {of_blas:.0%}, the share that the walk reaches of BLAS here. Later "
        "ones have more. Not measured either.",
        "- Reading: BF16 weights of all layers, "
        + ", ".join(f"{model_bytes(shape) / 1e9:.0f} GB for {name}" for name, shape in MODELS.items())
        + f", over the slower of the disk and the thread that reads and checks ({reading / 1e9:.1f} GB/s, as "
        f"here).",
        "",
        f"| model | machine | TFLOP/s | computing | {' | '.join(f'reading at {disk}' for disk in DISKS)} | "
        f"{' | '.join(f'tokens where both are equal, {disk}' for disk in DISKS)} |",
        f"| --- | --- | ---: | ---: |{' ---: |' * 2 * len(DISKS)}",
    ]
    for name, shape in MODELS.items():
        reads = [model_bytes(shape) / min(disk, reading) for disk in DISKS.values()]
        for machine, rate in machines.items():
            computing = TEXT_TOKENS * model_operations(shape) / rate
            cells = [machine, f"{rate / 1e12:.2f}", duration(computing), *map(duration, reads)]
            cells += [f"{read * rate / model_operations(shape):,.0f}" for read in reads]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
