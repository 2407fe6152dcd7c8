"""Tokenizers that are damaged, contradict themselves, or say what GGUF cannot."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from tests.checkpoint.malformed.kind import Draft, Kind, Stage

FILE = "tokenizer.json"
SETTINGS = "tokenizer_config.json"
LLAMA3_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
    r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def kinds() -> Iterator[Kind]:
    yield from _files()
    yield from _vocabulary()
    yield from _merges()
    yield from _splitting()
    yield from _specials()


def _kind(
    name: str, match: str, spoil: Callable[[Draft], Any], *, error: str = "CheckpointError", stage: Stage = "tokenizer"
) -> Kind:
    return Kind(f"tokenizer-{name}", stage, error, match, spoil)


def _edit(name: str, match: str, change: Callable[[Any], Any], *, file: str = FILE, **more: Any) -> Kind:
    return _kind(name, f"{re.escape(file)}: .*{match}", lambda draft: draft.edit(file, change), **more)


def _files() -> Iterator[Kind]:
    yield _kind("missing", f"{FILE}: missing", lambda draft: draft.remove(FILE))
    yield _kind("truncated", f"{FILE}: not valid JSON", lambda draft: draft.write(FILE, draft.read(FILE)[:20000]))
    yield _kind("empty", f"{FILE}: not valid JSON", lambda draft: draft.write(FILE, ""))
    yield _kind("not-utf8", f"{FILE}: not UTF-8", lambda draft: draft.write(FILE, draft.read(FILE) + b"\xff"))
    yield _kind(
        "list", f"{FILE}: a JSON object was expected", lambda draft: draft.remake(FILE, lambda document: [document])
    )
    yield _edit("without-model", "has no model", lambda document: document.pop("model"))
    yield _edit("model-is-text", "has no model", lambda document: document.update(model="BPE"))
    yield _kind(
        "settings-truncated",
        f"{SETTINGS}: not valid JSON",
        lambda draft: draft.write(SETTINGS, draft.read(SETTINGS)[:99]),
    )
    yield _kind(
        "token-twice",
        f"{FILE}: .*'!' is given twice",
        lambda draft: draft.write(FILE, re.sub(rb'("!": ?0)', rb"\1, \1", draft.read(FILE), count=1)),
    )


def _vocabulary() -> Iterator[Kind]:
    def vocab(name: str, match: str, **values: Any) -> Kind:
        return _edit(name, match, lambda document: document["model"]["vocab"].update(values))

    yield _edit("without-vocabulary", "model.vocab is missing", lambda document: document["model"].pop("vocab"))
    yield _edit(
        "empty-vocabulary", "model.vocab is missing or empty", lambda document: document["model"].update(vocab={})
    )
    yield _edit("vocabulary-is-a-list", "model.vocab", lambda document: document["model"].update(vocab=["!"]))
    yield vocab("id-is-text", "token '!' has id '0'", **{"!": "0"})
    yield vocab("id-is-a-fraction", "token '!' has id 0.5", **{"!": 0.5})
    yield vocab("id-negative", "token '!' has id -1", **{"!": -1})
    yield vocab("id-taken", "both have id 7", **{"!": 7})
    yield vocab("id-beyond-vocabulary", "token 'zzz' has id 1024, beyond", zzz=1024)
    yield vocab("id-far-beyond", "beyond config.json's vocab_size of 1024", zzz=2**40)
    yield _edit(
        "not-byte-level",
        "'▁the', is not written in byte-level characters",
        lambda document: (document["model"]["vocab"].update({"▁the": 992}), document["added_tokens"].pop(0)),
    )

    def added(name: str, match: str, change: Callable[[list[Any]], Any]) -> Kind:
        return _edit(f"added-{name}", match, lambda document: change(document["added_tokens"]))

    yield added("id-taken", "both have id 5", lambda tokens: tokens[3].update(id=5))
    yield added("id-twice", "both have id 993", lambda tokens: tokens[2].update(id=993))
    yield added(
        "id-beyond-vocabulary",
        "<.reserved_special_token_14.>' has id 5000, beyond",
        lambda tokens: tokens[-1].update(id=5000),
    )
    yield added("id-is-text", "has no content or no id", lambda tokens: tokens[3].update(id="995"))
    yield added("without-content", "has no content or no id", lambda tokens: tokens[3].pop("content"))
    yield added("with-two-ids", "has two ids", lambda tokens: tokens.append({**tokens[-1], "id": 3}))
    yield added("named-as-a-hole", r"'\[PAD1023\]' has the name of the hole", _take_hole)
    yield _edit("added-is-text", "added_tokens is not a list", lambda document: document.update(added_tokens="none"))
    for label, size in (("missing", None), ("text", "1024"), ("zero", 0), ("huge", 2**70), ("smaller", 1000)):
        yield _kind(
            f"vocab-size-{label}",
            "vocab_size" if label != "smaller" else "1000",
            lambda draft, size=size: draft.edit(
                "config.json", lambda config: config["text_config"].update(vocab_size=size)
            ),
        )


def _take_hole(tokens: list[Any]) -> None:
    tokens[-2]["content"] = "[PAD1023]"
    tokens.pop()


def _merges() -> Iterator[Kind]:
    def merge(name: str, match: str, value: Any) -> Kind:
        return _edit(f"merge-{name}", match, lambda document: document["model"]["merges"].append(value))

    yield _edit("without-merges", "model.merges is missing", lambda document: document["model"].pop("merges"))
    yield _edit("merges-are-text", "model.merges is missing", lambda document: document["model"].update(merges="a b"))
    yield merge("of-unknown-piece", "merge 736, .* needs token 'Ж'", ["Ж", "a"])
    yield merge("into-unknown-token", "needs token '~!'", ["~", "!"])
    yield merge("of-three", "is not a pair", ["a", "b", "c"])
    yield merge("text-of-three", "is not a pair", "a b c")
    yield merge("a-number", "is not a pair", 7)
    yield merge("twice", "a merge is given twice", ["Ġ", "Ġ"])


def _splitting() -> Iterator[Kind]:
    unsupported = {"error": "UnsupportedModelError"}

    def regex(draft: Draft, pattern: str) -> None:
        draft.edit(
            FILE, lambda document: document["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex=pattern)
        )

    for label, pattern in (("llama3", LLAMA3_REGEX), ("words", r"\w+|\W+"), ("empty", "")):
        yield _kind(
            f"regex-{label}",
            f"{FILE}.*another regex",
            lambda draft, pattern=pattern: regex(draft, pattern),
            stage="model",
            **unsupported,
        )

    def pre(name: str, match: str, change: Callable[[Any], Any], **more: Any) -> Kind:
        return _edit(f"pre-{name}", match, lambda document: change(document["pre_tokenizer"]), **(unsupported | more))

    yield pre("without-split", "another regex|regex", lambda step: step["pretokenizers"].pop(0), stage="model")
    yield pre("without-bytes", "no ByteLevel step", lambda step: step["pretokenizers"].pop(1))
    yield pre(
        "with-prefix-space", "add_prefix_space", lambda step: step["pretokenizers"][1].update(add_prefix_space=True)
    )
    yield pre("with-gpt2-regex", "regex", lambda step: step["pretokenizers"][1].update(use_regex=True), stage="model")
    yield pre(
        "merged-with-next", "MergedWithNext", lambda step: step["pretokenizers"][0].update(behavior="MergedWithNext")
    )
    yield pre(
        "digits", "Digits", lambda step: step["pretokenizers"].insert(0, {"type": "Digits", "individual_digits": True})
    )
    yield pre(
        "sequence-without-list",
        "a Sequence without a list",
        lambda step: step.pop("pretokenizers"),
        error="CheckpointError",
    )
    yield _edit("pre-missing", "no ByteLevel step", lambda document: document.pop("pre_tokenizer"), **unsupported)
    yield _edit(
        "normalizer", "a normalizer", lambda document: document.update(normalizer={"type": "NFC"}), **unsupported
    )
    yield _edit("unigram", "'Unigram'", lambda document: document["model"].update(type="Unigram"), **unsupported)
    yield _edit(
        "byte-fallback", "byte_fallback", lambda document: document["model"].update(byte_fallback=True), **unsupported
    )
    yield _edit("dropout", "dropout", lambda document: document["model"].update(dropout=0.1), **unsupported)


def _specials() -> Iterator[Kind]:
    def settings(name: str, match: str, **values: Any) -> Kind:
        return _edit(name, match, lambda document: document.update(values), file=SETTINGS)

    yield settings("eos-unknown", "eos_token '</s>' is not in tokenizer.json", eos_token="</s>")
    yield settings("bos-unknown", "bos_token '<s>' is not in", bos_token={"content": "<s>"})
    yield settings("eos-is-a-number", "eos_token is neither text", eos_token=2)
    yield settings("add-bos-is-text", "add_bos_token is 'yes'", add_bos_token="yes")
    yield settings("template-is-a-number", "chat_template is neither text", chat_template=1)
    yield settings(
        "template-of-numbers", "chat_template 'default' is not text", chat_template=[{"name": "default", "template": 1}]
    )
    yield settings("template-twice", "'a' is given twice", chat_template=[{"name": "a", "template": "x"}] * 2)
    yield _kind(
        "template-not-utf8",
        "chat_template.jinja: not UTF-8",
        lambda draft: draft.write("chat_template.jinja", b"\xff\xfe{}"),
    )

    def bos_id(draft: Draft) -> None:
        draft.remove(SETTINGS, "special_tokens_map.json")
        draft.edit("config.json", lambda config: config["text_config"].update(bos_token_id=5000))

    yield _kind("bos-id-beyond-vocabulary", "bos_token_id 5000 is beyond vocab_size 1024", bos_id)

    def template(name: str, match: str, *pieces: Any, error: str = "UnsupportedModelError") -> Kind:
        def change(document: Any) -> None:
            document["post_processor"] = {"type": "TemplateProcessing", "single": list(pieces)}

        return _edit(f"processor-{name}", match, change, error=error)

    bos, other, text = (
        {"SpecialToken": {"id": "<|begin_of_text|>"}},
        {"SpecialToken": {"id": "<|step|>"}},
        {"Sequence": {"id": "A"}},
    )
    yield template("other-before", r"puts '<\|step\|>' before every text", other, text)
    yield template("other-behind", r"puts '<\|step\|>' behind every text", bos, text, other)
    yield template("two-before", "more than bos and eos", bos, other, text)
    yield template("no-text", "more than bos and eos", bos)
    yield template("nonsense", "neither a special token nor the text", 5, error="CheckpointError")
    yield _edit(
        "processor-roberta",
        "'RobertaProcessing' is not known",
        lambda document: document.update(post_processor={"type": "RobertaProcessing"}),
        error="UnsupportedModelError",
    )
