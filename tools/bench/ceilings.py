"""What the machine can do at most, from peak.cpp: integer and float multiply-adds in registers, and memory.

A virtual machine's speed changes while one looks at it, so a ceiling is sampled between the turns of those who are
held against it, and its median is what they are held against.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

SOURCE = Path(__file__).with_name("peak.cpp")
MEGABYTES = 600  # read and written: more than any cache holds
SECONDS = 0.01  # of one sample of a register loop
# The instruction that an int8 kernel of a tier lives by, the best that the processor has first.
INT8 = {
    "scalar": ("int8_maddubs_256", "int8_sdot_neon"),
    "avx2": ("int8_maddubs_256",),
    "avx512": ("int8_dpbusd_512", "int8_maddubs_512"),
    "neon": ("int8_smmla_neon", "int8_sdot_neon"),
}


def _build(folder: Path) -> Path:
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if not compiler:
        raise FileNotFoundError("no C++ compiler (c++, g++, clang++, or CXX) to build peak.cpp with")
    native = ["-mcpu=native"] if os.uname().machine in ("aarch64", "arm64") else []
    command = [compiler, "-O3", "-std=c++17", "-pthread", *native, str(SOURCE), "-o", str(folder / "peak")]
    subprocess.run(command, check=True)
    return folder / "peak"


class Ceilings:
    """The program in a process of its own, asked over a pipe. `best` is the best seen: by (threads, name)."""

    def __init__(self, megabytes: int = MEGABYTES, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        with tempfile.TemporaryDirectory(prefix="quantkit-peak-") as folder:
            command = [str(_build(Path(folder))), str(megabytes)]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            self.names: list[str] = self._answer().split()
        self.best: dict[tuple[int, str], float] = {}

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def sample(self, threads: int, name: str) -> float:
        """Operations or bytes a second, once."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{threads} {name} {self._seconds}\n")
        self._process.stdin.flush()
        rate = float(self._answer())
        self.best[threads, name] = max(rate, self.best.get((threads, name), 0.0))
        return rate

    def int8(self, tier: str) -> str:
        """The name of the peak that a tier has on this machine; "" where it has none."""
        return self._first(INT8.get(tier, ()))

    def _first(self, names: Sequence[str]) -> str:
        return next((name for name in names if name in self.names), "")

    def survey(self, threads: int, samples: int = 5) -> None:
        """Everything, several times: afterwards `best` has it."""
        for _ in range(samples):
            for name in self.names:
                self.sample(threads, name)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)
