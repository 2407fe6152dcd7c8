"""The front matter of a model card (README.md)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from quantkit.checkpoint.document import read_text
from quantkit.errors import CheckpointError


def read_model_card(path: Path) -> dict[str, Any]:
    """The YAML between the two `---` lines at the top of `path`, {} without file or front matter.

    Scalars stay the strings they are written as (`language: no` is Norwegian, a version 3.0 no float); empty is None.

    Raises:
        CheckpointError: not UTF-8, not YAML, or not a mapping.
    """
    if not path.is_file():
        return {}
    front = _front_matter(read_text(path))
    if front is None:
        return {}
    import yaml  # here: only this function needs it

    hint = "Correct the front matter, or leave README.md out; it only feeds the output's general.* metadata."
    try:
        card = yaml.load(front, Loader=yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError) as error:
        problem = " ".join(str(error).split())
        raise CheckpointError(f"{path}: front matter is not YAML: {problem}", hint=hint) from error
    if card is None or card == "":
        return {}
    if not isinstance(card, dict):
        raise CheckpointError(f"{path}: front matter is not a mapping", hint=hint)
    return {key: value if value != "" else None for key, value in card.items()}


def _front_matter(text: str) -> str | None:
    lines = text.removeprefix("\ufeff").splitlines()
    if not lines or lines[0].rstrip() != "---":
        return None
    for number, line in enumerate(lines[1:], 1):
        if line.rstrip() == "---":
            return "\n".join(lines[1:number])
    return None
