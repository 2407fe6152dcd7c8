"""What the products with packed weights cost in accuracy: `mode="exact"` and `mode="fast"`, for every format and some
of groups.

Writes the table of docs/kernels.md between its two markers, or prints it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt

from quantkit.kernels import FORMATS, QuantizedTensor

Doubles = npt.NDArray[np.float64]

BEGIN, END = "<!-- table: product error -->", "<!-- end -->"
ROWS, COLS, N = 512, 4096, 64
GROUPS = ("int4_g64", "int4_row", "int8_g64", "int8_row")


def weights(rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Heavy tails, and rows and columns of different size, as trained matrices have them."""
    size = np.exp(0.3 * rng.standard_normal((ROWS, 1))) * np.exp(0.2 * rng.standard_normal((1, COLS)))
    return (0.02 * size * rng.standard_t(6, (ROWS, COLS))).astype(np.float32)


def activations(rng: np.random.Generator) -> dict[str, npt.NDArray[np.float32]]:
    """Normalised hidden states with a few channels that are large in every token; and what a gated unit gives out."""
    channels = np.exp(0.5 * rng.standard_normal(COLS))
    channels[rng.choice(COLS, COLS // 500, replace=False)] *= 25
    hidden = channels * rng.standard_normal((N, COLS))
    gate = rng.standard_normal((N, COLS)) * 1.5
    gated = gate / (1 + np.exp(-gate)) * rng.standard_normal((N, COLS))
    return {
        "normal": rng.standard_normal((N, COLS)).astype(np.float32),
        "hidden": (hidden / np.sqrt((hidden**2).mean(axis=1, keepdims=True))).astype(np.float32),
        "gated": gated.astype(np.float32),
    }


def relative(error: Doubles, reference: Doubles) -> float:
    """Root mean square over that of the reference."""
    return float(np.sqrt((error**2).mean() / (reference**2).mean()))


def rows() -> list[str]:
    rng = np.random.default_rng(2024)
    w, inputs = weights(rng), activations(rng)
    lines = [
        "| format | quantized weights | exact | fast, normal | fast, hidden | fast, gated "
        "| worst element, of its bound |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name in (*FORMATS, *GROUPS):
        qt = QuantizedTensor.quantize(w, name)
        decoded = qt.dequantize().astype(np.float64)
        x = inputs["hidden"]
        true = x.astype(np.float64) @ decoded.T
        original = x.astype(np.float64) @ w.T.astype(np.float64)
        cells = [relative(true - original, original), relative(qt.matmul(x) - true, true)]
        line = f"| {name} | {100 * cells[0]:.3f} % | {cells[1]:.1e} "
        block = FORMATS[name].block_size if name in FORMATS else 32  # of x, for this many rows
        if block == 1:
            lines.append(line + "| | | | |")
            continue
        worst = 0.0
        for x in inputs.values():
            true = x.astype(np.float64) @ decoded.T
            error = qt.matmul(x, mode="fast") - true
            largest = np.abs(x.astype(np.float64)).reshape(N, -1, block).max(axis=2) / 254
            bound = largest @ np.abs(decoded).reshape(ROWS, -1, block).sum(axis=2).T
            worst = max(worst, float((np.abs(error) / bound).max()))
            line += f"| {100 * relative(error, true):.2f} % "
        lines.append(line + f"| {100 * worst:.0f} % |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, metavar="FILE", help="replace the table in this Markdown file")
    file = parser.parse_args().write
    table = "\n".join(rows())
    if file is None:
        print(table)
        return
    before, rest = file.read_text().split(BEGIN)
    file.write_text(f"{before}{BEGIN}\n{table}\n{END}{rest.split(END, 1)[1]}")


if __name__ == "__main__":
    main()
