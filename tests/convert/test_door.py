"""`import quantkit` is light, its version is the project's, and its names work however they are imported."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import quantkit

ROOT = Path(__file__).parents[2]
SRC = Path(quantkit.__file__).parent


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_version() -> None:
    (version,) = re.findall(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert quantkit.__version__ == version


def test_import_is_light() -> None:
    heavy = python("import sys, quantkit; print([m for m in ('numpy', 'gguf', 'click') if m in sys.modules])")
    assert heavy.strip() == "[]"
    assert python("import quantkit, sys; print(*(m for m in sys.modules if m.startswith('quantkit')))") == "quantkit\n"


def test_names_work_in_any_order() -> None:
    for first in ("", "import quantkit.convert.run", "from quantkit.convert import plan", "import quantkit.kernels"):
        said = python(
            f"{first}\nimport quantkit\n"
            "print(callable(quantkit.convert), callable(quantkit.plan), callable(quantkit.kernels.quantize))\n"
            "from quantkit.convert import convert, Plan\n"
            "print(callable(convert), quantkit.convert.Plan is Plan)"
        )
        assert said.split() == ["True"] * 5, first


def test_dir_names_what_is_there_and_nothing_else() -> None:
    """Asked one by one: what another room has imported is there in any case."""
    said = python(
        "import quantkit\n"
        "names = [name for name in dir(quantkit) if not name.startswith('__')]\n"
        "print(*names)\n"
        "for name in names: assert quantkit.__getattr__(name) is getattr(quantkit, name), name"
    )
    rooms = {path.parent.name for path in SRC.glob("*/__init__.py")} - {"cli"} | {"errors"}
    assert set(said.split()) == rooms | {"QuantizedTensor", "calibrate", "compare", "plan", "verify"}
    with pytest.raises(AttributeError, match="module 'quantkit' has no attribute 'kernel'"):
        quantkit.kernel  # noqa: B018
