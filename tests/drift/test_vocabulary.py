"""A tokenizer from a GGUF's own keys is the checkpoint's: on hard text, and with a vocabulary of Llama 4's size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.drift.files import BOS, ROOT, TINY, changed, converted
from tests.oracle import o200k
from tests.oracle.test_tokens import CASES, FOLDED, MARKS, PLAIN

from quantkit.calibration import Encoder, checkpoint_encoder
from quantkit.checkpoint import open_checkpoint
from quantkit.drift.vocabulary import Vocabulary, checkpoint_vocabulary, gguf_encoder, gguf_vocabulary
from quantkit.errors import CheckpointError, QuantkitError, UnsupportedModelError, UsageError
from quantkit.gguf import open_gguf


@pytest.fixture(scope="module", params=["tiny-llama4", "o200k"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Encoder, Encoder]:
    """The checkpoint's own, and that of its GGUF."""
    folder = tmp_path_factory.mktemp("vocabulary")
    checkpoint = TINY if request.param == "tiny-llama4" else o200k.write_checkpoint(folder / "o200k")
    path = converted(folder, ["q8_0"], checkpoint)["q8_0"]
    with open_checkpoint(checkpoint) as cp:
        vocabulary = gguf_vocabulary(open_gguf(path))
        checkpoint_vocabulary(cp).refuse_other(vocabulary)
        return checkpoint_encoder(cp), gguf_encoder(vocabulary)


TEXTS = PLAIN | MARKS | CASES | FOLDED


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_hard_text(pair: tuple[Encoder, Encoder], text: str) -> None:
    own, ours = pair
    assert ours.encode(text) == own.encode(text)


def test_own_documents_and_bos(pair: tuple[Encoder, Encoder]) -> None:
    own, ours = pair
    assert ours.bos_id == own.bos_id is not None
    for file in [ROOT / "LICENSE", ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("csrc/codec/*.h")]:
        text = file.read_text()
        assert ours.encode(text) == own.encode(text)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_text(pair: tuple[Encoder, Encoder], text: str) -> None:
    own, ours = pair
    assert ours.encode(text) == own.encode(text)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return converted(tmp_path_factory.mktemp("tiny"), ["q2_k"])["q2_k"]


def edited(values: Any, place: int, value: str) -> list[str]:
    return [*values[:place], value, *values[place + 1 :]]


def test_other_vocabularies_are_refused(tiny: Path) -> None:
    known = gguf_vocabulary(open_gguf(tiny))
    other = replace(known, source=Path("other.gguf"))
    known.refuse_other(other)
    for change, word in (
        ({"tokens": known.tokens[:-1], "types": known.types[:-1]}, "1,023"),
        ({"tokens": edited(known.tokens, 300, "frob")}, "token 300 is"),
        ({"merges": edited(known.merges, 7, "a b")}, "merge"),
    ):
        with pytest.raises(UsageError, match=word):
            known.refuse_other(replace(other, **change))
    renamed = edited(known.tokens, BOS + 5, "<|renamed|>")
    known.refuse_other(replace(other, tokens=renamed))  # a control token


@pytest.mark.parametrize(
    ("fields", "error", "word"),
    [
        ({"tokenizer.ggml.pre": "llama-bpe"}, UnsupportedModelError, "llama-bpe"),
        ({"tokenizer.ggml.model": "llama"}, UnsupportedModelError, "gpt2"),
        ({"tokenizer.ggml.add_eos_token": True}, UnsupportedModelError, "EOS"),
        ({"tokenizer.ggml.merges": None}, CheckpointError, "merges is missing"),
        ({"tokenizer.ggml.tokens": None}, CheckpointError, "tokens is missing"),
        ({"tokenizer.ggml.bos_token_id": None}, CheckpointError, "bos_token_id is None"),
        ({"tokenizer.ggml.merges": ["ab"]}, CheckpointError, "'ab'"),
        ({"tokenizer.ggml.merges": ["zz qq"]}, CheckpointError, "do not fit together"),
        ({"tokenizer.ggml.token_type": [1, 1]}, CheckpointError, "2 entries for 1024 tokens"),
    ],
)
def test_keys_that_do_not_make_a_tokenizer(
    fields: dict[str, Any], error: type[QuantkitError], word: str, tiny: Path, tmp_path: Path
) -> None:
    path = changed(tiny, tmp_path / "changed.gguf", fields=fields)
    with pytest.raises(error, match=word):
        gguf_encoder(gguf_vocabulary(open_gguf(path)))


def test_without_bos(tiny: Path, tmp_path: Path) -> None:
    path = changed(tiny, tmp_path / "changed.gguf", fields={"tokenizer.ggml.add_bos_token": False})
    vocabulary: Vocabulary = gguf_vocabulary(open_gguf(path))
    assert (vocabulary.bos_id, gguf_encoder(vocabulary).bos_id) == (None, None)
