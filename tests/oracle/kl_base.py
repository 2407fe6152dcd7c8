"""llama-perplexity's file of log-probabilities and what it computes from one, written down number by number."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tests.oracle.llama import Model

Floats = npt.NDArray[np.float32]
f32 = np.float32


def record(logits: Floats) -> bytes:
    """One position: (n_vocab,) logits."""
    highest = max(f32(one) for one in logits)
    lowest = max(min(f32(one) for one in logits), f32(highest - f32(16)))
    total = 0.0
    for one in logits:
        total += float(np.exp(f32(one - highest)))
    log_sum = f32(np.log(total))
    scale = f32(f32(highest - lowest) / f32(65535))
    codes = [0] * len(logits)
    if scale:
        inverse = f32(f32(1) / scale)
        codes = [round(float(f32(inverse * f32(one - lowest)))) if one > lowest else 0 for one in logits]
    codes += [0] * (len(codes) % 2)
    return struct.pack(f"<ff{len(codes)}H", scale, f32(f32(lowest - highest) - log_sum), *codes)


def base_file(path: Path, tokens: npt.NDArray[np.int64], logits: Sequence[Floats]) -> Path:
    """Of tokens (chunks, context) as the text has them, and of each chunk the logits of its scored positions."""
    chunks, context = tokens.shape
    content = b"_logits_" + struct.pack("<iii", context, logits[0].shape[1], chunks)
    content += struct.pack(f"<{tokens.size}i", *tokens.reshape(-1).tolist())
    path.write_bytes(content + b"".join(record(row) for chunk in logits for row in chunk))
    return path


def decoded(one: bytes, n_vocab: int) -> Floats:
    """Log-probabilities of a record."""
    scale, lowest = struct.unpack_from("<ff", one)
    codes = np.frombuffer(one, "<u2", n_vocab, 8)
    found: Floats = f32(scale) * codes.astype(f32) + f32(lowest)
    return found


def scores(base: Floats, logits: Floats, target: int) -> tuple[float, float, float, bool]:
    """KLD, ln p of the target in base and candidate, and whether both have the same likeliest token."""
    highest = logits.max()
    log_sum = f32(np.log(np.exp(logits - highest).sum(dtype=np.float64)))
    counted = base > -16
    terms = np.exp(base[counted]) * (base[counted] - logits[counted] + (highest + log_sum))
    own = -(highest + log_sum - logits[target])
    return float(terms.sum(dtype=np.float64)), float(base[target]), float(own), base.argmax() == logits.argmax()


def scored_logits(path: Path, chunks: npt.NDArray[np.int64]) -> list[Floats]:
    """By llama.cpp, of the second half of each chunk (chunks, context) but its last position."""
    context = chunks.shape[1]
    with Model(path, n_ctx=context) as model:
        return [model.logits(chunk)[context // 2 : context - 1] for chunk in chunks]
