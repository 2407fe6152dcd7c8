"""Tokens by id, their types, and the merges of a byte-level BPE tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.checkpoint.document import Document
from quantkit.errors import CheckpointError

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5

_HINT = "The tokenizer does not belong to this config.json, or was edited by hand; download both again."
# Bytes stand as printable characters in a byte-level vocabulary: themselves where printable, else from U+0100 on.
_PRINTABLE = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
_ALPHABET = frozenset(map(chr, [*_PRINTABLE, *range(0x100, 0x100 + 256 - len(_PRINTABLE))]))


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Tokens and types by id, and the ids of added tokens by text."""

    tokens: list[str]
    types: list[int]
    added: dict[str, int]
    base: dict[str, int]

    def find(self, text: str) -> int | None:
        """The id of a token, added or not."""
        token_id = self.added.get(text)
        return self.base.get(text) if token_id is None else token_id


def read_tokens(document: Document, model: Document, vocab_size: int, path: Path) -> Vocabulary:
    """Lay the tokens of tokenizer.json out by id, with holes filled up to `vocab_size`.

    Raises:
        CheckpointError: malformed, an id beyond `vocab_size` or taken, a text that no byte-level token can have.
    """
    base = model.get("vocab")
    if not isinstance(base, dict) or not base:
        raise CheckpointError(f"{path}: model.vocab is missing or empty", hint=_HINT)
    tokens: list[str | None] = [None] * vocab_size
    types = [UNUSED] * vocab_size
    for text, token_id in base.items():
        _place(tokens, text, token_id, path)
        types[token_id] = NORMAL
    added: dict[str, int] = {}
    for entry in _added_tokens(document, path):
        text, token_id = entry["content"], entry["id"]
        if added.get(text, token_id) != token_id or base.get(text, token_id) != token_id:
            raise CheckpointError(f"{path}: added token {text!r} has two ids", hint=_HINT)
        if text not in base:
            _place(tokens, text, token_id, path)
        added[text] = token_id
        types[token_id] = CONTROL if entry.get("special") else USER_DEFINED
    _check_alphabet(base, added, path)
    return Vocabulary(_fill(tokens, base, added, path), types, added, base)


def _check_alphabet(base: dict[str, int], added: dict[str, int], path: Path) -> None:
    if _ALPHABET.issuperset("".join(base)):
        return
    for text, token_id in base.items():
        if text not in added and not _ALPHABET.issuperset(text):
            raise CheckpointError(
                f"{path}: token {token_id}, {text!r}, is not written in byte-level characters", hint=_HINT
            )


def _place(tokens: list[str | None], text: str, token_id: Any, path: Path) -> None:
    if type(token_id) is not int or token_id < 0:
        raise CheckpointError(f"{path}: token {text!r} has id {token_id!r}", hint=_HINT)
    if token_id >= len(tokens):
        raise CheckpointError(
            f"{path}: token {text!r} has id {token_id}, beyond config.json's vocab_size of {len(tokens)}", hint=_HINT
        )
    if tokens[token_id] is not None:
        raise CheckpointError(f"{path}: tokens {tokens[token_id]!r} and {text!r} both have id {token_id}", hint=_HINT)
    tokens[token_id] = text


def _added_tokens(document: Document, path: Path) -> list[dict[str, Any]]:
    entries = document.get("added_tokens")
    if entries is None:
        return []
    if not isinstance(entries, list):
        raise CheckpointError(f"{path}: added_tokens is not a list", hint=_HINT)
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("content"), str) or type(entry.get("id")) is not int:
            raise CheckpointError(f"{path}: added token {entry!r} has no content or no id", hint=_HINT)
    return entries


def _fill(tokens: list[str | None], base: Document, added: Document, path: Path) -> list[str]:
    filled: list[str] = []
    for token_id, text in enumerate(tokens):
        if text is None:
            text = f"[PAD{token_id}]"
            if text in base or text in added:
                raise CheckpointError(f"{path}: token {text!r} has the name of the hole at id {token_id}", hint=_HINT)
        filled.append(text)
    return filled


def read_merges(model: Document, path: Path) -> list[str]:
    """The merges by rank as "a b", from that form or from [a, b] pairs.

    Raises:
        CheckpointError: malformed, or a merge whose pieces or result the vocabulary does not have.
    """
    vocab, merges = model["vocab"], model.get("merges")
    if not isinstance(merges, list) or not merges:
        raise CheckpointError(f"{path}: model.merges is missing or empty", hint=_HINT)
    found: list[str] = []
    for rank, merge in enumerate(merges):
        if isinstance(merge, str):
            if rank == 0 and merge.startswith("#version"):
                continue
            pieces = merge.split(" ")
        else:
            pieces = merge
        if not isinstance(pieces, list) or len(pieces) != 2 or not all(isinstance(piece, str) for piece in pieces):
            raise CheckpointError(f"{path}: merge {rank}, {merge!r}, is not a pair of tokens", hint=_HINT)
        left, right = pieces
        if left not in vocab or right not in vocab or left + right not in vocab:
            lacking = next(text for text in (left, right, left + right) if text not in vocab)
            raise CheckpointError(
                f"{path}: merge {rank}, {merge!r}, needs token {lacking!r}, which is not there", hint=_HINT
            )
        found.append(f"{left} {right}" if isinstance(merge, list) and " " not in left + right else _encode(left, right))
    if len(set(found)) != len(found):
        raise CheckpointError(f"{path}: a merge is given twice", hint=_HINT)
    return found


def _encode(left: str, right: str) -> str:
    return f"{left.replace(' ', 'Ġ')} {right.replace(' ', 'Ġ')}"
