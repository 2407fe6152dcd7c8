"""What must not change between a calibration and its resumption."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import quantkit
from quantkit.calibration.text import DEFAULT_NAME, DEFAULT_PATH, read
from quantkit.checkpoint import Checkpoint
from quantkit.errors import UsageError
from quantkit.kernels.blas import blas_identity
from quantkit.kernels.tier import current_tier

COMMAND = "calibrate"


def run_fingerprint(source: Checkpoint, texts: Sequence[Path] | None, options: dict[str, Any]) -> dict[str, Any]:
    """All that the bytes of the statistics depend on, field by field, in words of the command line.

    Args:
        texts: None for the one that comes with quantkit.
        options: that shape the statistics, as JSON values.

    Raises:
        UsageError: a text that cannot be read, or not twice.
    """
    default = [f"{DEFAULT_NAME}, {_digest(DEFAULT_PATH)}"]
    contents = default if texts is None else [_content(path) for path in texts]
    return {
        "command": COMMAND,
        "quantkit version": quantkit.__version__,
        "tokenizers version": version("tokenizers"),  # the text is cut into tokens again
        "arithmetic": f"{current_tier()}, {blas_identity()}",
        **source.identity(),
        **{f"text {number}": content for number, content in enumerate(contents, start=1)},
        **options,
    }


def _content(path: Path) -> str:
    if path.exists() and not path.is_file():
        raise UsageError(
            f"the text {path} is not a file",
            hint="A calibration that goes on after an interruption reads its text again: write it to a file.",
        )
    return f"{path}, {_digest(path)}"


def _digest(path: Path) -> str:
    return f"sha256 {hashlib.sha256(read(path)).hexdigest()}"
