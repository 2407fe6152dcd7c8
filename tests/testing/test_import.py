"""Nothing is imported before it is used, and what is missing is named with the extra that brings it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import quantkit
import quantkit.testing

SRC = str(Path(quantkit.__file__).parents[1])


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": SRC},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("module", ["quantkit.testing", "quantkit.testing.plugin"])
def test_nothing_heavy_is_imported(module: str) -> None:
    out = run(f"import sys, {module}; print(*sorted(sys.modules))")
    loaded = {name.split(".")[0] for name in out.split()}
    assert not loaded & {"numpy", "hypothesis", "gguf", "click", "rich"}
    assert ("pytest" in loaded) == (module == "quantkit.testing.plugin")


def test_every_name_of_the_door_is_there() -> None:
    for name in quantkit.testing.__all__:
        assert getattr(quantkit.testing, name) is not None
    assert set(quantkit.testing.__all__) <= set(dir(quantkit.testing))
    with pytest.raises(AttributeError, match="no attribute 'matrices'"):
        quantkit.testing.matrices  # noqa: B018


def test_without_hypothesis_all_but_the_strategies_works() -> None:
    out = run(
        "import sys\n"
        "sys.modules['hypothesis'] = None\n"
        "from quantkit.testing import assert_within_bound, make_weights\n"
        "from quantkit.kernels import quantize\n"
        "x = make_weights(['gauss'], 256, 0)\n"
        "assert_within_bound(x, quantize(x, 'q4_k'), 'q4_k')\n"
        "try:\n"
        "    from quantkit.testing import weight_matrices\n"
        "except ImportError as error:\n"
        "    print(type(error).__name__, error, error.exit_code, sep='\\n')\n"
    )
    assert out.splitlines() == [
        "MissingDependencyError",
        "the strategies of quantkit.testing need hypothesis, which is not installed",
        "In a clone of quantkit: pip install '.[testing]'",
        "2",
    ]
