"""Records cases of a hypothesis run for the C++ test program, with the bytes that the scalar tier gives.

    python -m tools.cases OUT [--examples 12] [--seed 0] [--many-tasks]

The file is `QKCASES1`, then for each case the number of its fields, and for each field its name and its value, both
with their sizes before them (64-bit little-endian). Numbers are text, arrays their bytes.
"""

from __future__ import annotations

import argparse
import itertools
import os
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from tests.kernels.matrices import COLUMNS, ROWS, Matrix, column_weights, columns_of, matrices, rows_of

from quantkit.kernels import (
    FORMATS,
    _machine,
    dequantize,
    dequantize_groups,
    encode_into,
    quantize,
    quantize_groups,
    row_bytes,
)
from quantkit.kernels.groups import WHOLE_ROW, Float

Values = str | int | npt.NDArray[np.generic]
FINITE_F8 = np.array([code for code in range(256) if code & 0x7F != 0x7F], np.uint8)


def as_scalars(x: Matrix, scalar: str) -> npt.NDArray[np.generic]:
    """The matrix in a source type, never rounded away from zero: 65504 is as far as some formats reach."""
    if scalar == "bf16":
        return (x.view(np.uint32) >> 16).astype(np.uint16)
    return x.astype(np.float16 if scalar == "f16" else np.float32)


class Recorder:
    """Cases, as the file holds them."""

    def __init__(self) -> None:
        self.cases: list[bytes] = []

    def add(self, **fields: Values | None) -> None:
        """One case; fields that are None are left out."""
        present = {name: value for name, value in fields.items() if value is not None}
        parts = [struct.pack("<Q", len(present))]
        for name, value in present.items():
            for part in (name.encode(), value.tobytes() if isinstance(value, np.ndarray) else str(value).encode()):
                parts += [struct.pack("<Q", len(part)), part]
        self.cases.append(b"".join(parts))

    def encode(
        self,
        name: str,
        source: npt.NDArray[np.generic],
        scalar: str,
        *,
        importance: Matrix | None,
        scale: Matrix | None = None,
        weighting: str = "plain",
    ) -> None:
        """What `source` becomes in the format, and what that decodes to."""
        rows, cols = source.shape
        out = np.empty((rows, row_bytes(name, cols)), np.uint8)
        encode_into(
            out,
            source.reshape(-1).view(np.uint8),
            format=name,
            dtype=scalar,
            rows=rows,
            cols=cols,
            row_stride=cols,
            importance=importance,
            weighting=weighting,
            scale=scale,
            threads=1,
        )
        self.add(
            op="encode",
            format=name,
            scalar=scalar,
            rows=rows,
            cols=cols,
            weighting=weighting,
            source=source,
            importance=importance,
            scale=scale,
            expected=out,
            decoded=dequantize(out, name),
        )

    def groups(
        self,
        source: npt.NDArray[np.generic],
        scalar: str,
        bits: int,
        group_size: int,
        symmetric: bool,
        importance: Matrix | None,
        scale_type: Float,
    ) -> None:
        """What `source` becomes in groups, and what that decodes to."""
        rows, cols = source.shape
        options = (bits, group_size, symmetric, importance, scale_type)
        codes, scales, biases = quantize_groups(source, *options, threads=1)
        self.add(
            op="groups",
            format=f"int{bits}_g{'row' if group_size == WHOLE_ROW else group_size}",
            bits=bits,
            group_size=cols if group_size == WHOLE_ROW else group_size,
            symmetric=int(symmetric),
            scale_type=scale_type,
            scalar=scalar,
            rows=rows,
            cols=cols,
            source=source,
            importance=importance,
            codes=codes,
            scales=scales,
            biases=biases,
            decoded=dequantize_groups(codes, scales, biases, bits, group_size),
        )


def record_hard_matrices(recorder: Recorder, name: str, examples: int, first_seed: int) -> None:
    """`examples` hypothesis examples of one format."""

    @seed(first_seed)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(data=st.data())
    def record(data: st.DataObject) -> None:
        scalar = data.draw(st.sampled_from(["f32", "f16", "bf16", "f8_e4m3"]))
        # whole blocks, but odd numbers of columns where a block is one element
        block = FORMATS[name].block_size
        x = data.draw(matrices(block if block > 1 else data.draw(st.integers(1, 40))))
        importance = data.draw(column_weights(x.shape[1]))
        weighting = data.draw(st.sampled_from(["plain", "magnitude", "unbiased"]))
        source, scale = as_scalars(x, scalar), None
        if scalar == "f8_e4m3":
            rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
            source = rng.choice(FINITE_F8, x.shape)
            scale = (10.0 ** rng.uniform(-30, 2, len(x))).astype(np.float32)
        recorder.encode(name, source, scalar, importance=importance, scale=scale, weighting=weighting)

    record()


def record_many_tasks(recorder: Recorder, name: str) -> None:
    """More rows and columns than one task or one transposed tile holds, and counts that leave lanes empty."""
    x = rows_of([kind for _ in range(13) for kind in ROWS][:267], 512, 5)
    recorder.encode(name, x, "f32", importance=columns_of("lognormal", 512, 6), weighting="magnitude")
    recorder.encode(name, as_scalars(x, "bf16"), "bf16", importance=None, weighting="unbiased")


def record_products(recorder: Recorder, name: str, first_seed: int) -> None:
    """One row, few, and many; counts that fill no tile; experts with no rows, few, and many."""
    rng = np.random.default_rng(first_seed)
    for n, rows, blocks in [(1, 37, 3), (3, 5, 2), (4, 33, 1), (23, 19, 3)]:
        cols = blocks * FORMATS[name].block_size
        x = rng.standard_normal((n, cols)).astype(np.float32)
        packed = quantize((rng.standard_t(4, (rows, cols)) * 0.02).astype(np.float32), name)
        out = np.empty((n, rows), np.float32)
        _machine.matmul_fast("scalar", name, x.ravel(), packed.ravel(), rows, cols, out.reshape(-1), 1)
        recorder.add(op="matmul", format=name, n=n, rows=rows, cols=cols, experts=1, x=x, packed=packed, out=out)
    n, rows, cols, experts = 11, 17, 2 * FORMATS[name].block_size, 4
    ids = np.array([2, 0, 2, 2, 0, 2, 3, 2, 0, 2, 2])  # the second expert has none
    order = np.argsort(ids, kind="stable").astype(np.int64)
    starts = np.concatenate([[0], np.cumsum(np.bincount(ids, minlength=experts))]).astype(np.int64)
    x = rng.standard_normal((n, cols)).astype(np.float32)
    packed = quantize((rng.standard_t(4, (experts * rows, cols)) * 0.02).astype(np.float32), name)
    out = np.empty((n, rows), np.float32)
    _machine.matmul_fast_experts(
        "scalar", name, x.ravel(), packed.ravel(), experts, rows, cols, order, starts, out.reshape(-1), 1
    )
    fields = {"x": x, "packed": packed, "order": order, "starts": starts, "out": out}
    recorder.add(op="matmul", format=name, n=n, rows=rows, cols=cols, experts=experts, **fields)


def record_products_of_groups(recorder: Recorder, first_seed: int) -> None:
    """The same for codes of 4 and 8 bits, groups of 32, 64, 128 and a whole row; all codes occur."""
    rng = np.random.default_rng(first_seed)
    rows, cols = 21, 384
    for bits in (4, 8):
        for shift, group_size in enumerate((32, 64, 128, cols)):
            for n in (1, 9):
                words = rng.integers(0, 2**32, (rows, cols * bits // 32), np.uint32)
                x = rng.standard_normal((n, cols)).astype(np.float32)
                scales, biases = rng.standard_normal((2, rows, cols // group_size)).astype(np.float32)
                out = np.empty((n, rows), np.float32)
                _machine.matmul_fast_groups(
                    "scalar",
                    bits,
                    group_size,
                    x.ravel(),
                    words.ravel(),
                    scales.ravel(),
                    biases.ravel(),
                    rows,
                    cols,
                    out.reshape(-1),
                    1,
                )
                recorder.add(
                    op="matmul",
                    format="groups",
                    bits=bits,
                    group_shift=shift if shift < 3 else 40,
                    n=n,
                    rows=rows,
                    cols=cols,
                    experts=1,
                    x=x,
                    packed=words,
                    scales=scales,
                    biases=biases,
                    out=out,
                )


def record_groups(recorder: Recorder, examples: int, first_seed: int) -> None:
    """Every number of bits with every group size, `examples` / 6 times, each time with types, rows and columns' weights
    that are drawn; symmetric or not, with importance or not, in turn.
    """
    rng = np.random.default_rng(first_seed)
    combinations = itertools.product(range(max(1, examples // 6)), (2, 3, 4, 5, 6, 8), (32, 64, 128, WHOLE_ROW))
    for index, (_, bits, size) in enumerate(combinations):
        symmetric, weighted = bool((index + index // 4) & 1), bool((index // 2 + index // 16) & 1)
        scalar, scale_type = (str(rng.choice(["f32", "f16", "bf16"])) for _ in range(2))
        # more rows than lanes, and fewer; rows of two groups, and one too wide for the searches of groups
        cols = 160 if size == WHOLE_ROW else 2 * size
        kinds = [str(kind) for kind in rng.choice(list(ROWS), rng.integers(1, 20))]
        source = as_scalars(rows_of(kinds, cols, int(rng.integers(2**32))), scalar)
        kind = str(rng.choice(list(COLUMNS))) if weighted else None
        importance = None if kind is None else columns_of(kind, cols, int(rng.integers(2**32)))
        recorder.groups(source, scalar, bits, size, symmetric, importance, scale_type)


def record_many_tasks_of_groups(recorder: Recorder) -> None:
    """More rows and columns than one task or one transposed tile holds, and counts that leave lanes empty."""
    x = rows_of([kind for _ in range(13) for kind in ROWS][:267], 512, 5)
    recorder.groups(x, "f32", 4, 64, False, None, "f32")
    recorder.groups(as_scalars(x, "bf16"), "bf16", 8, WHOLE_ROW, True, columns_of("lognormal", 512, 6), "f16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--examples", type=int, default=12, help="hypothesis examples a format")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--many-tasks", action="store_true", help="matrices of 267 x 512 too")
    args = parser.parse_args()
    os.environ["QUANTKIT_TIER"] = "scalar"
    recorder = Recorder()
    for index, name in enumerate(FORMATS):
        record_hard_matrices(recorder, name, args.examples, args.seed * len(FORMATS) + index)
        if args.many_tasks:
            record_many_tasks(recorder, name)
        if FORMATS[name].block_size > 1:
            record_products(recorder, name, args.seed)
    record_products_of_groups(recorder, args.seed)
    record_groups(recorder, args.examples, args.seed)
    if args.many_tasks:
        record_many_tasks_of_groups(recorder)
    args.out.write_bytes(b"QKCASES1" + b"".join(recorder.cases))
    print(f"{len(recorder.cases)} cases, {args.out.stat().st_size} bytes, seed {args.seed}")


if __name__ == "__main__":
    main()
