"""The tokenizer of either side: whether both are the same, and how a GGUF's own keys cut text into tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.calibration import Encoder
from quantkit.calibration.tokens import line_pieces
from quantkit.checkpoint import Checkpoint
from quantkit.checkpoint.tokenizer import LLAMA4_REGEX
from quantkit.errors import CheckpointError, UnsupportedModelError, UsageError
from quantkit.gguf import GgufFile

_NORMAL, _USER_DEFINED = 1, 4
_KEY = "tokenizer.ggml."


@dataclass(frozen=True)
class Vocabulary:
    """What cutting text into tokens needs.

    Args:
        source: for messages.
        tokens, types: by id, byte-level text and GGUF's numbers (1 normal, 3 control, 4 user-defined).
        merges: "a b" by rank.
        bos_id: what comes before a text; None where nothing does.
    """

    source: Path
    tokens: Sequence[str]
    types: Sequence[int]
    merges: Sequence[str]
    bos_id: int | None

    def refuse_other(self, other: Vocabulary) -> None:
        """UsageError if text means other tokens to `other`. What control tokens are called does not matter."""
        hint = "Drift is measured between files of one model."
        if len(self.tokens) != len(other.tokens):
            sizes = f"{len(self.tokens):,} tokens, and {other.source} has {len(other.tokens):,}"
            raise UsageError(f"{self.source} has {sizes}", hint=hint)
        for token, (mine, theirs) in enumerate(zip(self.tokens, other.tokens, strict=True)):
            if mine != theirs and _NORMAL in (self.types[token], other.types[token]):
                raise UsageError(
                    f"token {token} is {mine!r} in {self.source} and {theirs!r} in {other.source}", hint=hint
                )
        if list(self.merges) != list(other.merges):
            raise UsageError(f"{self.source} and {other.source} merge tokens otherwise", hint=hint)


def checkpoint_vocabulary(cp: Checkpoint) -> Vocabulary:
    known = cp.tokenizer()
    return Vocabulary(cp.root, known.tokens, known.token_types, known.merges, known.bos_id if known.add_bos else None)


def gguf_vocabulary(file: GgufFile) -> Vocabulary:
    """From the keys `tokenizer.ggml.*`.

    Raises:
        CheckpointError: keys are missing or malformed.
        UnsupportedModelError: another tokenizer than Llama 4's.
    """
    path = file.files[0]

    def value(name: str, default: Any = None) -> Any:
        field = file.fields.get(_KEY + name)
        return default if field is None else field.value

    def strings(name: str) -> Sequence[str]:
        found = value(name)
        if not isinstance(found, Sequence) or isinstance(found, str) or not all(isinstance(one, str) for one in found):
            raise CheckpointError(f"{path}: {_KEY}{name} is {'missing' if found is None else 'not a list of texts'}")
        return found

    for name, wanted in (("model", "gpt2"), ("pre", "llama4")):
        if value(name) != wanted:
            raise UnsupportedModelError(f"{path}: {_KEY}{name} is {value(name)!r}, and Llama 4's is {wanted!r}")
    if value("add_eos_token", False):
        raise UnsupportedModelError(f"{path}: the tokenizer adds EOS to every text; llama-perplexity refuses that too")
    tokens = strings("tokens")
    types = [int(one) for one in value("token_type", [_NORMAL] * len(tokens))]
    if len(types) != len(tokens):
        raise CheckpointError(f"{path}: {_KEY}token_type has {len(types)} entries for {len(tokens)} tokens")
    bos = value("bos_token_id")
    if value("add_bos_token", False) and not (isinstance(bos, int) and 0 <= bos < len(tokens)):
        raise CheckpointError(f"{path}: {_KEY}bos_token_id is {bos!r}")
    return Vocabulary(path, tokens, types, strings("merges"), bos if value("add_bos_token", False) else None)


def gguf_encoder(vocabulary: Vocabulary) -> Encoder:
    """A `tokenizers` BPE that cuts text as the checkpoint's tokenizer.json does.

    Raises:
        CheckpointError: a merge is malformed, or lacks its tokens.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers

    kinds = (_NORMAL, _USER_DEFINED)  # control tokens are never found in a text, and unused ones are none
    ids = {token: i for i, token in enumerate(vocabulary.tokens) if vocabulary.types[i] in kinds}
    merges = []
    for merge in vocabulary.merges:
        first, space, second = merge.partition(" ")
        if not space or not first or not second or " " in second:
            raise CheckpointError(f"{vocabulary.source}: {_KEY}merges has {merge!r}")
        merges.append((first, second))
    try:
        # whole words that are tokens are taken as such, as in Llama 4's tokenizer.json
        tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges, ignore_merges=True))
    except Exception as error:
        raise CheckpointError(f"{vocabulary.source}: tokens and merges do not fit together: {error}") from error
    split = pre_tokenizers.Split(Regex(LLAMA4_REGEX), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    added = [token for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=True) if kind == _USER_DEFINED]
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in added])

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    if any("\n" in token for token in added):
        return Encoder(encode, vocabulary.bos_id)
    return Encoder(encode, vocabulary.bos_id, line_pieces)
