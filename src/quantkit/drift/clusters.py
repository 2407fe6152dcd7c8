"""Which tokens hang together: those of a document, or of some chunks in a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from quantkit.errors import UsageError

Doubles = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]

MIN_DOCUMENTS = 40  # below, there are too few to resample, and blocks of chunks take their place
_BLOCKS = 10  # about: more of them, which are shorter, tell hardly more (Schmeiser 1982)


@dataclass(frozen=True)
class Clusters:
    """Groups of scored tokens: no tokens in one group are independent of each other, and those of documents are of all
    other groups.

    Args:
        kind: "documents", or "chunks" for blocks of consecutive chunks.
        labels: the group of each scored token, 0 .. count - 1, int64 (n,).
        count: of groups.
        chunks_per_block: of a block; None for documents.
        documents: with scored tokens.
    """

    kind: Literal["documents", "chunks"]
    labels: Ids
    count: int
    chunks_per_block: int | None
    documents: int

    def sums(self, values: Doubles) -> Doubles:
        """Of values by token (n,): sums by group (count,)."""
        return np.bincount(self.labels, values, self.count).astype(np.float64, copy=False)

    @property
    def sizes(self) -> Doubles:
        """Tokens by group (count,)."""
        return np.bincount(self.labels, minlength=self.count).astype(np.float64)

    def only(self, tokens: npt.NDArray[np.bool_]) -> Clusters:
        """The groups of those tokens alone; a group without any is gone."""
        found, labels = np.unique(self.labels[tokens], return_inverse=True)
        documents = len(found) if self.kind == "documents" else self.documents
        return Clusters(self.kind, labels.reshape(-1), len(found), self.chunks_per_block, documents)


def clusters(documents: Ids, chunks: Ids) -> Clusters:
    """Documents if there are enough of them; else about ten blocks of consecutive chunks.

    Few long blocks are nearly independent, and what is left of it can be measured between neighbours; blocks do not
    overlap (Carlstein 1986).

    Args:
        documents, chunks: of each scored token, (n,); tokens of a document, and of a chunk, follow each other.

    Raises:
        UsageError: no tokens.
    """
    if not len(documents):
        raise UsageError("there are no scored tokens")
    names, labels = np.unique(documents, return_inverse=True)
    if len(names) >= MIN_DOCUMENTS:
        return Clusters("documents", labels.reshape(-1), len(names), None, len(names))
    found, places = np.unique(chunks, return_inverse=True)
    n = len(found)
    length = max(1, round(n / _BLOCKS))
    count = n // length
    blocks = np.minimum(places.reshape(-1) // length, count - 1)  # what is left over belongs to the last block
    return Clusters("chunks", blocks, count, length, len(names))
