"""From a file of a package to paragraphs of clean text: markup goes where it is noise, code stays as it is."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import yaml

Clean = Callable[[Path], str]


class _Html(HTMLParser):
    """Text of a page, a paragraph per block; <pre> as it stands."""

    BLOCKS = frozenset(
        {
            "p",
            "h1",
            "h2",
            "h3",
            "h4",
            "h5",
            "li",
            "dt",
            "dd",
            "pre",
            "tr",
            "table",
            "div",
            "blockquote",
            "article",
            "section",
            "header",
            "ol",
            "ul",
            "dl",
        }
    )
    SILENT = frozenset({"script", "style", "title", "nav", "head", "button", "svg"})

    def __init__(self) -> None:
        super().__init__()
        self.paragraphs: list[str] = [""]
        self._silent = self._pre = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in self.SILENT:
            self._silent += 1
        if tag == "pre":
            self._pre += 1
        if tag in self.BLOCKS:
            self.paragraphs.append("")
        if tag in ("td", "th"):
            self.paragraphs[-1] += "  "

    def handle_endtag(self, tag: str) -> None:
        if tag in self.SILENT:
            self._silent = max(0, self._silent - 1)
        if tag in self.BLOCKS:
            self.paragraphs.append("")
        if tag == "pre":
            self._pre = max(0, self._pre - 1)

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.paragraphs[-1] += data if self._pre else re.sub(r"\s+", " ", data)


def _paragraphs_of_html(source: str) -> list[str]:
    parser = _Html()
    parser.feed(source)
    return [text.strip("\n").rstrip() if "\n" in text else text.strip() for text in parser.paragraphs if text.strip()]


def _read(path: Path) -> str:
    data = gzip.decompress(path.read_bytes()) if path.suffix in (".dz", ".gz") else path.read_bytes()
    return data.decode("utf-8-sig").replace("\r\n", "\n")


def _plain(path: Path) -> str:
    return "\n".join(line.rstrip() for line in _read(path).splitlines())


def _novel(path: Path) -> str:
    """What lies between the marks of an electronic edition, lines of a paragraph joined."""
    text = _read(path).partition("*** START OF")[2].partition("*** END OF")[0]
    return "\n\n".join(re.sub(r"\s*\n\s*", " ", part.strip()) for part in re.split(r"\n\s*\n", text))


def _verse(path: Path) -> str:
    """Lines as they are, without scanner's marks."""
    kept = [line for line in _plain(path).splitlines() if not re.match(r"#+ |p\.\d+:\d|###", line)]
    return "\n".join(kept)


def _dictionary(path: Path) -> str:
    return _plain(path)


def _html(path: Path) -> str:
    source = _read(path)
    # what navigates stands before the first heading
    start = re.search(r"<h1|<div class=\"(?:sect1|sect2|chapter|fancy)|<div class=fancy", source)
    body = source[start.start() if start else 0 :]
    found = _paragraphs_of_html(body)
    cut = next(
        (i for i, text in enumerate(found) if text.startswith(("This page last modified", "Submit correction"))),
        len(found),
    )
    return "\n\n".join(
        text for text in found[:cut] if not re.match(r"(Prev|Up|Next|►|Table Of Contents|Hide|Show)\b", text)
    )


def _manual(path: Path) -> str:
    """A translated page of Apache's manual: its sentences, without its lists of links."""
    data = path.read_bytes()
    declared = re.search(rb"charset=([\w-]+)", data)
    source = data.decode(declared[1].decode() if declared else "utf-8")
    found = (text.removesuffix(" ¶") for text in _paragraphs_of_html(source[source.index("<h1") :]))
    kept = (text for text in found if len(text.encode()) >= 60 and not re.search(r"\| | Apache License", text))
    return "\n\n".join(kept)


def _stories(path: Path) -> str:
    """Indented lines as paragraphs, without marks of pages and an editor's notes."""
    lines = (line.strip() for line in _read(path).splitlines())
    return "\n\n".join(line for line in lines if len(line) >= 10 and not re.match(r"_分节阅读|-|[①-⑳]|［?注释", line))


def _catalog(path: Path) -> str:
    """Translated sentences of a catalog of messages, ten to a paragraph."""
    found = re.findall(r'^msgstr(?:\[\d\])? ((?:"[^\n]*"\n)+)', _read(path), flags=re.MULTILINE)
    texts = ["".join(json.loads(line) for line in text.splitlines()) for text in found[1:]]  # the first is its head
    kept = list(dict.fromkeys(text.strip() for text in texts if len(text) >= 30 and "\n" not in text))
    return "\n\n".join("\n".join(kept[i : i + 10]) for i in range(0, len(kept), 10))


def _markdown(path: Path) -> str:
    """Without pictures, sponsors, comments and code that another file was to fill in."""
    text = re.sub(r"<!--.*?-->|^---\n.*?\n---\n", "", _read(path), flags=re.DOTALL)
    text = re.sub(r"```[^\n]*\n[^`]*\{!.*?```\n?", "", text, flags=re.DOTALL)
    text = re.sub(r"</?(?:p|a|em|img|div|details|summary|span|figure|abbr|small)\b[^>]*>", "", text)
    lines = [line.rstrip() for line in text.splitlines() if not re.match(r"\s*(!\[|\[!\[|\{!|\{%)", line)]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines))


def _code(path: Path) -> str:
    """Without the notice of licence that heads a file: all of them stand in LICENSES.txt."""
    text = _plain(path).lstrip()
    text = re.sub(r"\A(?:#![^\n]*\n)?\s*/\*.*?\*/\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"\A(?://[^\n]*Copyright[^\n]*\n(?://[^\n]*\n)*)\s*", "", text)
    return re.sub(r"\n{3,}", "\n\n", text)


def _prompt(path: Path) -> str:
    """Blocks of a YAML file of instructions."""
    content = yaml.safe_load(_read(path))
    found: list[str] = []

    def gather(node: object) -> None:
        if isinstance(node, dict):
            for child in node.values():
                gather(child)
        elif isinstance(node, str):
            found.append(node.strip())

    gather(content)
    return "\n\n".join(found)


def _chat(path: Path) -> str:
    """Exchanges, the two speakers in turn, each question once."""
    exchanges, questions = [], set()
    for turns in yaml.safe_load(_read(path))["conversations"]:
        lines = [str(turn).strip() for turn in turns if turn is not None]
        if len(lines) < 2 or lines[0].casefold() in questions:
            continue
        questions.add(lines[0].casefold())
        speakers = ("User: ", "Assistant: ")
        exchanges.append("\n".join(speakers[i % 2] + re.sub(r"\n\s*\n", "\n", line) for i, line in enumerate(lines)))
    return "\n\n".join(exchanges)


def _table(path: Path) -> str:
    """Comma-separated as it is, or every other file as a Markdown table; twenty rows are a paragraph."""
    rows = list(csv.reader(io.StringIO(_read(path))))
    rows = [[cell.strip() for cell in row] for row in rows if any(row)]
    as_markdown = len(path.stem) % 2 == 0
    lines = ["| " + " | ".join(row) + " |" if as_markdown else ",".join(row) for row in rows]
    if as_markdown:
        lines.insert(1, "|" + " --- |" * len(rows[0]))
    return "\n\n".join("\n".join(lines[i : i + 20]) for i in range(0, len(lines), 20))


FORMS: dict[str, Clean] = {
    "plain": _plain,
    "novel": _novel,
    "verse": _verse,
    "dictionary": _dictionary,
    "html": _html,
    "manual": _manual,
    "stories": _stories,
    "catalog": _catalog,
    "markdown": _markdown,
    "code": _code,
    "prompt": _prompt,
    "chat": _chat,
    "table": _table,
}
