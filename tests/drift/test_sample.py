"""Chunks, documents and what is scored, against a walk over the text by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from tests.drift.files import BOS, PROSE, TINY

from quantkit.calibration import Document, Encoder, checkpoint_encoder, documents, token_source
from quantkit.checkpoint import open_checkpoint
from quantkit.drift.sample import Sample, Score, take_sample
from quantkit.errors import UsageError


def letters(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def sample(
    texts: Sequence[tuple[str, str | None]],
    *,
    context: int = 8,
    tokens: int | None = None,
    score: Score = "all",
    bos: int | None = 1,
) -> Sample:
    found = [Document("here", text, domain) for text, domain in texts]
    return take_sample(found, Encoder(letters, bos), context=context, tokens=tokens, score=score, paths=[Path("a.txt")])


def test_documents_follow_each_other() -> None:
    found = sample([("abcd", "x"), ("efghijklmno", None), ("pq", "x"), ("rstu", "y")])
    # BOS before each document, and as the first token of each chunk
    rows = ["\1abcd\1ef", "\1hijklmn", "\1\1pq\1rst"]
    assert [[chr(token) for token in row] for row in found.chunks] == [list(row) for row in rows]
    assert found.documents.tolist() == [0] * 5 + [1] * 12 + [2] * 3 + [3] * 4
    assert found.domains == ("x", None, "x", "y")
    pairs = [(chr(found.chunks.reshape(-1)[at]), chr(to)) for at, to in zip(found.scored, found.targets, strict=True)]
    first = [("\1", "a"), ("a", "b"), ("b", "c"), ("c", "d"), ("\1", "e"), ("e", "f")]
    second = [("\1", "h"), ("h", "i"), ("i", "j"), ("j", "k"), ("k", "l"), ("l", "m"), ("m", "n")]
    third = [("\1", "p"), ("p", "q"), ("\1", "r"), ("r", "s"), ("s", "t")]
    assert pairs == first + second + third
    masks = found.domain_masks()
    assert {name: mask.sum() for name, mask in masks.items()} == {"x": 6, "y": 3}
    assert found.clusters.kind == "chunks"


def test_only_the_second_half() -> None:
    """As llama-perplexity: logits at positions context / 2 to context - 2."""
    found = sample([("a" * 100, None)], context=8, score="second-half")
    assert (found.scored % 8).tolist() == [4, 5, 6] * 12
    assert found.domain_masks() == {}


def test_tokens_are_whole_chunks_and_other_documents_are_not_read() -> None:
    texts = [("abc" * 10, "x"), ("later", "y")]
    found = sample(texts, tokens=23)
    assert found.chunks.shape == (2, 8)
    assert found.domains == ("x",)
    assert sample(texts, tokens=23, bos=None).chunks[0, 0] == ord("a")


def test_a_document_may_be_encoded_in_pieces() -> None:
    texts = [Document("", "abcdefgh" * 5), Document("", "ijkl" * 9, "x")]
    whole, pieces = Encoder(letters, 1), Encoder(letters, 1, lambda text: [text[:7], text[7:9], text[9:]])
    one, other = (
        take_sample(texts, encoder, context=8, tokens=None, score="all", paths=[]) for encoder in (whole, pieces)
    )
    np.testing.assert_array_equal(one.chunks, other.chunks)
    np.testing.assert_array_equal(one.documents, other.documents)
    assert one.domains == other.domains == (None, "x")


def test_chunks_are_those_of_calibration() -> None:
    with open_checkpoint(TINY) as cp:
        own = token_source(cp, documents(PROSE), context=64).take(None)
        found = take_sample(
            documents(PROSE), checkpoint_encoder(cp), context=64, tokens=None, score="all", paths=list(PROSE)
        )
    np.testing.assert_array_equal(found.chunks, own)
    assert (found.chunks[:, 0] == BOS).all()
    assert set(found.documents) == {0, 1}
    other = take_sample(
        documents(PROSE[:1]), Encoder(letters, None), context=64, tokens=None, score="all", paths=list(PROSE)
    )
    assert found.sha256 != other.sha256
    assert len(found.sha256) == 64


def test_too_little_text() -> None:
    with pytest.raises(UsageError, match=r"a\.txt: 4 tokens do not fill one chunk of 8"):
        sample([("abc", None)])
    with pytest.raises(UsageError, match="7 tokens do not fill"):
        sample([("abc", None)], tokens=7)
    with pytest.raises(UsageError, match="second-half"):
        sample([("a" * 20, None)], score="half")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="longer documents"):
        sample([(letter, None) for letter in "abcdefgh"], bos=None)
