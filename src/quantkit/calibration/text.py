"""Calibration text from files: a .jsonl has a document a line, any other file is one document."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from quantkit.errors import UsageError

# Another number with every change of the text; default/README.md says where it is from.
DEFAULT_NAME = "quantkit-default-2"
DEFAULT_PATH = Path(__file__).parent / "default" / "text.jsonl"


@dataclass(frozen=True)
class Document:
    """Text that belongs together, where it came from, for messages, and what kind it is, if a .jsonl says so."""

    origin: str
    text: str
    domain: str | None = None


def documents(paths: Iterable[str | Path]) -> Iterator[Document]:
    """The documents of all files, in order; each is read when it is asked for.

    One line end at the end of a file does not count, as in llama-imatrix; documents without text are passed over.

    Raises:
        UsageError: a file that cannot be read, is not UTF-8, or has a line that is not `{"text": ...}`, perhaps with a
            `"domain"`.
    """
    for path in map(Path, paths):
        found = _lines(path) if path.suffix.lower() == ".jsonl" else _whole(path)
        yield from (document for document in found if document.text)


def default_documents() -> Iterator[Document]:
    """The documents of the text that comes with quantkit, all domains mixed."""
    yield from documents([DEFAULT_PATH])


def largest_bytes(paths: Iterable[Path] | None) -> int:
    """The size of the largest file; None for the text that comes with quantkit."""
    return max(path.stat().st_size for path in ([DEFAULT_PATH] if paths is None else paths))


def _whole(path: Path) -> Iterator[Document]:
    text = _decoded(read(path), str(path))
    yield Document(str(path), text.removesuffix("\n"))


def _lines(path: Path) -> Iterator[Document]:
    for number, line in enumerate(read(path).split(b"\n"), start=1):
        if not line.strip():
            continue
        origin = f"{path}, line {number}"
        try:
            content = json.loads(_decoded(line, origin))
        except ValueError as error:
            raise UsageError(f"{origin}: not JSON: {error}") from None
        text = content.get("text") if isinstance(content, dict) else None
        if not isinstance(text, str):
            raise UsageError(f"{origin}: no text", hint='Each line of a .jsonl is an object such as {"text": "..."}.')
        domain = content.get("domain")
        if not isinstance(domain, str | None):
            raise UsageError(f"{origin}: domain is {domain!r}, not a text")
        yield Document(origin, text, domain)


def read(path: Path) -> bytes:
    """All of a file. UsageError when that fails."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read the text {path}: {error.strerror or error}") from None


def _decoded(data: bytes, origin: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{origin}: not UTF-8 at byte {error.start}", hint="Convert it, for instance with iconv -t utf-8."
        ) from None
