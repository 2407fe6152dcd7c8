"""What is measured, part by part: each takes the players and yields records."""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import numpy as np
from ceilings import Ceilings
from records import Record
from turns import Handle, Player, Shared, medians, share

from quantkit.kernels import FORMATS, dequantize, quantize

SCOUT_ROWS, SCOUT_COLS = 8192, 5120  # of an expert's gate and up projections
COLD_BYTES = 512e6  # of weights that the one-row case goes through
CACHED_ROWS = 2048  # of a matrix that stays in the last-level cache
LARGEST_ERROR = 0.03  # of a product with activations in int8: more is a wrong product, not a rounded one
IK_ERROR = 0.06  # ik_llama.cpp's one-row iq4_xs is off by 4 %, for reasons of its own: shown, not refused
LARGEST_GROUP_ERROR = 0.15  # of an int4 product with its own quantization
TURNS = {1: 7, 8: 7, 64: 5, 512: 3}
PLACEMENTS = 3  # of weights that come from memory


@dataclass
class Bench:
    """Players, ceilings by threads, and sizes, which a test makes small."""

    players: Mapping[str, Player]
    ceilings: Ceilings
    threads: Sequence[int]
    rows: int = SCOUT_ROWS
    cols: int = SCOUT_COLS
    cold_bytes: float = COLD_BYTES
    turns: int | None = None

    def tier(self, label: str) -> str:
        return str(self.players[label].description["tier"])

    def repacked(self, label: str) -> bool:
        return bool(self.players[label].description.get("repacked"))

    def of(self, *names: str) -> dict[str, Player]:
        return {label: one for label, one in self.players.items() if one.description["name"] in names}

    def able(self, group: Mapping[str, Player], method: str, *arguments: Any, **named: Any) -> dict[str, Any]:
        """Calls every player; results of those that can do it."""
        answers = {label: player.call(method, *arguments, **named) for label, player in group.items()}
        return {label: answer for label, answer in answers.items() if not isinstance(answer, NotImplementedError)}

    def measured(
        self, labels: Iterable[str], turns: int, threads: int, kinds: Iterable[str] = ()
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Median seconds of the prepared jobs, and the ceilings `kinds` as they were in the same rounds."""
        between = {kind: partial(self.ceilings.sample, threads, kind) for kind in sorted(kinds)}
        return medians({label: self.players[label] for label in labels}, self.turns or turns, between)

    def int8_kinds(self, labels: Iterable[str]) -> set[str]:
        return {"read"} | {name for label in labels if (name := self.ceilings.int8(self.tier(label)))}

    def int8_seconds(
        self, label: str, rates: Mapping[str, float], operations: float, n_bytes: float
    ) -> tuple[float, str]:
        """The longer of all operations at the tier's int8 peak and all weights at the bandwidth of reading."""
        name = self.ceilings.int8(self.tier(label))
        reading = n_bytes / rates["read"]
        if not name or operations / rates[name] < reading:
            return reading, "read"
        return operations / rates[name], name

    def placed(
        self, group: Mapping[str, Player], format: str, packed: Shared, times: int
    ) -> Iterator[dict[str, Player]]:
        """Weights copied anew so many times, the sides in turn: where memory happens to lie is a tenth of a rate."""
        labels = list(group)
        for time in range(times):
            first = time * len(labels) // times
            order = {label: group[label] for label in labels[first:] + labels[:first]}
            with self.loaded(order, format, packed, copied=True) as able:
                yield able

    @contextmanager
    def loaded(
        self, group: Mapping[str, Player], format: str, packed: Shared, copied: bool = False
    ) -> Iterator[dict[str, Player]]:
        able = self.able(group, "load", format, packed.handle, self.cols, copied)
        try:
            yield {label: group[label] for label in able}
        finally:
            self.able({label: group[label] for label in able}, "unload")


@contextmanager
def shared(array: np.ndarray, *lead: int) -> Iterator[Shared]:
    """An array in shared memory, repeated along new leading axes."""
    found = Shared((*lead, *array.shape), array.dtype)
    found.array[...] = array
    try:
        yield found
    finally:
        found.close()


def weights_of(rng: np.random.Generator, rows: int, cols: int) -> np.ndarray:
    weights: np.ndarray = rng.standard_normal((rows, cols), np.float32) * np.float32(0.02)
    return weights


def _deviation(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def _checked(answers: Mapping[str, np.ndarray], expected: np.ndarray, limit: float = LARGEST_ERROR) -> dict[str, float]:
    """Error of each side's product, by its first rows of weights; an error beyond rounding is a broken benchmark."""
    errors = {label: _deviation(found, expected) for label, found in answers.items()}
    for label, error in errors.items():
        if not error < (max(limit, IK_ERROR) if label.startswith("ik") else limit):
            raise RuntimeError(f"{label} computes something else: relative error {error:.3g}")
    return errors


MATMUL = ("quantkit", "ggml", "ik_llama.cpp")


def matmul(bench: Bench, format: str, rows_of_x: Sequence[int], modes: Sequence[str]) -> Iterator[Record]:
    """y = x Wᵀ. Few rows go through enough matrices that none is cached; many rows take one."""
    rng = np.random.default_rng(0)
    packed = quantize(weights_of(rng, bench.rows, bench.cols), format)
    sample = dequantize(packed[:64], format).astype(np.float64)
    activations = {n: share(rng.standard_normal((n, bench.cols)).astype(np.float32)) for n in rows_of_x}
    copies = max(1, -(-int(bench.cold_bytes) // packed.nbytes))
    few, many = [n for n in rows_of_x if n < 32], [n for n in rows_of_x if n >= 32]
    for names, lead, chosen in ((MATMUL, copies, few), ((*MATMUL, "numpy f32"), 1, many)):
        if not chosen:
            continue
        found: dict[tuple[str, int, int], list[Measured]] = {}
        with shared(packed, lead) as cold:
            for group in bench.placed(bench.of(*names), format, cold, PLACEMENTS if chosen == few else 1):
                for mode, n, threads in product(modes, chosen, bench.threads):
                    if mode == "exact" and n < 32 and lead > 1:
                        continue
                    x = activations[n]
                    answers = bench.able(group, "multiply", x.handle, threads, mode=mode)
                    errors = _checked(answers, x.array @ sample.T)
                    kinds = bench.int8_kinds(answers) if mode == "fast" else set()
                    times, rates = bench.measured(answers, TURNS.get(n, 5), threads, kinds)
                    found.setdefault((mode, n, threads), []).append((times, rates, errors))
        for (mode, n, threads), measured in found.items():
            times, rates, errors = (_medians([one[i] for one in measured]) for i in range(3))
            if "numpy f32" in times:
                rates["f32 BLAS"] = 2.0 * n * bench.rows * bench.cols / times["numpy f32"]
            for label, seconds in times.items():
                yield _product(bench, "matmul", format, label, threads, n, mode, seconds / lead, packed, errors, rates)
    if 1 in rows_of_x and "fast" in modes:
        yield from _cached(bench, format, packed, activations[1].handle)
    for x in activations.values():
        x.close()


Measured = tuple[dict[str, float], dict[str, float], dict[str, float]]  # seconds, rates of ceilings, errors


def _medians(of: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {key: statistics.median(one[key] for one in of) for key in of[0]}


def _product(
    bench: Bench, part: str, format: str, label: str, threads: int, n: int, mode: str, seconds: float,
    packed: np.ndarray, errors: Mapping[str, float], rates: Mapping[str, float], experts: int = 0, used: int = 1,
) -> Record:  # fmt: skip
    """`packed` is one matrix; `used` of them are read."""
    operations, n_bytes = 2.0 * n * bench.rows * bench.cols, float(packed.nbytes * used)
    if mode == "exact":
        limit, name = operations / rates["f32 BLAS"], "f32 BLAS"
    else:
        limit, name = bench.int8_seconds(label, rates, operations, n_bytes)
    by_bytes = n == 1
    return Record(
        part, format, threads, label, seconds, n_bytes if by_bytes else operations, "GB/s" if by_bytes else "GOP/s",
        n=n, experts=experts, mode=mode if label.startswith("quantkit") else "", repacked=bench.repacked(label),
        error=errors[label], limit_seconds=limit, limit=name, limit_rate=rates[name],
    )  # fmt: skip


def _cached(bench: Bench, format: str, packed: np.ndarray, x: Handle) -> Iterator[Record]:
    """One row times a matrix that stays in cache, often enough that starting does not count."""
    part = packed[: min(CACHED_ROWS, len(packed))]
    with shared(part, 1) as small, bench.loaded(bench.of(*MATMUL), format, small, copied=True) as group:
        repeats = max(1, int(bench.cold_bytes / 8) // part.nbytes)
        for threads in bench.threads:
            answers = bench.able(group, "multiply", x, threads, repeats=repeats)
            for label, seconds in bench.measured(answers, 5, threads)[0].items():
                mode = "fast" if label.startswith("quantkit") else ""
                yield Record(
                    "cached", format, threads, label, seconds / repeats, float(part.nbytes), "GB/s",
                    n=1, mode=mode, repacked=bench.repacked(label),
                )  # fmt: skip


def experts(bench: Bench, format: str, n_experts: int, n: int = 512) -> Iterator[Record]:
    """Each row of x times the matrix of one expert, drawn evenly: one mul_mat_id."""
    rng = np.random.default_rng(1)
    packed = quantize(weights_of(rng, bench.rows, bench.cols), format)
    sample = dequantize(packed[:64], format).astype(np.float64)
    ids = rng.integers(0, n_experts, n).astype(np.int32)
    used = len(np.unique(ids))
    x, chosen = share(rng.standard_normal((n, bench.cols)).astype(np.float32)), share(ids)
    with shared(packed, 1, n_experts) as stack, bench.loaded(bench.of(*MATMUL), format, stack) as group:
        for threads in bench.threads:
            answers = bench.able(group, "multiply", x.handle, threads, ids=chosen.handle)
            errors = _checked(answers, x.array @ sample.T)
            times, rates = bench.measured(answers, 3, threads, bench.int8_kinds(answers))
            for label, seconds in times.items():
                yield _product(
                    bench, "experts", format, label, threads, n, "fast", seconds, packed, errors, rates, n_experts, used
                )
    x.close()
    chosen.close()


def encode(bench: Bench, format: str, rows: int = 512) -> Iterator[Record]:
    """float32 rows to packed rows, with the weighting that `convert` takes."""
    rng = np.random.default_rng(0)
    weights = share(weights_of(rng, rows, bench.cols))
    columns = share(np.exp(rng.standard_normal(bench.cols)).astype(np.float32))
    for importance in (None, columns.handle):
        for threads in bench.threads:
            group = bench.of(*MATMUL)
            able = bench.able(group, "encode", format, weights.handle, threads, importance)
            for label, seconds in bench.measured(able, 5, threads)[0].items():
                yield Record(
                    "encode", format, threads, label, seconds, float(weights.array.size), "M/s",
                    importance=importance is not None,
                )  # fmt: skip
    weights.close()
    columns.close()


def decode(bench: Bench, format: str, rows: int = 2048) -> Iterator[Record]:
    """Packed rows to a new float32 array; the work is counted in bytes of that array."""
    packed = quantize(weights_of(np.random.default_rng(0), rows, bench.cols), format)
    expected = dequantize(packed[:4], format)
    with shared(packed) as source:
        for threads in bench.threads:
            answers = bench.able(bench.of(*MATMUL), "decode", format, source.handle, bench.cols, threads)
            for label, found in answers.items():
                if not np.array_equal(found, expected):
                    warnings.warn(f"{label} decodes {format} to other floats", stacklevel=1)
            n_bytes = 4.0 * rows * bench.cols
            times, rates = bench.measured(answers, 7, threads, ["write"])
            for label, seconds in times.items():
                yield Record(
                    "decode", format, threads, label, seconds, n_bytes, "GB/s",
                    limit_seconds=n_bytes / rates["write"], limit="write", limit_rate=rates["write"],
                )  # fmt: skip


def groups(bench: Bench, bits: int = 4, group_size: int = 64) -> Iterator[Record]:
    """Group quantization and products with it."""
    format = f"int{bits} g{group_size}"
    rng = np.random.default_rng(0)
    exact = weights_of(rng, bench.rows, bench.cols)
    cut = (exact.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    for dtype, source in (("f32", exact), ("bf16", cut)):
        weights = share(source)
        name = format if dtype == "f32" else f"{format} {dtype}"
        for threads in bench.threads:
            group = bench.of("quantkit", "mlx")
            errors = bench.able(group, "encode_groups", weights.handle, bits, group_size, threads, dtype)
            for label, seconds in bench.measured(errors, 7, threads)[0].items():
                yield Record(
                    "encode groups", name, threads, label, seconds, float(weights.array.size), "M/s",
                    error=errors[label],
                )  # fmt: skip
        weights.close()
    weights = share(weights_of(rng, bench.rows, bench.cols))
    group = bench.of("quantkit", "mlx", "torch int4")
    able = bench.able(group, "load_groups", weights.handle, bits, group_size)
    group = {label: group[label] for label in able}
    n_bytes = weights.array.size * (bits / 8 + 8 / group_size)
    for n in (1, 8, 64, 512):
        x = share(rng.standard_normal((n, bench.cols)).astype(np.float32))
        for threads in bench.threads:
            answers = bench.able(group, "multiply_groups", x.handle, threads)
            found = _checked(answers, x.array @ weights.array[:64].T.astype(np.float64), LARGEST_GROUP_ERROR)
            operations = 2.0 * n * weights.array.size
            times, rates = bench.measured(answers, 2, threads, bench.int8_kinds(answers))
            for label, seconds in times.items():
                limit, name = bench.int8_seconds(label, rates, operations, n_bytes)
                yield Record(
                    "matmul groups", format, threads, label, seconds, operations, "GOP/s", n=n, error=found[label],
                    limit_seconds=limit, limit=name, limit_rate=rates[name],
                )  # fmt: skip
        x.close()
    bench.able(group, "unload")
    weights.close()


BLOCK_FORMATS = [name for name, found in FORMATS.items() if found.block_size > 1]
