"""Strict JSON documents: config.json, tokenizer.json, a shard index, a safetensors header."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from quantkit.checkpoint.download import explain_absence
from quantkit.checkpoint.pointer import refuse_pointer
from quantkit.errors import CheckpointError

Document = dict[str, Any]


def read_document(path: Path, *, hint: str = "") -> Document:
    """Read `path` as one JSON object.

    Raises:
        CheckpointError: unreadable, a Git-LFS pointer, not UTF-8, not JSON, a key given twice, NaN or Infinity,
            not an object.
    """
    return parse_document(read_bytes(path), str(path), hint=hint)


def read_optional(path: Path) -> Document:
    """As `read_document`, {} where there is no such file; a link that leads nowhere is refused."""
    if path.is_file():
        return read_document(path)
    if path.is_symlink():
        what, hint = explain_absence(path)
        raise CheckpointError(f"{path}: {what}", hint=hint)
    return {}


def read_bytes(path: Path) -> bytes:
    """The whole of a small file; refuses what cannot be read and what is a pointer to content that is not here."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    refuse_pointer(data, path)
    return data


def read_text(path: Path) -> str:
    """The whole of a small text file; refuses what is not UTF-8."""
    data = read_bytes(path)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: not UTF-8 at byte {error.start}", hint=DAMAGED) from error


DAMAGED = "The file is damaged or was cut short; download it again."


def parse_document(
    data: bytes, what: str, *, hint: str = "", parse_int: Callable[[str], int] | None = None
) -> Document:
    """One JSON object out of `data`; `what` names its place in errors. No duplicate keys, no NaN."""
    hint = hint or DAMAGED
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{what}: not UTF-8 at byte {error.start}", hint=hint) from error
    try:
        value = json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant, parse_int=parse_int)
        # A lone surrogate decodes here but can be written nowhere as UTF-8.
        if "\\ud" in text or "\\uD" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except json.JSONDecodeError as error:
        place = f"line {error.lineno} column {error.colno}"
        raise CheckpointError(f"{what}: not valid JSON: {error.msg} at {place}", hint=hint) from error
    except UnicodeEncodeError as error:
        raise CheckpointError(f"{what}: a string holds a lone surrogate", hint=hint) from error
    except RecursionError as error:
        raise CheckpointError(f"{what}: not valid JSON: nested too deeply", hint=hint) from error
    except ValueError as error:
        raise CheckpointError(f"{what}: not valid JSON: {error}", hint=hint) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{what}: a JSON object was expected, not {type(value).__name__}", hint=hint)
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> Document:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"key {key!r} is given twice")
            seen.add(key)
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number that JSON knows")
