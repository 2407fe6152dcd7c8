"""What README and docs/testing.md show is what happens: examples run as pasted, and fail with the message shown."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import quantkit.kernels  # and numpy: pytester forgets what a run loads, and numpy cannot be loaded twice

ROOT = Path(__file__).parents[2]


def blocks(page: str, wanted: str) -> list[str]:
    """Bodies of the fenced blocks of a language."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [body for language, body in found if language == wanted]


PROPERTY = blocks("docs/testing.md", "python")[1]
MESSAGE = blocks("docs/testing.md", "text")[0]
EXAMPLES = {
    page: next(body for body in blocks(page, "python") if "quantkit_accuracy" in body)
    for page in ("README.md", "docs/testing.md")
}
PLUGIN = ("-p", "quantkit.testing.plugin", "-p", "no:cacheprovider")
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e-\d+)?")

# What the docs speak of: every weight 2 % smaller.
WORSE = """
import numpy as np
from quantkit.kernels import quantize as right

def quantize(weights, format):
    return right(weights * np.float32(0.98), format)
"""


@pytest.fixture
def folder(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(quantkit.__file__).parents[1]))
    return pytester


@pytest.mark.parametrize("page", EXAMPLES)
def test_the_example_has_ten_lines(page: str) -> None:
    assert EXAMPLES[page].count("\n") == 10


@pytest.mark.parametrize("page", EXAMPLES)
def test_a_worse_quantizer_fails_with_the_message_shown(folder: pytest.Pytester, page: str) -> None:
    """In the words shown. Numbers may differ by a tenth, changes by 5 %: encoders become better."""
    test = folder.path / "test_accuracy.py"
    example = EXAMPLES[page]
    test.write_text(example, encoding="utf-8")
    folder.runpytest_inprocess(*PLUGIN).assert_outcomes(failed=2)
    folder.runpytest_inprocess(*PLUGIN, "--quantkit-update").assert_outcomes(passed=2)
    folder.runpytest_inprocess(*PLUGIN).assert_outcomes(passed=2)

    (folder.path / "worse.py").write_text(WORSE, encoding="utf-8")
    worse = example.replace("from quantkit.kernels import quantize", "from worse import quantize")
    assert worse != example
    test.write_text(worse, encoding="utf-8")
    result = folder.runpytest_inprocess(*PLUGIN)
    result.assert_outcomes(failed=2)
    said = result.stdout.str()
    start = said.index(MESSAGE.splitlines()[0])
    got = said[start:].splitlines()[: MESSAGE.count("\n")]
    for line, shown in zip(got, MESSAGE.splitlines(), strict=True):
        assert NUMBER.sub("#", line).split() == NUMBER.sub("#", shown).split()
        if line.endswith((" %", "WORSE")):
            numbers, expected = ([float(n) for n in NUMBER.findall(text)] for text in (line, shown))
            assert numbers[:2] == pytest.approx(expected[:2], rel=0.1)
            assert numbers[2] == pytest.approx(expected[2], abs=5)
            assert numbers[3] == expected[3]


def test_the_property_holds(folder: pytest.Pytester) -> None:
    # a machine that is busy with other things is no reason to fail
    folder.makeconftest(
        "from hypothesis import HealthCheck, settings\n"
        "settings.register_profile('busy', suppress_health_check=[HealthCheck.too_slow])\n"
        "settings.load_profile('busy')\n"
    )
    (folder.path / "test_property.py").write_text(PROPERTY, encoding="utf-8")
    folder.runpytest_inprocess(*PLUGIN).assert_outcomes(passed=1)
