"""Junk anywhere in a JSON file: refused on purpose, or of no consequence; never a stray TypeError."""

from __future__ import annotations

import copy
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.checkpoint.malformed.kind import INDEX, SOURCE, Draft

from quantkit.checkpoint import open_checkpoint
from quantkit.errors import QuantkitError

CONFIGS = ("config.json", "generation_config.json")
FILES = (INDEX, *CONFIGS, "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
JUNK = (None, True, -1, 0, 0.5, 2**70, "", "x", "default", [], [None], ["a", "b"], {}, {"a": 1}, {"content": 1})


def places(document: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) of a document, a handful of each long container."""
    if isinstance(document, (dict, list)):
        keys = list(document) if isinstance(document, dict) else list(range(len(document)))
        for key in keys if len(keys) < 20 else (*keys[:2], keys[-1]):
            yield document, key
            yield from places(document[key])


@pytest.mark.parametrize("file", FILES)
@settings(deadline=None, max_examples=10)
@given(data=st.data())
def test_junk_is_refused_or_of_no_consequence(file: str, data: st.DataObject) -> None:
    original = json.loads((SOURCE / file).read_text())
    folder = tempfile.mkdtemp()
    draft = Draft(Path(folder) / "model")
    count = sum(1 for _ in places(original))
    for at in data.draw(st.lists(st.integers(0, count - 1), min_size=5, max_size=5)):
        document = copy.deepcopy(original)
        container, key = list(places(document))[at]
        container[key] = data.draw(st.sampled_from(JUNK))
        draft.write(file, json.dumps(document))
        try:
            checkpoint = open_checkpoint(draft.root)
            tokenizer = checkpoint.tokenizer()
        except QuantkitError:
            continue
        assert len(tokenizer.tokens) == len(tokenizer.token_types) == 1024
        assert all(isinstance(text, str) for text in (*tokenizer.tokens, *tokenizer.merges))
        for token_id in (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id):
            assert token_id is None or (type(token_id) is int and 0 <= token_id < 1024)
        assert all(isinstance(text, str) for pair in tokenizer.chat_templates.items() for text in pair)
        assert all(type(flag) is bool for flag in (tokenizer.add_bos, tokenizer.add_eos, tokenizer.add_sep))
    shutil.rmtree(folder)
