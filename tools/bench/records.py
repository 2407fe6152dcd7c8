"""Measurements as they are kept: one JSON, in which parts of one machine and one state of the kernels come together."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from machine import cpu_model

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ("csrc", "src/quantkit/kernels", "CMakeLists.txt")


@dataclass(frozen=True)
class Record:
    """One median. `key` of two records of one measurement made twice is the same."""

    part: str
    format: str
    threads: int
    contender: str
    seconds: float
    work: float  # operations, bytes or weights, as `unit` says
    unit: str  # "GOP/s", "GB/s" or "M/s"
    n: int = 0  # rows of activations
    experts: int = 0
    mode: str = ""
    importance: bool = False
    repacked: bool = False
    error: float | None = None  # relative, of the result; what of is said where it is printed
    limit_seconds: float | None = None  # what the same work takes at the machine's ceiling
    limit: str = ""
    limit_rate: float | None = None  # of the ceiling that is named, as it was sampled between the turns

    @property
    def rate(self) -> float:
        return self.work / self.seconds / (1e6 if self.unit == "M/s" else 1e9)

    @property
    def share(self) -> float | None:
        return None if self.limit_seconds is None else self.limit_seconds / self.seconds

    @property
    def case(self) -> tuple[Any, ...]:
        """What sides are compared on."""
        return (self.part, self.format, self.threads, self.n, self.experts, self.importance)

    @property
    def key(self) -> tuple[Any, ...]:
        return (*self.case, self.contender, self.mode, self.repacked)


@dataclass
class Run:
    machine: str
    code: str
    contenders: dict[str, dict[str, Any]]
    ceilings: dict[str, dict[str, float]]  # by threads; the best of all runs
    records: list[Record]

    def add(self, other: Run) -> None:
        """Takes in another run of the same machine and code; what was measured again replaces what was there."""
        self.contenders |= other.contenders
        for threads, found in other.ceilings.items():
            mine = self.ceilings.setdefault(threads, {})
            for name, rate in found.items():
                mine[name] = max(rate, mine.get(name, 0.0))
        kept = {record.key: record for record in self.records} | {record.key: record for record in other.records}
        self.records = list(kept.values())

    def same(self, other: Run) -> bool:
        return (self.machine, self.code) == (other.machine, other.code)

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        head = {"machine": self.machine, "code": self.code, "contenders": self.contenders, "ceilings": self.ceilings}
        lines = [
            json.dumps({k: v for k, v in asdict(record).items() if v != _DEFAULTS.get(k)}) for record in self.records
        ]
        text = json.dumps(head, indent=1)[:-2] + ',\n "records": [\n  ' + ",\n  ".join(lines) + "\n ]\n}\n"
        path.write_text(text)


_DEFAULTS = {field.name: field.default for field in fields(Record)}


def load(path: Path) -> Run:
    found = json.loads(path.read_text())
    return Run(**{**found, "records": [Record(**record) for record in found["records"]]})


def collect(run: Run, path: Path) -> Run:
    """Keeps a run beside earlier ones of the same machine and code; others are dropped, with a line that says so."""
    if path.exists():
        earlier = load(path)
        if earlier.same(run):
            earlier.add(run)
            run = earlier
        else:
            print(f"{path.name}: {len(earlier.records)} figures of {earlier.machine}, {earlier.code} are dropped")
    run.save(path)
    return run


def code_state() -> str:
    """Which kernels these are."""
    return f"kernels of {last_commit(KERNELS)}"


def last_commit(paths: Sequence[str]) -> str:
    """The last commit that changed something in `paths`, and whether something uncommitted does."""
    commit = _git("log", "-1", "--format=%h", "--", *paths)
    dirty = _git("status", "--porcelain", "--untracked-files=no", "--", *paths)
    return f"commit {commit}" + (" and uncommitted changes" if dirty else "")


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(ROOT), *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


def this_run(
    contenders: dict[str, dict[str, Any]], ceilings: dict[str, dict[str, float]], records: Sequence[Record]
) -> Run:
    return Run(cpu_model(), code_state(), contenders, ceilings, list(records))
