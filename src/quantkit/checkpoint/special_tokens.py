"""Which ids mark beginning, end and padding, and which of them encoding adds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.checkpoint.document import Document
from quantkit.checkpoint.vocabulary import Vocabulary
from quantkit.errors import CheckpointError, UnsupportedModelError

_ROLES = ("bos", "eos", "pad")


@dataclass(frozen=True, slots=True)
class Edges:
    """Which special tokens encoding adds to a text."""

    bos: bool
    eos: bool
    sep: bool


def special_ids(
    vocabulary: Vocabulary,
    settings: Mapping[str, Document],
    config: Document,
    generation_config: Document,
    root: Path,
) -> dict[str, int | None]:
    """Role -> id. A token's text in `settings` (by file name, first one wins) comes before an id in the configs.

    Lists of ids, as config.json has for eos, name no single token and are passed over.

    Raises:
        CheckpointError: a text that is no token, an id beyond the vocabulary.
    """
    text_config = config.get("text_config")
    configs = (config, text_config if isinstance(text_config, dict) else {}, generation_config)
    found: dict[str, int | None] = {}
    for role in _ROLES:
        found[role] = None
        for file, document in settings.items():
            text = _text(document.get(f"{role}_token"), f"{root / file}: {role}_token")
            if text is not None:
                found[role] = vocabulary.find(text)
                if found[role] is None:
                    raise CheckpointError(
                        f"{root / file}: {role}_token {text!r} is not in tokenizer.json",
                        hint="The files are of different versions; download the tokenizer again.",
                    )
                break
        else:
            found[role] = next((i for document in configs if type(i := document.get(f"{role}_token_id")) is int), None)
            _check_range(found[role], role, vocabulary, root)
    return found


def _text(entry: Any, what: str) -> str | None:
    if isinstance(entry, dict):
        entry = entry.get("content")
    if entry is not None and not isinstance(entry, str):
        raise CheckpointError(f"{what} is neither text nor an object with content")
    return entry or None


def _check_range(token_id: int | None, role: str, vocabulary: Vocabulary, root: Path) -> None:
    if token_id is not None and not 0 <= token_id < len(vocabulary.tokens):
        raise CheckpointError(
            f"{root / 'config.json'}: {role}_token_id {token_id} is beyond vocab_size {len(vocabulary.tokens)}",
            hint="config.json does not belong to this tokenizer; download both again.",
        )


def added_at_edges(
    post_processor: Any, settings: Document, vocabulary: Vocabulary, ids: Mapping[str, int | None], path: Path
) -> Edges:
    """Whether encoding adds bos and eos, from the template of tokenizer.json's post-processor.

    `add_bos_token` and `add_eos_token` of tokenizer_config.json have the last word.

    Raises:
        CheckpointError: malformed.
        UnsupportedModelError: the template adds other tokens, which GGUF cannot say.
    """
    first, last = _template_edges(post_processor, path)
    for name, role, place in ((first, "bos", "before"), (last, "eos", "behind")):
        if name is not None and (ids[role] is None or vocabulary.find(name) != ids[role]):
            raise UnsupportedModelError(
                f"{path}: the post-processor puts {name!r} {place} every text, which is not the {role} token",
                hint=f"GGUF can only say that the {role} token is added; does {role}_token name another?",
            )
    chosen = {}
    for role, default in (("bos", first is not None), ("eos", last is not None)):
        stated = settings.get(f"add_{role}_token")
        if stated is not None and type(stated) is not bool:
            raise CheckpointError(
                f"{path.parent / 'tokenizer_config.json'}: add_{role}_token is {stated!r}, not a truth value"
            )
        chosen[role] = default if stated is None else stated
    return Edges(bos=chosen["bos"], eos=chosen["eos"], sep=settings.get("add_sep_token") is True)


def _template_edges(post_processor: Any, path: Path) -> tuple[str | None, str | None]:
    first: str | None = None
    last: str | None = None
    for step in [] if post_processor is None else _steps(post_processor, path):
        kind = step.get("type")
        if kind == "ByteLevel":  # trims offsets only
            continue
        if kind != "TemplateProcessing":
            raise UnsupportedModelError(f"{path}: post-processor {kind!r} is not known")
        names = [_special(piece, path) for piece in _list(step.get("single"), path)]
        if names.count(None) != 1 or len(names) > 3:
            raise UnsupportedModelError(f"{path}: the post-processor's template adds more than bos and eos")
        at = names.index(None)
        if at > 1 or len(names) - at > 2:
            raise UnsupportedModelError(f"{path}: the post-processor's template adds more than bos and eos")
        first = names[0] if at == 1 else None
        last = names[-1] if len(names) - at == 2 else None
    return first, last


def _steps(post_processor: Any, path: Path) -> list[dict[str, Any]]:
    if not isinstance(post_processor, dict):
        raise CheckpointError(f"{path}: post_processor is not an object")
    if post_processor.get("type") != "Sequence":
        return [post_processor]
    return [step for child in _list(post_processor.get("processors"), path) for step in _steps(child, path)]


def _list(value: Any, path: Path) -> list[Any]:
    if not isinstance(value, list):
        raise CheckpointError(f"{path}: post_processor: a list was expected, not {value!r}")
    return value


def _special(piece: Any, path: Path) -> str | None:
    """The name of a template's special token, None for the text itself."""
    if isinstance(piece, dict):
        if "Sequence" in piece:
            return None
        token = piece.get("SpecialToken")
        if isinstance(token, dict) and isinstance(token.get("id"), str):
            name: str = token["id"]
            return name
    raise CheckpointError(f"{path}: post_processor: {piece!r} is neither a special token nor the text")
