"""The text that drift is measured on: chunks of tokens, which of them are scored, and whose document each is."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from quantkit.calibration import Document, Encoder, TokenSource
from quantkit.drift.clusters import Clusters, clusters
from quantkit.errors import UsageError

Ids = npt.NDArray[np.int64]
Score = Literal["all", "second-half"]


@dataclass(frozen=True)
class Sample:
    """Tokens in chunks that do not see each other, cut as llama-perplexity cuts them; documents follow each other.

    Args:
        chunks: int64 (chunks, context).
        documents: the document of each token, int64 (chunks * context,).
        domains: of each document, as its .jsonl names it; None where it does not.
        scored: numbers of the tokens whose logits count, ascending: chunk * context + position. The next token lies in
            the same chunk and document.
        firsts: what the text has where each chunk begins with BOS, int64 (chunks,).
    """

    chunks: Ids
    documents: Ids
    domains: tuple[str | None, ...]
    scored: Ids
    firsts: Ids

    @property
    def context(self) -> int:
        return int(self.chunks.shape[1])

    @property
    def targets(self) -> Ids:
        """The token that follows each scored one."""
        found: Ids = self.chunks.reshape(-1)[self.scored + 1]
        return found

    @property
    def clusters(self) -> Clusters:
        """Of scored tokens."""
        return clusters(self.documents[self.scored], self.scored // self.context)

    @property
    def text_tokens(self) -> Ids:
        """The chunks as the text has them, without BOS at their beginning."""
        return np.concatenate([self.firsts[:, None], self.chunks[:, 1:]], axis=1)

    @property
    def sha256(self) -> str:
        """Of the tokens as little-endian int32."""
        return hashlib.sha256(self.chunks.astype("<i4").tobytes()).hexdigest()

    def domain_masks(self) -> dict[str, npt.NDArray[np.bool_]]:
        """Which scored tokens belong to each domain, by name; empty where no document has one."""
        names = sorted({name for name in self.domains if name is not None})
        of_document = np.array([-1 if name is None else names.index(name) for name in self.domains])
        number = of_document[self.documents[self.scored]]
        masks = {name: number == at for at, name in enumerate(names)}
        return {name: mask for name, mask in masks.items() if mask.any()}


def take_sample(
    texts: Iterable[Document], encoder: Encoder, *, context: int, tokens: int | None, score: Score, paths: list[Path]
) -> Sample:
    """Read documents until `tokens` are full, or to their end.

    Args:
        tokens: rounded down to whole chunks; None takes all.
        score: "all" tokens that have a next one, or only the second half of each chunk, as llama-perplexity does.
        paths: for messages.

    Raises:
        UsageError: less text than one chunk.
    """
    if score not in get_args(Score):
        raise UsageError(f"unknown score {score!r}", hint=f"Known: {', '.join(get_args(Score))}.")
    if tokens is not None and tokens < context:
        raise UsageError(f"{tokens} tokens do not fill one chunk of {context}")
    domains: list[str | None] = []
    lengths: list[int] = []

    def noted() -> Iterator[Document]:
        for document in texts:
            domains.append(document.domain)
            lengths.append(encoder.bos_id is not None)
            yield document

    def encode(text: str) -> list[int]:
        ids = encoder.encode(text)
        lengths[-1] += len(ids)  # of the document in work, of which this may be a piece
        return ids

    source = TokenSource(noted(), encode, encoder.bos_id, context, encoder.pieces)
    chunks = source.take(None if tokens is None else tokens // context, begin=False)
    if not len(chunks):
        raise UsageError(
            f"{', '.join(map(str, paths))}: {source.n_left} tokens do not fill one chunk of {context}",
            hint="Give more text, or a shorter --context.",
        )
    firsts = chunks[:, 0].copy()
    if encoder.bos_id is not None:
        chunks[:, 0] = encoder.bos_id
    ends = np.cumsum(lengths)
    of_token = np.searchsorted(ends, np.arange(chunks.size), side="right")
    return Sample(chunks, of_token, tuple(domains[: of_token[-1] + 1]), _scored(of_token, context, score), firsts)


def _scored(documents: Ids, context: int, score: Score) -> Ids:
    places = np.arange(len(documents) - 1)
    position = places % context
    first = context // 2 if score == "second-half" else 0
    scored: Ids = places[(position >= first) & (position < context - 1) & (documents[:-1] == documents[1:])]
    if not len(scored):
        raise UsageError("no token is followed by another one of its document", hint="Give longer documents.")
    return scored
