"""A Hugging Face tokenizer as GGUF wants it: tokens by id, merges, special ids, chat templates."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.checkpoint.chat_template import read_chat_templates
from quantkit.checkpoint.document import Document, read_document, read_optional
from quantkit.checkpoint.download import explain_absence
from quantkit.checkpoint.pre_tokenizer import LLAMA4_REGEX, is_llama4_regex, split_patterns
from quantkit.checkpoint.special_tokens import added_at_edges, special_ids
from quantkit.checkpoint.vocabulary import read_merges, read_tokens
from quantkit.errors import CheckpointError, UnsupportedModelError

__all__ = ["LLAMA4_REGEX", "SIDE_FILES", "Tokenizer", "is_llama4_pre_tokenizer", "read_tokenizer"]

SIDE_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
)


# Every hole up to vocab_size becomes a token, so a slip in config.json must not fill the memory.
_MAX_VOCAB_SIZE = 2**24


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """A byte-level BPE tokenizer.

    Attributes:
        tokens: text by id, `vocab_size` of them; holes are `[PAD{id}]`.
        token_types: GGUF's numbers by id: 1 normal, 3 control, 4 user-defined, 5 unused (holes).
        merges: "a b" by rank; a space inside a piece is written U+0120.
        pre_regex: the regexes that split text before merging, in the order in which they apply.
        bos_id, eos_id, pad_id, eot_id, eom_id: None where the checkpoint names none.
        add_bos, add_eos, add_sep: whether encoding adds these.
        chat_template: the default template.
        chat_templates: the other templates by name.
    """

    tokens: list[str]
    token_types: list[int]
    merges: list[str]
    pre_regex: list[str]
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None
    eot_id: int | None
    eom_id: int | None
    add_bos: bool
    add_eos: bool
    add_sep: bool
    chat_template: str | None
    chat_templates: dict[str, str]


def is_llama4_pre_tokenizer(tokenizer: Tokenizer) -> bool:
    """Whether text is split as Llama 4 splits it, which is what GGUF's pre-tokenizer name `llama4` stands for."""
    return len(tokenizer.pre_regex) == 1 and is_llama4_regex(tokenizer.pre_regex[0])


def read_tokenizer(root: Path, config: Document, generation_config: Document) -> Tokenizer:
    """Read the tokenizer of the checkpoint folder `root`.

    Raises:
        CheckpointError: a file is missing or malformed, ids clash or lie beyond `vocab_size`, a merge lacks its tokens.
        UnsupportedModelError: sound, but nothing that a byte-level BPE tokenizer of GGUF can express.
    """
    path = root / "tokenizer.json"
    document = _read_tokenizer_json(path)
    settings = read_optional(root / "tokenizer_config.json")
    special_map = read_optional(root / "special_tokens_map.json")
    model = document.get("model")
    if not isinstance(model, dict):
        raise CheckpointError(f"{path}: has no model", hint="The file is damaged; download it again.")
    _refuse_inexpressible(document, model, path)
    pre_regex = split_patterns(document.get("pre_tokenizer"), path)
    vocabulary = read_tokens(document, model, _vocab_size(config, root / "config.json"), path)
    merges = read_merges(model, path)
    ids = special_ids(
        vocabulary,
        {"tokenizer_config.json": settings, "special_tokens_map.json": special_map},
        config,
        generation_config,
        root,
    )
    edges = added_at_edges(document.get("post_processor"), settings, vocabulary, ids, path)
    chat_template, chat_templates = read_chat_templates(root, settings)
    return Tokenizer(
        tokens=vocabulary.tokens,
        token_types=vocabulary.types,
        merges=merges,
        pre_regex=pre_regex,
        bos_id=ids["bos"],
        eos_id=ids["eos"],
        pad_id=ids["pad"],
        eot_id=vocabulary.added.get("<|eot|>"),
        eom_id=vocabulary.added.get("<|eom|>"),
        add_bos=edges.bos,
        add_eos=edges.eos,
        add_sep=edges.sep,
        chat_template=chat_template,
        chat_templates=chat_templates,
    )


def _read_tokenizer_json(path: Path) -> Document:
    if path.is_file():
        return read_document(path)
    what, hint = explain_absence(path)
    if what == "missing" and ((path.parent / "vocab.json").exists() or (path.parent / "tokenizer.model").exists()):
        hint = "Load the tokenizer once with transformers' AutoTokenizer and `save_pretrained(FOLDER)` it."
    raise CheckpointError(f"{path}: {what}", hint=hint)


def _vocab_size(config: Document, path: Path) -> int:
    text = config.get("text_config")
    size: Any = text.get("vocab_size") if isinstance(text, dict) else None
    if size is None:
        size = config.get("vocab_size")
    if type(size) is not int or not 1 <= size <= _MAX_VOCAB_SIZE:
        raise CheckpointError(f"{path}: vocab_size is {size!r}, not an integer from 1 to {_MAX_VOCAB_SIZE}")
    return size


def _refuse_inexpressible(document: Document, model: Document, path: Path) -> None:
    hint = "GGUF's byte-level BPE tokenizer has no such thing, so the runtime would read text differently."
    if model.get("type", "BPE") != "BPE":
        raise UnsupportedModelError(f"{path}: model type {model['type']!r}, where BPE is wanted", hint=hint)
    if document.get("normalizer") is not None:
        raise UnsupportedModelError(f"{path}: a normalizer changes text before it is split", hint=hint)
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(key):
            raise UnsupportedModelError(f"{path}: model.{key} is {model[key]!r}", hint=hint)
