"""The calibration text that comes with quantkit: of many kinds, nothing twice, and every byte accounted for."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from pathlib import Path

from quantkit import calibration
from quantkit.calibration import DEFAULT_NAME, Document, default_documents, token_source
from quantkit.checkpoint import open_checkpoint

TINY = Path(__file__).parents[1] / "data" / "tiny-llama4"
FOLDER = Path(calibration.__file__).parent / "default"
LINES = [json.loads(line) for line in (FOLDER / "text.jsonl").read_text(encoding="utf-8").splitlines()]
README = (FOLDER / "README.md").read_text(encoding="utf-8")
FREE = {"public domain", "MIT", "BSD-3-Clause", "PSF-2.0", "0BSD", "PostgreSQL", "Apache-2.0"}
SHORT = 40  # characters
SCRIPTS = {
    "Arabic": "\u0600-\u06ff",
    "Devanagari": "\u0900-\u097f",
    "Thai": "\u0e00-\u0e7f",
    "Cyrillic": "\u0400-\u04ff",
    "Hangul": "\uac00-\ud7af",
    "kana": "\u3040-\u30ff",
    "Han": "\u4e00-\u9fff",
    "Vietnamese": "\u1ea0-\u1ef9",
}


def rows(heading: str) -> list[list[str]]:
    """Cells of the table in README.md that has this heading."""
    table = README.partition(heading)[2].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in table]


def test_its_name_changes_with_it() -> None:
    """Whoever changes the text gives it another number: statistics name the text that they are of."""
    digest = hashlib.sha256((FOLDER / "text.jsonl").read_bytes()).hexdigest()
    assert (DEFAULT_NAME, digest) == (
        "quantkit-default-2",
        "c19d2887763b66ef6d4ce91a88e830bbac3e187ca3c0298b9c7ae7c28ba63b5a",
    )


def test_no_paragraph_comes_twice() -> None:
    paragraphs = Counter(
        " ".join(part.split()).casefold() for line in LINES for part in re.split(r"\n[ \t]*\n", line["text"])
    )
    assert [part for part, n in paragraphs.items() if n > 1 and len(part) >= SHORT] == []


def test_sizes_are_those_of_the_tables() -> None:
    by_domain, by_source, documents = Counter[str](), Counter[str](), Counter[str]()
    for line in LINES:
        assert set(line) == {"domain", "source", "text"}
        n_bytes = len(line["text"].encode())
        by_domain[line["domain"]] += n_bytes
        by_source[line["source"]] += n_bytes
        documents[line["domain"]] += 1
    domains = rows("| domain | what |")
    assert {row[0]: (int(row[2]), int(row[3])) for row in domains[:-1]} == {
        name: (documents[name], by_domain[name]) for name in by_domain
    }
    total = sum(by_domain.values())
    assert domains[-1][:4] == ["all", "", str(len(LINES)), str(total)]
    assert 300_000 < total < 620_000
    for row in domains[:-1]:
        assert row[4] == f"{by_domain[row[0]] / total:.1%}"
        assert 0.05 < by_domain[row[0]] / total < 0.3
    assert {row[1]: int(row[5]) for row in rows("| from | package |")} == dict(by_source)


def test_every_licence_that_wants_its_notice_has_it() -> None:
    notices = (FOLDER / "LICENSES.txt").read_text(encoding="utf-8")
    for registry, package, version, licence, _, _ in rows("| from | package |"):
        assert registry in {"PyPI", "Debian 12"}
        assert set(re.split(r", examples | or ", licence)) <= FREE
        if "public domain" not in licence and licence != "Apache-2.0":
            assert f"\n{package} {version}\n" in notices
    assert "GNU" not in notices


def test_domains_and_scripts_are_all_there() -> None:
    text = "".join(line["text"] for line in LINES)
    for name, letters in SCRIPTS.items():
        assert len(re.findall(f"[{letters}]", text)) > 400, name
    assert "\r" not in text
    assert "\ufffd" not in text


def test_a_short_run_sees_every_domain() -> None:
    """Even with a tokenizer of 1,000 tokens, which needs three bytes' tokens for many a letter."""
    domains = [line["domain"] for line in LINES]
    n_first = next(n for n in range(1, len(domains)) if len(set(domains[:n])) == len(set(domains)) == 7)
    with open_checkpoint(TINY) as cp:
        source = token_source(cp, (Document("", line["text"]) for line in LINES[:n_first]))
        assert source.take(None).size < 16_000
    whole = Counter(domains)
    for start in range(0, len(domains) - 40, 10):
        part = Counter(domains[start : start + 40])
        for domain, n in whole.items():
            assert abs(part[domain] - 40 * n / len(domains)) <= 2.5


def test_documents_are_those_lines_in_order() -> None:
    assert [document.text for document in default_documents()] == [line["text"] for line in LINES]
