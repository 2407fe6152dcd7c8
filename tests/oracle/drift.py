"""How far a quantized file has drifted from the 16-bit one, by llama.cpp's logits on both."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tests.oracle.llama import Model


def chunked(model: Path, texts: Iterable[str], n_ctx: int, bos: int, *, skip: int = 0) -> NDArray[np.int32]:
    """`texts` one after another as tokens (n, n_ctx); each chunk begins with BOS, as in llama.cpp's perplexity tool.

    The first `skip` tokens are left out: half a chunk of them, and what was not scored now is, and the other way round.
    """
    with Model(model, vocab_only=True) as tokenizer:
        tokens = [token for text in texts for token in tokenizer.tokenize(text)][skip:]
    n = len(tokens) // (n_ctx - 1)
    body = np.asarray(tokens[: n * (n_ctx - 1)], dtype=np.int32).reshape(n, n_ctx - 1)
    return np.concatenate([np.full((n, 1), bos, dtype=np.int32), body], axis=1)


def spread(chunks: NDArray[np.int32], n: int) -> NDArray[np.int32]:
    """At most `n` of the chunks, evenly spaced."""
    return chunks[np.linspace(0, len(chunks) - 1, min(n, len(chunks))).astype(int)]


@dataclass(frozen=True)
class Scores:
    """Per scored token (chunks, n_ctx/2 - 1): KLD to the 16-bit file and -log p of the text's next token, in nats."""

    kld: NDArray[np.float64]
    surprise: NDArray[np.float64]

    @property
    def mean_kld(self) -> float:
        return float(self.kld.mean())

    @property
    def perplexity(self) -> float:
        return float(np.exp(self.surprise.mean()))


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Log-probabilities (n, vocab) in float64."""
    wide = logits.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(-1, keepdims=True))


def log_probabilities(path: Path, chunks: NDArray[np.int32], out: NDArray[np.float32]) -> None:
    """Fill `out` (chunks, n_ctx/2 - 1, vocab) with the file's log-probabilities over the second half of each chunk."""
    n_ctx = chunks.shape[1]
    with Model(path, n_ctx=n_ctx) as model:
        for row, chunk in zip(out, chunks, strict=True):
            row[:] = log_softmax(model.logits(chunk[:-1], last=n_scored(n_ctx)))


def n_scored(n_ctx: int) -> int:
    """Scored tokens in a chunk of `n_ctx`."""
    return n_ctx - 1 - n_ctx // 2


def score(path: Path, chunks: NDArray[np.int32], reference: NDArray[np.float32]) -> Scores:
    """Scores of the GGUF at `path` against the `reference` log-probabilities of the 16-bit file."""
    n_ctx = chunks.shape[1]
    kld, surprise = [], []
    with Model(path, n_ctx=n_ctx) as model:
        for chunk, row in zip(chunks, reference, strict=True):
            base = row.astype(np.float64)
            own = log_softmax(model.logits(chunk[:-1], last=n_scored(n_ctx)))
            kld.append((np.exp(base) * (base - own)).sum(-1))
            following = chunk[n_ctx // 2 + 1 :, None]
            surprise.append(-np.take_along_axis(own, following, axis=-1)[:, 0])
    return Scores(np.asarray(kld), np.asarray(surprise))


def joined(scores: Sequence[Scores]) -> Scores:
    """The scores on several texts as those on one."""
    return Scores(np.concatenate([s.kld for s in scores]), np.concatenate([s.surprise for s in scores]))


def ratio(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> tuple[float, float]:
    """Mean KLD of `ours` over that of `theirs`, and its standard error.

    Both are per token (chunks, tokens) on the same text, so the difference is paired; tokens of a chunk hang together,
    so chunks are what is counted (delta method, clustered by chunk).
    """
    a, b = ours.sum(1), theirs.sum(1)
    r = a.sum() / b.sum()
    n = len(a)
    return float(r), float(np.sqrt(np.square(a - r * b).sum() * n / (n - 1)) / b.sum())
