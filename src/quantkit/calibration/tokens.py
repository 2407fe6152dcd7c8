"""Documents as chunks of tokens, cut as llama-imatrix cuts them."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quantkit.calibration.text import Document
from quantkit.checkpoint import Checkpoint, is_llama4_pre_tokenizer
from quantkit.errors import CheckpointError, UnsupportedModelError, UsageError

Ids = npt.NDArray[np.int64]
# Measured with Llama 4's 200,000 tokens: 69 MB, once what reading them took, 440 MB, is given back.
_ENTRY_BYTES = 400
_LINE_START = re.compile(r"\n(?=[A-Za-z])")


class TokenSource:
    """Hands out chunks of `context` tokens, each token once; what does not fill the last chunk is dropped.

    The tokens of all documents follow each other, each document's after a BOS, and then the first token of every chunk
    is replaced by BOS: with one document, what llama-imatrix computes.

    Args:
        encode: text -> ids, without BOS.
        bos_id: None for a model without BOS.
        context: tokens of a chunk.
        pieces: text -> parts whose ids follow each other as those of the text do; they are encoded when they are due.
    """

    def __init__(
        self,
        texts: Iterable[Document],
        encode: Callable[[str], list[int]],
        bos_id: int | None,
        context: int,
        pieces: Callable[[str], Iterable[str]] = lambda text: [text],
    ) -> None:
        if context < 2:
            raise UsageError(f"a context of {context} tokens", hint="llama-imatrix takes 512, and so does quantkit.")
        self.context, self._bos_id = context, bos_id
        self._parts = self._encoded(texts, encode, pieces)
        self._left = np.empty(0, np.int64)

    def take(self, n_chunks: int | None, *, begin: bool = True) -> Ids:
        """The next chunks, int64 (n, context): `n_chunks`, or all that are left; fewer, even none, at the end.

        Args:
            begin: each with BOS; else as the text has them.
        """
        parts, n = [self._left], len(self._left)
        while n_chunks is None or n < n_chunks * self.context:
            part = next(self._parts, None)
            if part is None:
                break
            parts.append(part)
            n += len(part)
        whole = n // self.context if n_chunks is None else min(n // self.context, n_chunks)
        tokens = np.concatenate(parts)
        self._left = tokens[whole * self.context :]
        chunks = tokens[: whole * self.context].reshape(whole, self.context)
        if begin and self._bos_id is not None:
            chunks[:, 0] = self._bos_id
        return chunks

    @property
    def n_left(self) -> int:
        """Tokens read and not handed out: at the end of the text, those that do not fill a chunk."""
        return len(self._left)

    def _encoded(
        self,
        texts: Iterable[Document],
        encode: Callable[[str], list[int]],
        pieces: Callable[[str], Iterable[str]],
    ) -> Iterator[Ids]:
        for document in texts:
            before = [] if self._bos_id is None else [self._bos_id]
            for piece in pieces(document.text):
                yield np.asarray([*before, *encode(piece)], np.int64)
                before = []


def tokens_bytes(vocab_size: int, n_tokens: int, text_bytes: int) -> int:
    """Memory that a tokenizer, a text as bytes, decoded and cut, and three copies of so many tokens take, about."""
    return _ENTRY_BYTES * vocab_size + 3 * text_bytes + 24 * n_tokens


def give_back_memory() -> None:
    """Let the system have what reading a tokenizer has left: glibc keeps it, and large arrays find no place in it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def token_source(
    cp: Checkpoint, texts: Iterable[Document], *, context: int = 512, parse_special: bool = False
) -> TokenSource:
    """Chunks by the checkpoint's own tokenizer; see `checkpoint_encoder`."""
    encoder = checkpoint_encoder(cp, parse_special=parse_special)
    return TokenSource(texts, encoder.encode, encoder.bos_id, context, encoder.pieces)


@dataclass(frozen=True)
class Encoder:
    """Text -> ids without BOS, and the BOS that comes before a text, None where none does.

    Args:
        pieces: cuts a long text so that the ids of its pieces are those of the text.
    """

    encode: Callable[[str], list[int]]
    bos_id: int | None
    pieces: Callable[[str], Iterable[str]] = lambda text: [text]


def checkpoint_encoder(cp: Checkpoint, *, parse_special: bool = False) -> Encoder:
    """The checkpoint's own tokenizer.

    Args:
        parse_special: read `<|eot|>` and the like in the text as the tokens that they name, not as any other text.

    Raises:
        CheckpointError, UnsupportedModelError: the tokenizer is malformed, or adds EOS, which is not cut into chunks.
    """
    from tokenizers import Tokenizer

    known = cp.tokenizer()
    if known.add_eos:
        raise UnsupportedModelError(f"{cp.root}: the tokenizer adds EOS to every text; llama-imatrix refuses that too")
    path = cp.root / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:
        raise CheckpointError(f"{path}: cannot be loaded: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = not parse_special

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    added = tokenizer.get_added_tokens_decoder().values()
    plain = tokenizer.normalizer is None and not any("\n" in token.content or token.lstrip for token in added)
    bos_id = known.bos_id if known.add_bos else None
    if not plain or not is_llama4_pre_tokenizer(known):
        return Encoder(encode, bos_id)
    return Encoder(encode, bos_id, line_pieces)


def line_pieces(text: str, n_chars: int = 1 << 16) -> Iterator[str]:
    """Pieces of `n_chars` or a line more, each ending between a line end and a Latin letter.

    Llama 4's regex never joins these: a word begins with a letter or a character that is no line end, and what comes
    before ends with its last line end, whether anything follows or not.
    """
    start = 0
    while found := _LINE_START.search(text, start + n_chars):
        yield text[start : found.end()]
        start = found.end()
    yield text[start:]
