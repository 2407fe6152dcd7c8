from __future__ import annotations

import shutil
from pathlib import Path

import pytest

TINY = Path(__file__).parents[1] / "data" / "tiny-llama4"


@pytest.fixture(scope="session")
def tiny() -> Path:
    """The trained checkpoint of the repository: 4 layers, 4 experts, with a vision tower, three shards."""
    return TINY


@pytest.fixture
def own_tiny(tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(TINY, folder)
    return folder
