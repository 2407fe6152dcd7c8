"""Tokens by llama.cpp from the written GGUF against those of `tokenizers` from the checkpoint.

llama.cpp cuts text by an ASCII approximation of Llama 4's regex. Where both regexes cut alike, tokens are equal; where
they do not, llama.cpp's tokens are those that `tokenizers` finds when it is given llama.cpp's regex, so that no text at
all is excused from testing the vocabulary and the merges. docs/tokenizer.md lists what is cut differently.
"""

from __future__ import annotations

import json
import random
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.oracle import o200k
from tests.oracle.llama import Model
from tokenizers import Regex, Tokenizer, pre_tokenizers

import quantkit

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "data" / "tiny-llama4"

# How llama.cpp reads tokenizer.ggml.pre = "llama4": a letter that is no ASCII lower-case letter passes for upper case,
# one that is no ASCII upper-case letter for lower case, and a combining mark is no part of a word.
_UPPER, _LOWER = r"((?=[\p{L}])([^a-z]))", r"((?=[\p{L}])([^A-Z]))"
_CONTRACTION = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?"
RUNTIME_REGEX = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTION}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

PLAIN = {
    "nothing": "",
    "english": "It's the dog's; they'd HAVE said we'LL, you'Re, I'M and don'T.",
    "case": "camelCase PascalCase SCREAMING_SNAKE HTMLParser iOS McDonald eBay x86-64 aB Ab ABc abC",
    "numbers": "1 12 123 1234 12345678901234567890 3.14159 1e-10 0xDEADBEEF ٣٤٥ १२३ ½ ⅷ ² 1,000,000",
    "line ends": "a\r\nb\n\nc\r\rd\n \n\t\n  e\r\n\r\n  \r\n",
    "white space": " a  b   c\td\t\te \t f\u00a0g\u2003h\u3000i\u2028j\u2029k\u0085l\u180em\u200bn  ",
    "runs": " " * 3000 + "\n" * 1500 + "\t" * 700 + "a" * 3000 + "=" * 2000 + "9" * 1000 + "🙂" * 300,
    "control": "".join(map(chr, range(1, 32))) + "\x7f\x80\x9f",
    "zero byte": "a\0b\0\0 \0c",
    "code": "def f(x):\n    return {k: v for k, v in x.items() if k != 'é'}  # //\n\t/* */ a->b::c ?. ?? => <!-- -->",
    "urls": "https://example.org/a//b/?q=%20&x=1#frag  C:\\dir\\file.txt ~/.config a@b.co",
    "slashes": "!!!/// --//\n/ ...\r\n/",
    "emoji": "👩‍👩‍👧‍👦 👍🏽 🏳️‍🌈 🇩🇪🇫🇷 ❤️ 1️⃣ ☺︎ 🧑🏿‍🚀",
    "chinese": "漢字仮名交じり文、中文字符。「引用」ABC漢字abc",
    "japanese": "ひらがなカタカナｶﾀｶﾅー々〆",
    "korean": "한국어 텍스트와 조사",
    "hebrew": "שלום עולם",
    "arabic": "مرحبا بالعالم ١٢٣",
    "mixed direction": "abc שלום 123 مرحبا def \u202eabc\u202c \u200f",
    "greek lower": "καλημέρα κόσμε",
    "cyrillic words": "Съешь ещё этих мягких французских булок",
    "georgian": "საქართველო",
    "cherokee": "ᏣᎳᎩ",
    "private use": "\ue000\uf8ff\U000f0000\U0010fffd",
    "edges": "\ud7ff\ue000\ufdd0\ufffe\uffff\ufffd\ufeff\U0001ffff\U0010ffff",
    "unassigned": "\u0378\u0e00\u2fff\U0002fa20\U000e0080",
    "astral letters": "𝒜𝓑𝔠 𐐨𐑀 𠀀𠀁",
    "symbols": "∀x∈ℝ: ⌈x⌉ = −⌊−x⌋ ±√2 € £ ¥ © ® ™ ° ′ ″ … — – “ ” ‘ ’ • ▲",
    "apostrophes": "'s 's' ''s 'S 'll'LL x'sy 'tis ’s don’t",
    "byte-level look-alikes": "Ġ Ċ ĉ Ġhello ÄÖ",
    "special look-alikes": "<|eot|> <|begin_of_text|><|image|>< |eot|> <|EOT|> <|eot|>> <|unknown|> [PAD1]",
}

# Classes of text that are cut differently, with an example of each; docs/tokenizer.md says the same in words.
MARKS = {
    "devanagari": "हिन्दी भाषा",
    "thai": "สวัสดีครับ",
    "arabic with vowels": "العَرَبِيَّة",
    "hebrew with points": "שָׁלוֹם",
    "tamil": "தமிழ்",
    "decomposed latin": "cafe\u0301s",
}
CASES = {
    "cyrillic": "приветМир",
    "greek": "ΑΒΓαβγΔΕ",
    "latin": "écoleÉcole",
    "title case": "aǅb",
    "full width": "ｂｃＡｄ",
}
FOLDED = {"long s": "that'ſ"}


@dataclass
class Pair:
    """The judge and its peers for one checkpoint."""

    runtime: Model
    tokenizer: Tokenizer
    as_runtime: Tokenizer  # the same, with llama.cpp's regex
    splits: tuple[pre_tokenizers.Split, pre_tokenizers.Split]

    def alike(self, text: str) -> bool:
        """Whether both regexes cut `text` at the same places."""
        ours, theirs = ([span for _, span in split.pre_tokenize_str(text)] if text else [] for split in self.splits)
        return ours == theirs


def _open(checkpoint: Path, path: Path) -> Pair:
    quantkit.convert(checkpoint, path, ["q8_0"], threads=2)
    tokenizer, as_runtime = (Tokenizer.from_file(str(checkpoint / "tokenizer.json")) for _ in range(2))
    document = json.loads((checkpoint / "tokenizer.json").read_text())
    regex = document["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
    theirs, own = (pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in (RUNTIME_REGEX, regex))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    as_runtime.pre_tokenizer = pre_tokenizers.Sequence([theirs, byte_level])
    return Pair(Model(path, vocab_only=True), tokenizer, as_runtime, (own, theirs))


@pytest.fixture(scope="module", params=["tiny-llama4", "o200k"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("tokens")
    checkpoint = TINY if request.param == "tiny-llama4" else o200k.write_checkpoint(folder / "o200k")
    pair = _open(checkpoint, folder / "model.gguf")
    yield pair
    pair.runtime.close()


def listed(text: str) -> bool:
    """Whether `text` has anything of the listed classes: marks, cased letters beyond ASCII (the long s is one)."""
    categories = {unicodedata.category(character) for character in text if not character.isascii()}
    return not categories.isdisjoint({"Mn", "Mc", "Me", "Lu", "Ll", "Lt"})


def check(pair: Pair, text: str) -> None:
    """Equal tokens, by whichever regex; and both regexes must agree unless the text is of a listed class."""
    assert pair.alike(text) or listed(text)
    for special in (False, True):
        pair.tokenizer.encode_special_tokens = pair.as_runtime.encode_special_tokens = not special
        tokens = pair.runtime.tokenize(text, parse_special=special)
        assert tokens == pair.as_runtime.encode(text, add_special_tokens=False).ids
        if pair.alike(text):
            assert tokens == pair.tokenizer.encode(text, add_special_tokens=False).ids


def test_vocabulary(pair: Pair) -> None:
    assert pair.runtime.n_vocab == pair.tokenizer.get_vocab_size()


@pytest.mark.parametrize("text", PLAIN.values(), ids=PLAIN)
def test_listed_texts_are_cut_alike(pair: Pair, text: str) -> None:
    assert pair.alike(text)
    check(pair, text)


@pytest.mark.parametrize("text", (MARKS | CASES | FOLDED).values(), ids=MARKS | CASES | FOLDED)
def test_listed_differences(pair: Pair, text: str) -> None:
    assert not pair.alike(text)
    check(pair, text)


def test_own_documents(pair: Pair) -> None:
    files = [ROOT / "LICENSE", ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("csrc/codec/*.h")]
    for file in files:
        check(pair, file.read_text())


def test_begin_token(pair: Pair) -> None:
    assert pair.runtime.tokenize("Hello", add_special=True) == pair.tokenizer.encode("Hello").ids


def test_strings_of_tokens(pair: Pair) -> None:
    """Texts made of the vocabulary's own entries: every one of a large sample, in odd company."""
    rng = random.Random(7)
    ids = rng.sample(range(pair.runtime.n_vocab), min(20_000, pair.runtime.n_vocab))
    for start in range(0, len(ids), 50):
        check(pair, pair.tokenizer.decode(ids[start : start + 50], skip_special_tokens=False))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_text(pair: Pair, text: str) -> None:
    check(pair, text)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(text=st.text(alphabet="aAéÉǅ漢ー'stTreSlLdmMvVſ \t\r\n/1٣²-!\u0301\u200d\u00a0🙂<|>", max_size=40))
def test_any_text_of_few_characters(pair: Pair, text: str) -> None:
    check(pair, text)
