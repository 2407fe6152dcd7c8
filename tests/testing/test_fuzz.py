"""The differential fuzzer agrees on this machine; where something differs, it ends with what shows it again."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import quantkit

ROOT = Path(__file__).parents[2]

# The last byte is wrong where more than one thread encodes more than 20 rows.
DEFECT = """
import runpy, sys
import quantkit.kernels as kernels
right = kernels.encode_into

def encode_into(out, source, **options):
    right(out, source, **options)
    if options["threads"] > 1 and options["rows"] > 20:
        out[-1, -1] ^= 1

kernels.encode_into = encode_into
runpy.run_path(sys.argv.pop(1), run_name="__main__")
"""
DEFECT_OF_GROUPS = """
import runpy, sys
from quantkit.kernels import _machine
right = _machine.encode_groups

def encode_groups(*arguments):
    refused = right(*arguments)
    biases, threads = arguments[-2:]
    if threads > 1 and arguments[3] > 20:
        biases[-1] ^= 1
    return refused

_machine.encode_groups = encode_groups
runpy.run_path(sys.argv.pop(1), run_name="__main__")
"""
# One element is off where more than one thread multiplies more rows than fit in registers.
DEFECT_OF_PRODUCTS = """
import runpy, sys
from quantkit.kernels import _machine
right = _machine.matmul_fast

def matmul_fast(tier, format, x, packed, rows, cols, out, threads):
    finite = right(tier, format, x, packed, rows, cols, out, threads)
    if threads > 1 and len(x) > 3 * cols:
        out[-1] += 1 + abs(out[-1])
    return finite

_machine.matmul_fast = matmul_fast
runpy.run_path(sys.argv.pop(1), run_name="__main__")
"""


def run(*arguments: object, defect: str = "") -> subprocess.CompletedProcess[str]:
    fuzz = str(ROOT / "tools" / "fuzz.py")
    command = [sys.executable, "-c", defect, fuzz] if defect else [sys.executable, fuzz]
    environment = {**os.environ, "PYTHONPATH": str(Path(quantkit.__file__).parents[1])}
    command += [str(argument) for argument in arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_the_tiers_agree() -> None:
    done = run("--seconds", 3)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.match(r"tiers scalar.*; seed \d+\n\d+ cases agree, [\d.]+ M weights, \d+ refused: f32 \d+", done.stdout)


def test_the_same_seed_gives_the_same_cases() -> None:
    first, second = (run("--seed", 7, "--cases", 20).stdout for _ in range(2))
    assert first == second
    assert "\n20 cases agree" in first


@pytest.mark.parametrize(
    ("defect", "names"), [(DEFECT, r"\w+"), (DEFECT_OF_GROUPS, r"int[234568]"), (DEFECT_OF_PRODUCTS, r"(?:q|iq|mx)\w+")]
)
def test_what_differs_is_found_saved_and_seen_again(defect: str, names: str, tmp_path: Path) -> None:
    done = run("--seed", 1, "--cases", 200, "--save", tmp_path, defect=defect)
    assert done.returncode == 1, done.stdout + done.stderr
    what = r"(?:bytes|biases|products with [\w ]+)"
    words = rf"DIFFERS: ({names}, tier \w+, \d threads: other {what}, .*)\nagain: --seed (\d+) --cases 1"
    found = re.search(words, done.stdout)
    assert found
    saved = tmp_path / f"fuzz-{found[2]}.npz"
    assert f"or --replay {saved}" in done.stdout
    assert found[1] in run("--seed", found[2], "--cases", 1, "--save", tmp_path, defect=defect).stdout
    replayed = run("--replay", saved, defect=defect)
    assert (replayed.returncode, replayed.stdout.strip()) == (1, found[1])
    mended = run("--replay", saved)
    assert mended.returncode == 0
    assert f"agree on {saved}" in mended.stdout
