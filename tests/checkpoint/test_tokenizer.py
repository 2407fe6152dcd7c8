"""The tokenizer of a checkpoint as GGUF wants it."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import tokenizers

from quantkit.checkpoint import LLAMA4_REGEX, Tokenizer, is_llama4_pre_tokenizer, open_checkpoint
from quantkit.errors import CheckpointError, UnsupportedModelError

TINY = Path(__file__).parents[1] / "data" / "tiny-llama4"
LLAMA3_REGEX = LLAMA4_REGEX.replace(r"[\r\n/]*", r"[\r\n]*")


class Workshop:
    """A copy of tiny-llama4 whose JSON files can be edited."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def edit(self, file: str, change: Callable[[dict[str, Any]], Any]) -> Workshop:
        document = json.loads((self.root / file).read_text())
        change(document)
        (self.root / file).write_text(json.dumps(document))
        return self

    def read(self) -> Tokenizer:
        return open_checkpoint(self.root).tokenizer()


@pytest.fixture
def model(tmp_path: Path) -> Workshop:
    return Workshop(Path(shutil.copytree(TINY, tmp_path / "model")))


def test_tokens_types_and_merges_are_those_of_the_tokenizers_package() -> None:
    tokenizer = open_checkpoint(TINY).tokenizer()
    oracle = tokenizers.Tokenizer.from_file(str(TINY / "tokenizer.json"))
    assert tokenizer.tokens == [oracle.id_to_token(token_id) for token_id in range(1024)]
    special = {token_id for token_id, token in oracle.get_added_tokens_decoder().items() if token.special}
    assert tokenizer.token_types == [3 if token_id in special else 1 for token_id in range(1024)]
    peer = gguf.SpecialVocab(TINY, load_merges=True)
    assert tokenizer.merges == peer.merges
    assert {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "pad": tokenizer.pad_id} == peer.special_token_ids
    assert (tokenizer.add_bos, tokenizer.add_sep) == (peer.add_special_token["bos"], peer.add_special_token["sep"])
    assert not tokenizer.add_eos
    assert tokenizer.chat_template == peer.chat_template
    assert (tokenizer.tokens[tokenizer.eot_id or 0], tokenizer.tokens[tokenizer.eom_id or 0]) == ("<|eot|>", "<|eom|>")


def test_holes_are_padded_up_to_the_vocabulary_of_the_config(model: Workshop) -> None:
    model.edit("config.json", lambda config: config["text_config"].update(vocab_size=1027))
    model.edit("tokenizer.json", lambda document: document["added_tokens"].pop(17))
    tokenizer = model.read()
    assert tokenizer.tokens[1009] == "[PAD1009]"
    assert tokenizer.tokens[1024:] == ["[PAD1024]", "[PAD1025]", "[PAD1026]"]
    assert [token_id for token_id, kind in enumerate(tokenizer.token_types) if kind == 5] == [1009, 1024, 1025, 1026]


def test_the_vocabulary_size_of_a_text_only_config(model: Workshop) -> None:
    config = json.loads((TINY / "config.json").read_text())["text_config"]
    (model.root / "config.json").write_text(json.dumps(config))
    assert len(model.read().tokens) == 1024


def test_added_tokens_that_are_not_special_are_user_defined(model: Workshop) -> None:
    model.edit("tokenizer.json", lambda document: document["added_tokens"][20].update(special=False))
    assert model.read().token_types[1012] == 4


def test_an_added_token_may_stand_in_the_vocabulary_too(model: Workshop) -> None:
    model.edit("tokenizer.json", lambda document: document["model"]["vocab"].update({"<|begin_of_text|>": 992}))
    tokenizer = model.read()
    assert (tokenizer.tokens[992], tokenizer.token_types[992]) == ("<|begin_of_text|>", 3)


@pytest.mark.parametrize("pairs", [True, False])
def test_merges_in_both_forms(model: Workshop, pairs: bool) -> None:
    expected = open_checkpoint(TINY).tokenizer().merges

    def change(document: dict[str, Any]) -> None:
        merges = [merge.split(" ") for merge in expected]
        document["model"]["merges"] = merges if pairs else ["#version: 0.2", *map(" ".join, merges)]

    assert model.edit("tokenizer.json", change).read().merges == expected


def test_a_space_inside_of_a_merge_is_encoded(model: Workshop) -> None:
    def change(document: dict[str, Any]) -> None:
        document["model"]["vocab"].update({"a ": 992, "a b": 993})
        document["model"]["merges"].append(["a ", "b"])
        document["added_tokens"] = [
            {"id": 992, "content": "a ", "special": False},
            {"id": 993, "content": "a b", "special": False},
            *(token for token in document["added_tokens"] if token["id"] > 993),
            {"id": 1024, "content": "<|begin_of_text|>", "special": True},
        ]

    model.edit("config.json", lambda config: config["text_config"].update(vocab_size=1025))
    tokenizer = model.edit("tokenizer.json", change).read()
    assert tokenizer.merges[-1] == "aĠ b"
    assert tokenizer.bos_id == 1024


def special(name: str) -> dict[str, Any]:
    return {"content": name, "lstrip": False, "special": True}


def test_special_tokens_are_found_by_text_first_and_by_id_last(model: Workshop) -> None:
    settings = "tokenizer_config.json"
    model.edit(settings, lambda document: document.update(eos_token=special("<|end_of_text|>")))
    assert model.read().eos_id == 993
    model.edit(settings, lambda document: document.pop("eos_token"))
    assert model.read().eos_id == 1000  # special_tokens_map.json
    model.edit("special_tokens_map.json", lambda document: document.update(eos_token=special("<|eom|>")))
    assert model.read().eos_id == 999
    (model.root / "special_tokens_map.json").unlink()
    assert model.read().eos_id is None  # the configs have lists, which name no single token
    model.edit("generation_config.json", lambda document: document.update(eos_token_id=1001))
    assert model.read().eos_id == 1001
    model.edit("config.json", lambda document: document["text_config"].update(eos_token_id=1002))
    assert model.read().eos_id == 1002
    model.edit("config.json", lambda document: document.update(eos_token_id=1003))
    assert model.read().eos_id == 1003
    (model.root / settings).unlink()
    assert model.read().pad_id == 1002


def test_what_encoding_adds(model: Workshop) -> None:
    bos, text, eos = (
        {"SpecialToken": {"id": "<|begin_of_text|>"}},
        {"Sequence": {"id": "A"}},
        {"SpecialToken": {"id": "<|eot|>"}},
    )

    def template(*single: dict[str, Any]) -> tuple[bool, bool]:
        processor = {"type": "TemplateProcessing", "single": list(single), "pair": [], "special_tokens": {}}
        tokenizer = model.edit("tokenizer.json", lambda document: document.update(post_processor=processor)).read()
        return tokenizer.add_bos, tokenizer.add_eos

    assert template(bos, text, eos) == (True, True)
    assert template(text, eos) == (False, True)
    assert template(text) == (False, False)
    model.edit("tokenizer_config.json", lambda document: document.update(add_bos_token=True))
    assert template(text) == (True, False)
    model.edit("tokenizer_config.json", lambda document: document.update(add_bos_token=False))
    assert template(bos, text) == (False, False)
    for pieces in ((bos, bos, text), (text, eos, eos), (bos,), (eos, text)):
        with pytest.raises(UnsupportedModelError, match="post-processor"):
            template(*pieces)


def test_chat_templates_by_precedence(model: Workshop) -> None:
    jinja = (TINY / "chat_template.jinja").read_text()
    (model.root / "chat_template.json").write_text(json.dumps({"chat_template": "fallback"}))
    (model.root / "additional_chat_templates").mkdir()
    (model.root / "additional_chat_templates" / "rag.jinja").write_text("rag")
    assert (model.read().chat_template, model.read().chat_templates) == (jinja, {"rag": "rag"})
    (model.root / "chat_template.jinja").unlink()
    assert (model.read().chat_template, model.read().chat_templates) == ("fallback", {})
    model.edit("tokenizer_config.json", lambda document: document.update(chat_template="own"))
    assert model.read().chat_template == "own"
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    model.edit("tokenizer_config.json", lambda document: document.update(chat_template=named))
    assert (model.read().chat_template, model.read().chat_templates) == ("plain", {"tool_use": "tools"})
    model.edit("tokenizer_config.json", lambda document: document.update(chat_template=named[:1]))
    assert (model.read().chat_template, model.read().chat_templates) == (None, {"tool_use": "tools"})
    model.edit("tokenizer_config.json", lambda document: document.pop("chat_template"))
    (model.root / "chat_template.json").unlink()
    assert model.read().chat_template is None


def split(regex: str, **more: Any) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False, **more}


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


@pytest.mark.parametrize(
    ("steps", "is_llama4"),
    [
        ([split(LLAMA4_REGEX), BYTES], True),
        ([split(LLAMA4_REGEX.replace(r"\r", "\r").replace(r"\n", "\n")), BYTES], True),
        ([split(LLAMA4_REGEX, behavior="Removed", invert=True), BYTES], True),
        ([{"type": "Sequence", "pretokenizers": [split(LLAMA4_REGEX)]}, BYTES], True),
        ([split(LLAMA3_REGEX), BYTES], False),
        ([split(LLAMA4_REGEX), split(r"\p{N}"), BYTES], False),
        ([split(LLAMA4_REGEX), {**BYTES, "use_regex": True}], False),
        ([split(LLAMA4_REGEX), {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}], False),
        ([BYTES], False),
    ],
)
def test_the_pre_tokenizer_is_known_by_its_regex(model: Workshop, steps: list[Any], is_llama4: bool) -> None:
    sequence = {"type": "Sequence", "pretokenizers": steps}
    tokenizer = model.edit("tokenizer.json", lambda document: document.update(pre_tokenizer=sequence)).read()
    assert is_llama4_pre_tokenizer(tokenizer) == is_llama4
    # The oracle takes these too, and splits as Llama 4 does exactly where we say so.
    oracle = tokenizers.Tokenizer.from_file(str(model.root / "tokenizer.json")).pre_tokenizer
    reference = tokenizers.Tokenizer.from_file(str(TINY / "tokenizer.json")).pre_tokenizer
    text = "It's HTTPServer's 12345 //\n\n  a/\r\nb  ÀÉx'LL ?!\t/ c ?!\n/x"
    assert (oracle.pre_tokenize_str(text) == reference.pre_tokenize_str(text)) == is_llama4


@pytest.mark.parametrize(
    "steps",
    [
        None,
        [split(LLAMA4_REGEX)],
        [BYTES, split(LLAMA4_REGEX)],
        [split(LLAMA4_REGEX), {**BYTES, "add_prefix_space": True}],
        [split(LLAMA4_REGEX, behavior="MergedWithNext"), BYTES],
        [{"type": "Split", "pattern": {"String": " "}, "behavior": "Isolated", "invert": False}, BYTES],
        [{"type": "Digits", "individual_digits": True}, BYTES],
    ],
)
def test_pre_tokenizers_that_have_no_regex_are_refused(model: Workshop, steps: list[Any] | None) -> None:
    value = None if steps is None else {"type": "Sequence", "pretokenizers": steps}
    model.edit("tokenizer.json", lambda document: document.update(pre_tokenizer=value))
    with pytest.raises(UnsupportedModelError, match="pre_tokenizer"):
        model.read()


def test_without_tokenizer_json_the_checkpoint_still_opens(model: Workshop) -> None:
    (model.root / "tokenizer.json").unlink()
    checkpoint = open_checkpoint(model.root)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: missing"):
        checkpoint.tokenizer()


def test_a_vocabulary_of_the_released_size_is_quick(model: Workshop) -> None:
    n_tokens, n_vocab = 200_000, 202_048
    base = json.loads((TINY / "tokenizer.json").read_text())["model"]["vocab"]
    letters = [text for text in base if len(text) == 1]
    vocab = {text: token_id for token_id, text in enumerate(letters)}
    merges = []
    for left in letters:
        for right in letters:
            if len(vocab) < 60_000:
                vocab[left + right] = len(vocab)
                merges.append([left, right])
    pairs = list(vocab)[len(letters) :]
    for left in pairs:
        for right in letters:
            if len(vocab) == n_tokens:
                break
            text = left + right
            if text not in vocab:
                vocab[text] = len(vocab)
            merges.append([left, right])
            if text[1:] in vocab and len(merges) < 440_000:
                merges.append([left[0], text[1:]])

    def change(document: dict[str, Any]) -> None:
        document["model"].update(vocab=vocab, merges=merges)
        for k, token in enumerate(document["added_tokens"]):
            token["id"] = n_tokens + k

    model.edit("config.json", lambda config: config["text_config"].update(vocab_size=n_vocab))
    model.edit("tokenizer.json", change)
    model.edit("tokenizer_config.json", lambda document: document.pop("added_tokens_decoder"))
    assert len(merges) > 200_000
    checkpoint = open_checkpoint(model.root)
    started = time.process_time()
    tokenizer = checkpoint.tokenizer()
    seconds = time.process_time() - started
    assert (len(tokenizer.tokens), len(tokenizer.merges)) == (n_vocab, len(merges))
    assert tokenizer.merges[-1] == " ".join(merges[-1])
    assert seconds < 10, "reads 30 MB of JSON, which takes about a second"
