"""Chat templates, wherever a checkpoint keeps them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from quantkit.checkpoint.document import Document, read_document, read_text
from quantkit.errors import CheckpointError

_DEFAULT = "default"


def read_chat_templates(root: Path, settings: Document) -> tuple[str | None, dict[str, str]]:
    """The default template and the named ones.

    tokenizer_config.json's own (`settings`) comes before chat_template.jinja (with additional_chat_templates/*.jinja),
    that before chat_template.json.

    Raises:
        CheckpointError: a template that is not text.
    """
    own = settings.get("chat_template")
    if own is not None:
        return _sort_out(own, root / "tokenizer_config.json")
    jinja = root / "chat_template.jinja"
    if jinja.is_file():
        others = sorted((root / "additional_chat_templates").glob("*.jinja"))
        return read_text(jinja), {path.stem: read_text(path) for path in others}
    fallback = root / "chat_template.json"
    if fallback.is_file():
        return _sort_out(read_document(fallback).get("chat_template"), fallback)
    return None, {}


def _sort_out(value: Any, path: Path) -> tuple[str | None, dict[str, str]]:
    if value is None or isinstance(value, str):
        return value, {}
    pairs = list(value.items()) if isinstance(value, dict) else _named(value, path)
    named: dict[str, str] = {}
    for name, template in pairs:
        if not isinstance(name, str) or not isinstance(template, str):
            raise CheckpointError(f"{path}: chat_template {name!r} is not text")
        if name in named:
            raise CheckpointError(f"{path}: chat_template {name!r} is given twice")
        named[name] = template
    return named.pop(_DEFAULT, None), named


def _named(value: Any, path: Path) -> list[tuple[Any, Any]]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise CheckpointError(f"{path}: chat_template is neither text nor a list of named templates")
    return [(item.get("name"), item.get("template")) for item in value]
