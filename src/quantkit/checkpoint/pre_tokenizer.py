"""How text is cut before merging: the regexes of tokenizer.json, and the one of Llama 4."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from quantkit.errors import CheckpointError, UnsupportedModelError

# As in the released tokenizer.json; the same as o200k's.
LLAMA4_REGEX = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# What ByteLevel applies by itself unless told otherwise (GPT-2's).
_BYTE_LEVEL_REGEX = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def is_llama4_regex(regex: str) -> bool:
    """Whether `regex` is LLAMA4_REGEX in one of its spellings: line ends and the slash as such or escaped."""
    spelled = regex.replace("\r", r"\r").replace("\n", r"\n")
    return spelled.replace(r"[\r\n\/]", r"[\r\n/]") == LLAMA4_REGEX


def split_patterns(pre_tokenizer: Any, path: Path) -> list[str]:
    """The regexes of `pre_tokenizer` (an object of tokenizer.json, or null) in the order in which they apply.

    Raises:
        CheckpointError: malformed.
        UnsupportedModelError: something other than Split by regex followed by ByteLevel.
    """
    steps = [] if pre_tokenizer is None else _steps(pre_tokenizer, path)
    patterns: list[str] = []
    byte_level = False
    for step in steps:
        kind = step.get("type")
        if byte_level or kind not in ("Split", "ByteLevel"):
            raise _unsupported(path, f"step {kind!r}{' after ByteLevel' if byte_level else ''}")
        if kind == "Split":
            patterns.append(_split_pattern(step, path))
            continue
        byte_level = True
        if step.get("add_prefix_space", True):
            raise _unsupported(path, "add_prefix_space")
        if step.get("use_regex", True):
            patterns.append(_BYTE_LEVEL_REGEX)
    if not byte_level:
        raise _unsupported(path, "no ByteLevel step")
    return patterns


def _steps(pre_tokenizer: Any, path: Path) -> list[dict[str, Any]]:
    if not isinstance(pre_tokenizer, dict):
        raise CheckpointError(f"{path}: pre_tokenizer is not an object", hint="The file is damaged; download it again.")
    if pre_tokenizer.get("type") != "Sequence":
        return [pre_tokenizer]
    children = pre_tokenizer.get("pretokenizers")
    if not isinstance(children, list):
        raise CheckpointError(f"{path}: pre_tokenizer: a Sequence without a list", hint="Download the file again.")
    return [step for child in children for step in _steps(child, path)]


def _split_pattern(step: dict[str, Any], path: Path) -> str:
    pattern = step.get("pattern")
    regex = pattern.get("Regex") if isinstance(pattern, dict) else None
    if not isinstance(regex, str):
        raise _unsupported(path, f"Split by {pattern!r}, which is no regex")
    # Keeping the matches and dropping what lies between is the same for a regex that leaves nothing between.
    if (step.get("behavior"), step.get("invert", False)) not in (("Isolated", False), ("Removed", True)):
        raise _unsupported(path, f"Split with behavior {step.get('behavior')!r}, invert {step.get('invert')!r}")
    return regex


def _unsupported(path: Path, what: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{path}: pre_tokenizer: {what} is not how Llama 4 splits text",
        hint="The runtime splits by a regex of its own, so text would be read differently.",
    )
