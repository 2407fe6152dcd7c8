"""Chunks are those that llama-imatrix makes of the same text."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.oracle.llama import Model

import quantkit
from quantkit.calibration import Document, TokenSource, checkpoint_encoder, documents, token_source
from quantkit.calibration.tokens import line_pieces
from quantkit.checkpoint import open_checkpoint
from quantkit.errors import UsageError

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "data" / "tiny-llama4"
BOS = 992
with open_checkpoint(TINY) as _checkpoint:
    ENCODE = checkpoint_encoder(_checkpoint).encode


def test_chunks_are_those_of_llama_cpp(tmp_path: Path) -> None:
    quantkit.convert(TINY, tmp_path / "q4_0.gguf", ["q4_0"], threads=2)
    text = "A <|eot|> in text is text.\n" + (ROOT / "CONTRIBUTING.md").read_text()
    (tmp_path / "text.txt").write_text(text)
    with Model(tmp_path / "q4_0.gguf", vocab_only=True) as model:
        expected = np.asarray(model.tokenize(text.removesuffix("\n"), add_special=True))
    assert expected[0] == BOS
    n = len(expected) // 128
    expected = expected[: n * 128].reshape(n, 128)
    expected[:, 0] = BOS
    with open_checkpoint(TINY) as cp:
        ours = token_source(cp, documents([tmp_path / "text.txt"]), context=128).take(None)
    np.testing.assert_array_equal(ours, expected)


def test_special_tokens_are_read_when_asked_for() -> None:
    found = []
    for parse in (False, True):
        with open_checkpoint(TINY) as cp:
            source = token_source(cp, [Document("here", "a<|eot|>b" * 9)], context=8, parse_special=parse)
            eot = cp.tokenizer().eot_id
        found.append(int((source.take(None) == eot).sum()))
    assert found[0] == 0 < found[1]


def test_each_token_is_handed_out_once_however_it_is_asked_for() -> None:
    texts = [Document("", "x" * n) for n in (5, 1, 17, 0, 30)]

    def source(bos: int | None) -> TokenSource:
        return TokenSource(texts, lambda text: list(range(1000, 1000 + len(text))), bos, 4)

    whole = source(None).take(None)
    assert whole.shape == (13, 4)
    assert whole.ravel().tolist() == [1000 + i for n in (5, 1, 17, 0, 30) for i in range(n)][:52]
    parts = source(None)
    np.testing.assert_array_equal(np.concatenate([parts.take(n) for n in (1, 3, 0, 7, 9)]), whole)
    assert len(parts.take(1)) == 0
    assert parts.n_left == 1
    assert (source(7).take(None)[:, 0] == 7).all()
    assert source(7).take(2)[1].tolist() == [7, 1004, 7, 1000]


LINES = st.lists(
    st.sampled_from(
        [
            "a",
            "B",
            " ",
            "\n",
            "\n\n",
            "\r\n",
            "\t",
            ".",
            "/",
            "'s",
            "'",
            "12",
            "é",
            "\u0301",
            "ß",
            "漢",
            "  x",
            "\u2028",
        ]
    ),
    max_size=60,
).map("".join)


@settings(max_examples=50, deadline=None)
@given(text=LINES, n_chars=st.integers(0, 9))
def test_pieces_of_a_text_have_its_tokens(text: str, n_chars: int) -> None:
    parts = list(line_pieces(text, n_chars))
    assert "".join(parts) == text
    assert [token for part in parts for token in ENCODE(part)] == ENCODE(text)


def test_of_a_long_text_only_what_is_needed_is_cut_into_tokens() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))) * 9
    with open_checkpoint(TINY) as cp:
        encoder = checkpoint_encoder(cp)
        whole = token_source(cp, [Document("", text)]).take(None)
    seen: list[int] = []

    def encode(part: str) -> list[int]:
        seen.append(len(part))
        return encoder.encode(part)

    source = TokenSource([Document("", text)], encode, encoder.bos_id, 512, encoder.pieces)
    np.testing.assert_array_equal(source.take(4), whole[:4])
    assert len(seen) == 1
    assert seen[0] < len(text) / 3
    np.testing.assert_array_equal(source.take(None), whole[4:])
    ids = np.asarray([BOS, *encoder.encode(text)])[: whole.size].reshape(whole.shape)
    np.testing.assert_array_equal(whole[:, 1:], ids[:, 1:])


def test_documents_of_jsonl_and_text(tmp_path: Path) -> None:
    lines = [json.dumps({"domain": "code", "text": "é\u2028x\n"}), "", json.dumps({"text": ""}), '{"text": "last"}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "b.txt").write_bytes(b"one\r\ntwo\n\n")
    found = list(documents([tmp_path / "a.jsonl", tmp_path / "b.txt"]))
    assert [document.text for document in found] == ["é\u2028x\n", "last", "one\r\ntwo\n"]
    assert found[1].origin.endswith("a.jsonl, line 4")


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("a.txt", b"abc\xff", "byte 3"),
        ("a.jsonl", b'{"text": "x"}\n{"text": 3}\n', "line 2"),
        ("a.jsonl", b"[1]", "line 1"),
        ("a.jsonl", b"nonsense", "not JSON"),
    ],
)
def test_bad_text_is_refused_by_its_place(name: str, content: bytes, word: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=word):
        list(documents([tmp_path / name]))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        list(documents([tmp_path / "absent.txt"]))


def test_domains(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one", "domain": "code"}\n{"text": "two"}\n{"text": "three", "domain": null}\n')
    assert [document.domain for document in documents([path])] == ["code", None, None]
    path.write_text('{"text": "one", "domain": 3}\n')
    with pytest.raises(UsageError, match="line 1: domain is 3"):
        list(documents([path]))
