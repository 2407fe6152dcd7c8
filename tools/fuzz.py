"""Differential fuzzer: random and mutated matrices through every tier of this machine, which must agree on every byte.

    python tools/fuzz.py --seconds 60                  # prints its seed
    python tools/fuzz.py --seed 1234 --cases 1         # that case again
    python tools/fuzz.py --replay fuzz-1234.npz        # a saved input, whatever the generator has become

Each case draws a format (or bits, size and scales of groups), a source type, weights (families of quantkit.testing;
grids of other formats, rows spliced, bits flipped, or nothing but random bits), importance, and how the weights lie in
memory. The scalar tier with one thread says what is right: bytes, or a refusal with its row and column. What was
encoded, and random blocks, are decoded too, and multiplied with activations. The first case in which a tier differs is
saved, and ends the run with exit code 1.
"""

from __future__ import annotations

import argparse
import secrets
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from quantkit.kernels import (
    FORMATS,
    _machine,
    current_tier,
    dequantize,
    dequantize_groups,
    encode_into,
    quantize,
    row_bytes,
)
from quantkit.kernels.arrays import widened
from quantkit.kernels.codec import OutOfRangeError, Weighting
from quantkit.kernels.groups import BITS, GROUP_SIZES
from quantkit.testing import (
    ACTIVATIONS,
    CHANNELS,
    IMPORTANCES,
    WEIGHTS,
    make_activations,
    make_importance,
    make_weights,
    supported_tiers,
    use_tier,
)

Rng = np.random.Generator
Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Outcome = dict[str, Any]

ENCODED, RANDOM = "what was encoded", "random blocks"
SCALARS = {"f32": np.uint32, "f16": np.uint16, "bf16": np.uint16, "f8_e4m3": np.uint8}
SCALES: dict[str, type[np.generic]] = {"f32": np.float32, "f16": np.float16, "bf16": np.uint16}


@dataclass(frozen=True)
class Case:
    """All that encode_into takes, so that a saved case needs no generator."""

    format: str
    """"int4" and its like for groups."""
    dtype: str
    source: Bytes
    rows: int
    cols: int
    offset_elements: int
    row_stride: int
    col_stride: int
    weighting: str
    importance: Floats | None
    scale: Floats | None
    cut: int
    """The rows before and from this one are encoded in calls of their own too."""
    threads: int
    blocks: Bytes
    """(n, block_bytes) that no encoder made, to decode: of a group, its codes, scale and bias."""
    bits: int = 0
    """Of groups; 0 for a format of blocks, and what follows is for groups only."""
    group_size: int = 0
    symmetric: bool = False
    scale_type: str = "f32"
    x: Floats | None = None
    """Activations (n, cols), not always finite."""

    def save(self, path: Path) -> None:
        held = {field.name: getattr(self, field.name) for field in fields(self)}
        np.savez(path, **{name: value for name, value in held.items() if value is not None})

    @classmethod
    def load(cls, path: Path) -> Case:
        with np.load(path) as held:
            found = {name: held[name] if held[name].ndim else held[name].item() for name in held.files}
        return cls(**{"importance": None, "scale": None, **found})

    def options(self) -> dict[str, Any]:
        """Of encode_into."""
        others = ("cut", "blocks", "bits", "group_size", "symmetric", "scale_type", "x")
        return {one.name: getattr(self, one.name) for one in fields(self) if one.name not in others}


def draw_values(rng: Rng, rows: int, cols: int) -> Floats:
    """(rows, cols), not always finite."""
    families = [str(family) for family in rng.choice(list(WEIGHTS), rows)]
    x = make_weights(families, cols, int(rng.integers(2**32)), channels=str(rng.choice(list(CHANNELS))))
    if rng.random() < 0.3:  # as another format would have them: equal values, codes that tie
        other = str(rng.choice([name for name, found in FORMATS.items() if cols % found.block_size == 0]))
        x = dequantize(quantize(x, other, threads=1), other)
    if rng.random() < 0.2:  # one row's beginning before another's end
        cut = int(rng.integers(cols + 1))
        x[:, :cut] = x[rng.permutation(rows), :cut]
    if rng.random() < 0.3:
        with np.errstate(over="ignore"):
            x = np.ldexp(x, rng.integers(-40, 4, (rows, 1))).astype(np.float32)
    return x


def to_bits(rng: Rng, x: Floats, dtype: str) -> npt.NDArray[Any]:
    """The scalars of a source type; fp8 takes none of the values, only their number. Some bits are flipped."""
    with np.errstate(over="ignore"):
        bits: npt.NDArray[Any] = {
            "f32": lambda: x.view(np.uint32),
            "f16": lambda: x.astype(np.float16).view(np.uint16),
            "bf16": lambda: (x.view(np.uint32) >> 16).astype(np.uint16),
            "f8_e4m3": lambda: rng.choice(np.delete(np.arange(256, dtype=np.uint8), [0x7F, 0xFF]), x.shape),
        }[dtype]()
    flips = rng.choice([0, 1, 8, 64, -1], p=[0.6, 0.15, 0.1, 0.1, 0.05])
    width = 8 * bits.itemsize
    if flips < 0:
        return rng.integers(0, 2**width, x.shape, np.uint64).astype(bits.dtype)
    bits = np.ascontiguousarray(bits).copy()
    for _ in range(flips):
        bits.reshape(-1)[rng.integers(bits.size)] ^= bits.dtype.type(1 << int(rng.integers(width)))
    return bits


def draw_activations(rng: Rng, cols: int) -> Floats:
    """One row to three, which are multiplied otherwise, or more."""
    families = [str(family) for family in rng.choice(list(ACTIVATIONS), rng.choice([1, 2, 3, *range(4, 24)]))]
    x = make_activations(families, cols, int(rng.integers(2**32)))
    if rng.random() < 0.3:
        x = np.ldexp(x, rng.integers(-120, 40, (len(x), 1))).astype(np.float32)
    if rng.random() < 0.1:
        x.view(np.uint32)[rng.integers(len(x)), rng.integers(cols)] ^= np.uint32(1 << int(rng.integers(32)))
    return x


def lay_out(rng: Rng, bits: npt.NDArray[Any]) -> dict[str, Any]:
    """Puts the scalars into a buffer of their own with random bits around them."""
    rows, cols = bits.shape
    offset, pad = int(rng.integers(0, 40)), int(rng.integers(0, 20))
    way = rng.choice(["rows", "transposed", "strided"], p=[0.5, 0.4, 0.1])
    row_stride, col_stride = {"rows": (cols + pad, 1), "transposed": (1, rows + pad), "strided": (3 * cols + pad, 3)}[
        way
    ]
    size = offset + (rows - 1) * row_stride + (cols - 1) * col_stride + 1
    flat = rng.integers(0, 256, size * bits.itemsize, np.uint8).view(bits.dtype)
    places = offset + np.arange(rows)[:, None] * row_stride + np.arange(cols) * col_stride
    flat[places] = bits
    source = flat.view(np.uint8)
    return {"source": source, "offset_elements": offset, "row_stride": row_stride, "col_stride": col_stride}


def draw_case(seed: int) -> Case:
    rng = np.random.default_rng(seed)
    grouped = rng.random() < 0.25
    bits = int(rng.choice(BITS)) if grouped else 0
    format = f"int{bits}" if grouped else str(rng.choice(list(FORMATS)))
    size = int(rng.choice([*GROUP_SIZES, -1])) if grouped else 0
    block = max(32, size) if grouped else max(32, FORMATS[format].block_size)
    rows = int(rng.integers(1, 300 if rng.random() < 0.05 else 40))
    cols = block * int(rng.integers(1, 1 + 1024 // block))
    size = cols if size < 0 else size
    scale_type = str(rng.choice(list(SCALES))) if grouped else "f32"
    dtype = str(rng.choice([name for name in SCALARS if name in SCALES or not grouped]))
    kind = rng.choice([None, *IMPORTANCES], p=[0.4, *[0.6 / len(IMPORTANCES)] * len(IMPORTANCES)])
    block_bytes = size // 8 * bits + 2 * scale_bytes(scale_type) if grouped else FORMATS[format].block_bytes
    return Case(
        format=format,
        dtype=dtype,
        rows=rows,
        cols=cols,
        weighting=str(rng.choice(get_args(Weighting))),
        importance=None if kind is None else make_importance(str(kind), cols, int(rng.integers(2**32))),
        scale=None if grouped or rng.random() < 0.8 else (10.0 ** rng.uniform(-6, 2, rows)).astype(np.float32),
        cut=int(rng.integers(rows + 1)),
        threads=int(rng.integers(2, 5)),
        blocks=rng.integers(0, 256, (int(rng.integers(1, 40)), block_bytes), np.uint8),
        bits=bits,
        group_size=size,
        symmetric=bool(grouped and rng.random() < 0.4),
        scale_type=scale_type,
        **lay_out(rng, to_bits(rng, draw_values(rng, rows, cols), dtype)),
        x=draw_activations(rng, cols),
    )


def scale_bytes(scale_type: str) -> int:
    return np.dtype(SCALES[scale_type]).itemsize


def encode(case: Case, threads: int) -> Outcome:
    if case.bits:
        return encode_groups(case, threads)
    out = np.full((case.rows, row_bytes(case.format, case.cols)), 0xA5, np.uint8)
    try:
        encode_into(out, **{**case.options(), "threads": threads})
    except OutOfRangeError as error:
        return {"refused": (error.row, error.col, np.float32(error.value).tobytes().hex())}
    return {"bytes": out, f"values of {ENCODED}": as_bits(dequantize(out, case.format, threads=threads))}


def encode_groups(case: Case, threads: int) -> Outcome:
    """By the machine room's own door: quantize_groups copies what it cannot read in place, this takes any strides."""
    groups = case.cols // case.group_size * scale_bytes(case.scale_type)
    sizes = {"codes": case.cols // 8 * case.bits, "scales": groups, "biases": groups}
    out = {name: np.full((case.rows, size), 0xA5, np.uint8) for name, size in sizes.items()}
    bad = _machine.encode_groups(
        current_tier(),
        case.source[case.offset_elements * np.dtype(SCALARS[case.dtype]).itemsize :],
        case.dtype,
        case.rows,
        case.cols,
        case.row_stride,
        case.col_stride,
        case.importance,
        case.bits,
        case.group_size,
        case.symmetric,
        case.scale_type,
        *(part.reshape(-1) for part in out.values()),
        threads,
    )
    if bad is not None:
        return {"refused": (*bad[:2], np.float32(bad[2]).tobytes().hex())}
    return {**out, f"values of {ENCODED}": decode_groups(case, *out.values(), threads)}


def decode_groups(case: Case, codes: Bytes, scales: Bytes, biases: Bytes, threads: int) -> npt.NDArray[np.uint32]:
    """Of rows of codes, scales and biases."""
    kind = SCALES[case.scale_type]
    parts = [
        np.ascontiguousarray(part).view(as_type)
        for part, as_type in zip((codes, scales, biases), (np.uint32, kind, kind), strict=True)
    ]
    size = case.group_size if case.group_size in GROUP_SIZES else -1
    return as_bits(dequantize_groups(*parts, case.bits, size, threads=threads))


def decode_blocks(case: Case, threads: int) -> npt.NDArray[np.uint32]:
    if not case.bits:
        return as_bits(dequantize(case.blocks, case.format, threads=threads))
    codes, size = case.group_size // 8 * case.bits, scale_bytes(case.scale_type)
    return decode_groups(case, *np.split(case.blocks, [codes, codes + size], axis=1), threads)


def multiply(case: Case, encoded: Outcome, tier: str, threads: int) -> Outcome:
    """Fast products of x with what was encoded, and of its first columns with random blocks; by expert too."""
    if case.x is None or (case.bits not in (4, 8) if case.bits else FORMATS[case.format].block_size == 1):
        return {}
    found: Outcome = {}
    try:
        for what, (parts, cols) in matrices(case, encoded).items():
            x, rows = case.x[:, :cols], len(parts[0])
            if case.bits:
                door = partial(_machine.matmul_fast_groups, tier, case.bits, case.group_size)
            else:
                door = partial(_machine.matmul_fast, tier, case.format)
                experts = partial(_machine.matmul_fast_experts, tier, case.format)
                half, ids = rows // 2, np.arange(len(x)) % 3 % 2
                order, starts = np.argsort(ids, kind="stable"), np.array([0, np.sum(ids == 0), len(ids)])
                two = [part[: 2 * half] for part in parts]
                by_expert = product(experts, x, two, half, (2, half, cols, order, starts), threads)
                found[f"products by expert with {what}"] = by_expert
            found[f"products with {what}"] = product(door, x, parts, rows, (rows, cols), threads)
    except ValueError as error:
        if "is not finite" not in str(error):
            raise
        return {"refused": str(error)}  # an activation, by row and column
    return found


def matrices(case: Case, encoded: Outcome) -> dict[str, tuple[list[npt.NDArray[Any]], int]]:
    """The packed weights that a case has, and their columns; of groups words, scales and biases."""
    if not case.bits:
        found = {RANDOM: ([case.blocks], FORMATS[case.format].block_size)}
        return found if "refused" in encoded else {**found, ENCODED: ([encoded["bytes"]], case.cols)}
    codes, width = case.group_size // 8 * case.bits, scale_bytes(case.scale_type)
    parts = [np.ascontiguousarray(part) for part in np.split(case.blocks, [codes, codes + width], axis=1)]
    split = {RANDOM: (parts, case.group_size)}
    if "refused" not in encoded:
        split[ENCODED] = ([encoded[name] for name in ("codes", "scales", "biases")], case.cols)
    kind = SCALES[case.scale_type]
    return {
        what: ([words.view(np.uint32), *(as_floats(part.view(kind), case.scale_type) for part in scales)], cols)
        for what, ((words, *scales), cols) in split.items()
    }


def as_floats(scales: npt.NDArray[Any], scale_type: str) -> Floats:
    return widened(scales, "bf16") if scale_type == "bf16" else scales.astype(np.float32)


def product(
    door: Callable[..., bool], x: Floats, parts: list[npt.NDArray[Any]], rows: int, sizes: tuple[Any, ...], threads: int
) -> npt.NDArray[np.uint32]:
    """(n, rows), by one of the machine room's doors."""
    out = np.full((len(x), rows), np.nan, np.float32)
    flat = [np.ascontiguousarray(part).reshape(-1) for part in (x, *parts)]
    door(*flat, *sizes, out.reshape(-1), threads)
    return as_bits(out)


def encode_in_two(case: Case, expected: Outcome) -> Outcome:
    """The same in two calls; a refusal is one of the first call that refuses."""
    parts = []
    for first, last in ((0, case.cut), (case.cut, case.rows)):
        offset = case.offset_elements + first * case.row_stride
        scale = None if case.scale is None else case.scale[first:last]
        part = encode(replace(case, rows=last - first, offset_elements=offset, scale=scale), 1) if last > first else {}
        if "refused" in part:
            row, col, value = part["refused"]
            return {"refused": (row + first, col, value)}
        if part:
            parts.append(part)
    return {what: np.concatenate([part[what] for part in parts]) for what in expected}


def as_bits(values: Floats) -> npt.NDArray[np.uint32]:
    """Every NaN is as good as another."""
    return np.where(np.isnan(values), np.float32(np.nan), values).view(np.uint32)


def difference(got: Outcome, expected: Outcome) -> str:
    """Empty where they agree."""
    for what in {**expected, **got}:
        if what not in got or what not in expected:
            return f"{got.get('refused', 'bytes')} where {expected.get('refused', 'bytes')} is right"
        if what == "refused":
            if got[what] != expected[what]:
                return f"refused {got[what]}, not {expected[what]}"
        elif not np.array_equal(got[what], expected[what]):
            place = tuple(int(i) for i in np.argwhere(got[what] != expected[what])[0])
            return f"other {what}, first at {place}: {got[what][place]:#x}, not {expected[what][place]:#x}"
    return ""


def check(case: Case, tiers: list[str]) -> tuple[str, Outcome]:
    """What differs, in words, and what is right."""
    with use_tier(tiers[0]):
        expected = encode(case, 1)
        decoded = decode_blocks(case, 1)
    for tier in tiers:
        with use_tier(tier):
            ways = {
                "one thread": lambda: encode(case, 1),
                f"{case.threads} threads": lambda: encode(case, case.threads),
                f"cut at row {case.cut}": lambda: encode_in_two(case, expected),
            }
            for way, run in ways.items():
                found = difference(run(), expected)
                if found:
                    return f"{case.format}, tier {tier}, {way}: {found}", expected
            values = {f"values of {RANDOM}": decode_blocks(case, case.threads)}
            found = difference(values, {f"values of {RANDOM}": decoded})
            if found:
                return f"{case.format}, tier {tier}: {found}", expected
    right = multiply(case, expected, tiers[0], 1)
    for tier in _machine.matmul_tiers():
        for threads in (1, case.threads):
            found = difference(multiply(case, expected, tier, threads), right)
            if found:
                return f"{case.format}, tier {tier}, {threads} threads: {found}", expected
    return "", expected


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="stop after that long (default 60)")
    parser.add_argument("--cases", type=int, default=sys.maxsize, help="stop after that many")
    parser.add_argument("--seed", type=int, help="of the first case; the next one has the next number")
    parser.add_argument("--save", type=Path, default=Path(), metavar="DIR", help="where a failing case is saved")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run a saved case and nothing else")
    given = parser.parse_args()
    tiers = supported_tiers()
    if given.replay:
        found, _ = check(Case.load(given.replay), tiers)
        print(found or f"{', '.join(tiers)} agree on {given.replay}")
        return 1 if found else 0

    seed = secrets.randbelow(2**48) if given.seed is None else given.seed
    print(f"tiers {', '.join(tiers)}; seed {seed}", flush=True)
    seen: Counter[str] = Counter()
    weights = refused = 0
    end = time.monotonic() + given.seconds
    for number in range(given.cases):
        case = draw_case(seed + number)
        found, expected = check(case, tiers)
        if found:
            path = given.save / f"fuzz-{seed + number}.npz"
            case.save(path)
            print(f"DIFFERS: {found}\nagain: --seed {seed + number} --cases 1, or --replay {path}")
            return 1
        seen[case.format] += 1
        refused += "refused" in expected
        weights += case.rows * case.cols
        if time.monotonic() > end:
            break
    per_format = ", ".join(f"{name} {seen[name]}" for name in [*FORMATS, *(f"int{bits}" for bits in BITS)])
    print(f"{seen.total()} cases agree, {weights / 1e6:.1f} M weights, {refused} refused: {per_format}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
