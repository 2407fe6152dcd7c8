"""Every malformed checkpoint that can be told from files and headers alone is refused, by its name."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest
from tests.checkpoint.malformed import KINDS
from tests.checkpoint.malformed.kind import Draft

from quantkit import errors
from quantkit.checkpoint import open_checkpoint

HERE = [name for name, kind in KINDS.items() if kind.stage in ("open", "tokenizer")]


def test_there_are_a_hundred_kinds_and_more() -> None:
    stages = Counter(kind.stage for kind in KINDS.values())
    assert len(KINDS) >= 100
    assert len(HERE) >= 100
    assert min(stages[stage] for stage in ("open", "tokenizer", "model", "payload")) >= 20


@pytest.mark.parametrize("name", HERE)
def test_it_is_refused(name: str, tmp_path: Path) -> None:
    kind = KINDS[name]
    path = kind.make(tmp_path / "model")
    refusing = open_checkpoint if kind.stage == "open" else open_checkpoint(path).tokenizer
    arguments = (path,) if kind.stage == "open" else ()
    with pytest.raises(errors.QuantkitError, match=kind.match) as caught:
        refusing(*arguments)
    assert type(caught.value).__name__ == kind.error
    assert str(tmp_path) in caught.value.what
    assert "\n" not in caught.value.what


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.stage in ("model", "payload")])
def test_the_others_open(name: str, tmp_path: Path) -> None:
    """They are one fault away from sound: what is wrong with them is for the later rooms to say."""
    checkpoint = open_checkpoint(KINDS[name].make(tmp_path / "model"))
    if not name.startswith(("config-", "card-")):
        checkpoint.tokenizer()
    shutil.rmtree(tmp_path / "model")


def test_a_draft_that_is_not_spoilt_is_sound(tmp_path: Path) -> None:
    draft = Draft(tmp_path / "model")
    sound = open_checkpoint(draft.root)
    for shard in sound.files:
        draft.tensors(shard.name, lambda tensors: None)
    again = open_checkpoint(draft.root)
    assert list(again.tensors) == list(sound.tensors)
    assert again.tokenizer() == sound.tokenizer()
