"""The pytest plugin, run by pytest itself in a folder of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import mlx.core  # noqa: F401  (and numpy: pytester forgets what a run loads, and extensions cannot be loaded twice)
import numpy as np
import pytest

import quantkit
from quantkit.testing.baseline import TOLERANCES_PERCENT

ROOT = Path(__file__).parents[2]
PLUGIN = ("-p", "quantkit.testing.plugin", "-p", "no:cacheprovider")
TEST = """
import numpy as np
import pytest

WEIGHTS = np.load("weights.npy")

@pytest.mark.quantkit_formats("q4_0", "q8_0")
def test_accuracy(quantkit_accuracy):
    quantkit_accuracy("a", WEIGHTS)
    quantkit_accuracy("b", WEIGHTS[::2], importance=np.arange(1, 257))
"""
# The same, with 1 % lost in tensor b.
WORSE = TEST.replace("importance=np.arange(1, 257)", "decoded=WEIGHTS[::2] * np.float32(0.99)")


@pytest.fixture
def folder(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """No plugin but those named, so that an installed quantkit does not bring its own a second time."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(quantkit.__file__).parents[1]))
    np.save("weights.npy", np.random.default_rng(5).standard_normal((8, 256)).astype(np.float32))
    Path("test_it.py").write_text(TEST, encoding="utf-8")
    return pytester


def run(folder: pytest.Pytester, *options: str) -> pytest.RunResult:
    return folder.runpytest_inprocess(*PLUGIN, *options)


def update(folder: pytest.Pytester) -> Path:
    run(folder, "--quantkit-update").assert_outcomes(passed=2)
    return folder.path / "test_it.quantkit.json"


def test_without_a_baseline_it_fails_and_says_how_to_make_one(folder: pytest.Pytester) -> None:
    result = run(folder)
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(
        [
            "no baseline: test_it.quantkit.json does not exist",
            "To make it, run pytest with --quantkit-update and commit the file.",
        ]
    )
    assert not (folder.path / "test_it.quantkit.json").exists()


def test_update_then_pass(folder: pytest.Pytester) -> None:
    path = update(folder)
    text = path.read_text(encoding="utf-8")
    content = json.loads(text)
    assert text == json.dumps(content, indent=2, sort_keys=True) + "\n"
    assert content["quantkit"] == quantkit.__version__
    assert content["tolerances_percent"] == TOLERANCES_PERCENT
    assert sorted(content["results"]) == ["test_accuracy[q4_0]", "test_accuracy[q8_0]"]
    entry = content["results"]["test_accuracy[q4_0]"]["a"]
    assert entry["shape"] == "8 x 256"
    assert 0.01 < entry["rmse"] < 0.2
    assert 15 < entry["sqnr_db"] < 30
    run(folder).assert_outcomes(passed=2)
    assert path.read_text(encoding="utf-8") == text
    assert [file.name for file in folder.path.glob("*.part")] == []


def test_what_became_worse_fails_with_a_table(folder: pytest.Pytester) -> None:
    update(folder)
    Path("test_it.py").write_text(WORSE, encoding="utf-8")
    result = run(folder)
    result.assert_outcomes(failed=1, passed=1)  # an error of 1 % is no worse than q4_0
    result.stdout.fnmatch_lines(
        [
            "q8_0 is less accurate than test_it.quantkit.json says",
            f"(baseline of quantkit {quantkit.__version__}, this is {quantkit.__version__}; 1 of 2 tensors are worse)",
            "  b (4 x 256)",
            "    metric              baseline         now     change   allowed",
            "    rmse *+* %   +0.1 %   WORSE",
            "    sqnr_db *-* %   -0.1 %   WORSE",
            "    worst element: row *, block *, element *: * became *",
            "If that is meant, run pytest with --quantkit-update and commit the file.",
        ]
    )
    assert "  a (8 x 256)" not in result.stdout.str()


def test_tolerances_are_those_of_the_file_and_outlive_an_update(folder: pytest.Pytester) -> None:
    path = update(folder)
    content = json.loads(path.read_text(encoding="utf-8"))
    content["tolerances_percent"] = dict.fromkeys(TOLERANCES_PERCENT, 1e6)
    path.write_text(json.dumps(content), encoding="utf-8")
    Path("test_it.py").write_text(WORSE, encoding="utf-8")
    run(folder).assert_outcomes(passed=2)
    run(folder, "--quantkit-update", "--quantkit-format", "q8_0").assert_outcomes(passed=1)
    again = json.loads(path.read_text(encoding="utf-8"))
    assert again["tolerances_percent"] == content["tolerances_percent"]
    before, after = content["results"], again["results"]
    assert after["test_accuracy[q4_0]"] == before["test_accuracy[q4_0]"]  # was not run
    assert after["test_accuracy[q8_0]"]["b"]["rmse"] > before["test_accuracy[q8_0]"]["b"]["rmse"]


def test_what_became_better_passes_and_is_told(folder: pytest.Pytester) -> None:
    Path("test_it.py").write_text(WORSE.replace("WEIGHTS[::2] * np.float32(0.99)", "WEIGHTS[::2].round(1)"), "utf-8")
    update(folder)
    Path("test_it.py").write_text(TEST.replace("importance=np.arange(1, 257)", ""), encoding="utf-8")
    result = run(folder, "--quantkit-format", "q8_0")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        ["quantkit: more accurate than the baseline: test_it.py::test_accuracy?q8_0?; *update*"]
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (('"b"', '"c"'), "tensors that it does not know: c"),
        (('    quantkit_accuracy("b", WEIGHTS[::2], importance=np.arange(1, 257))\n', ""), "were not measured: b"),
        (("WEIGHTS[::2]", "WEIGHTS[::4]"), r"tensors of another shape: b \(4 x 256, now 2 x 256\)"),
    ],
)
def test_a_baseline_that_does_not_fit(folder: pytest.Pytester, change: tuple[str, str], words: str) -> None:
    update(folder)
    Path("test_it.py").write_text(TEST.replace(*change), encoding="utf-8")
    result = run(folder)
    result.assert_outcomes(failed=2)
    assert re.search(rf"test_it.quantkit.json does not fit test_accuracy\[q4_0\]: .*{words}", result.stdout.str())


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"schema": 2}', '{"schema": 1, "quantkit": "0", "tolerances_percent": {}, "results": {}}'],
)
def test_a_file_that_is_no_baseline(folder: pytest.Pytester, content: str) -> None:
    Path("test_it.quantkit.json").write_text(content, encoding="utf-8")
    for options in ([], ["--quantkit-update"]):
        result = run(folder, *options)
        result.assert_outcomes(errors=2)
        result.stdout.fnmatch_lines(["*test_it.quantkit.json *"])
    assert Path("test_it.quantkit.json").read_text(encoding="utf-8") == content


def test_a_test_that_measures_nothing_fails(folder: pytest.Pytester) -> None:
    folder.makepyfile(
        test_it="import pytest\n\n@pytest.mark.quantkit_formats('q8_0')\ndef test_it(quantkit_accuracy):\n    pass\n"
    )
    for options in ([], ["--quantkit-update"]):
        result = run(folder, *options)
        result.assert_outcomes(failed=1)
        result.stdout.fnmatch_lines(
            ["test_it?q8_0? measured nothing: it has to call quantkit_accuracy(name, weights)*"]
        )


def test_a_body_that_fails_is_not_stored(folder: pytest.Pytester) -> None:
    Path("test_it.py").write_text(TEST + "    assert quantkit_accuracy.format == 'q8_0'\n", encoding="utf-8")
    run(folder, "--quantkit-update").assert_outcomes(failed=1, passed=1)
    content = json.loads(Path("test_it.quantkit.json").read_text(encoding="utf-8"))
    assert list(content["results"]) == ["test_accuracy[q8_0]"]


def test_formats_of_the_option(folder: pytest.Pytester) -> None:
    result = run(
        folder, "--quantkit-update", "--quantkit-format=q6_k", "--quantkit-format=q4_1", "--quantkit-format=q6_k"
    )
    result.assert_outcomes(passed=2)
    content = json.loads(Path("test_it.quantkit.json").read_text(encoding="utf-8"))
    assert sorted(content["results"]) == ["test_accuracy[q4_1]", "test_accuracy[q6_k]"]
    result = run(folder, "--quantkit-format=q4_m")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --quantkit-format: unknown format 'q4_m'", "Did you mean q4_k*"])


GROUPS = """
import mlx.core as mx
import numpy as np
import pytest
from quantkit import QuantizedTensor

WEIGHTS = np.load("weights.npy")

def mlx(format):
    packed, scales, biases = mx.quantize(mx.array(WEIGHTS), group_size=64, bits=4)
    return QuantizedTensor(packed, format, scales, biases)

@pytest.mark.quantkit_formats("int4_g64")
def test_accuracy(quantkit_accuracy):
    quantkit_accuracy("a", WEIGHTS)
    quantkit_accuracy("b", np.stack([WEIGHTS, 2 * WEIGHTS]), importance=np.ones((2, 256)))
    quantkit_accuracy("mlx's", WEIGHTS, packed=mlx(quantkit_accuracy.format))
"""


def test_group_formats(folder: pytest.Pytester) -> None:
    """Quantized by quantkit, and a tensor of somebody else's; MLX in quantkit's place is worse in both."""
    Path("test_it.py").write_text(GROUPS, encoding="utf-8")
    run(folder, "--quantkit-update").assert_outcomes(passed=1)
    content = json.loads(Path("test_it.quantkit.json").read_text(encoding="utf-8"))
    assert list(content["results"]) == ["test_accuracy[int4_g64]"]
    found = content["results"]["test_accuracy[int4_g64]"]
    assert 0.03 < found["a"]["rmse"] < found["mlx's"]["rmse"] < 0.12
    run(folder).assert_outcomes(passed=1)
    for worse in ("packed=mlx(quantkit_accuracy.format)", "decoded=mlx(quantkit_accuracy.format).dequantize()"):
        Path("test_it.py").write_text(GROUPS.replace('"a", WEIGHTS', f'"a", WEIGHTS, {worse}'), encoding="utf-8")
        result = run(folder)
        result.assert_outcomes(failed=1)
        result.stdout.fnmatch_lines(
            ["int4_g64 is less accurate than test_it.quantkit.json says", "    worst element: row *, block [0-3], *"]
        )


def test_group_formats_of_the_option(folder: pytest.Pytester) -> None:
    run(folder, "--quantkit-update", "--quantkit-format=int4_g64", "--quantkit-format=int8_row").assert_outcomes(
        passed=2
    )
    content = json.loads(Path("test_it.quantkit.json").read_text(encoding="utf-8"))
    assert sorted(content["results"]) == ["test_accuracy[int4_g64]", "test_accuracy[int8_row]"]
    result = run(folder, "--quantkit-format=int4_g63")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --quantkit-format: unknown format 'int4_g63'", "Group formats are called*"])


@pytest.mark.parametrize(
    ("packed", "words"),
    [
        ("mlx('int4_g64').packed", "int4_g32 needs scales and biases beside the packed words"),
        ("mlx('int4_g64')", "packed is in int4_g64, and the test is of int4_g32"),
    ],
)
def test_packed_groups_that_do_not_fit(folder: pytest.Pytester, packed: str, words: str) -> None:
    Path("test_it.py").write_text(GROUPS.replace("mlx(quantkit_accuracy.format)", packed), encoding="utf-8")
    result = run(folder, "--quantkit-format=int4_g32")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([f"*UsageError: {words}"])


def test_without_a_format_it_says_how_to_give_one(folder: pytest.Pytester) -> None:
    Path("test_it.py").write_text(TEST.replace('@pytest.mark.quantkit_formats("q4_0", "q8_0")', ""), encoding="utf-8")
    result = run(folder)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*test_accuracy has no format", "*@pytest.mark.quantkit_formats(*--quantkit-format*"])
    run(folder, "--quantkit-format=q8_0", "--quantkit-update").assert_outcomes(passed=1)


def test_xdist_reads_and_does_not_write(folder: pytest.Pytester) -> None:
    xdist = ("-p", "xdist", "-n", "2")
    refused = folder.runpytest_subprocess(*PLUGIN, *xdist, "--quantkit-update")
    assert refused.ret == pytest.ExitCode.USAGE_ERROR
    refused.stderr.fnmatch_lines(["ERROR: --quantkit-update writes one file from all tests: run it without -n*"])
    update(folder)
    folder.runpytest_subprocess(*PLUGIN, *xdist).assert_outcomes(passed=2)
    Path("test_it.py").write_text(WORSE, encoding="utf-8")
    result = folder.runpytest_subprocess(*PLUGIN, *xdist)
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(["q8_0 is less accurate than test_it.quantkit.json says"])


def test_pytest_finds_the_plugin_by_its_entry_point(tmp_path: Path) -> None:
    """As pip would write it from pyproject.toml; as a user has it."""
    declared = re.search(r"\[project\.entry-points\.pytest11\]\n(.+)\n", (ROOT / "pyproject.toml").read_text("utf-8"))
    assert declared
    info = tmp_path / "quantkit_declared-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: quantkit-declared\nVersion: 1\n", encoding="utf-8")
    entry = declared[1].replace('"', "")
    (info / "entry_points.txt").write_text(f"[pytest11]\n{entry}\n", encoding="utf-8")
    paths = os.pathsep.join([str(Path(quantkit.__file__).parents[1]), str(tmp_path)])
    environment = {**os.environ, "PYTHONPATH": paths}
    environment.pop("PYTEST_DISABLE_PLUGIN_AUTOLOAD", None)
    for option, words in (("--help", "--quantkit-format=FORMAT"), ("--markers", "quantkit_formats(*formats)")):
        command = [sys.executable, "-m", "pytest", option, "-p", "no:cacheprovider"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert words in done.stdout
