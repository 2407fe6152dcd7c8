"""Baselines: a JSON file beside the test that says how accurate a quantization was, and how much worse it may get."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit import __version__

SCHEMA = 1
ABOUT = "Accuracy of quantizations, written by pytest --quantkit-update. Edit nothing but tolerances_percent."
TOLERANCES_PERCENT = {"rmse": 0.1, "sqnr_db": 0.1, "cosine_distance": 0.2, "max_abs": 0.1}
"""By how much each metric may get worse, in percent of the baseline. quantkit's bytes are the same on every machine, so
this covers no more than the summing of the metrics and the digits that are stored."""
HIGHER_IS_BETTER = {"sqnr_db"}
DIGITS = 6

Entry = dict[str, Any]
"""What is stored of one tensor: the four metrics, "shape" and "weights_sha256"."""


class BaselineError(Exception):
    """The file cannot be used, or a test does not belong to it. The message says what to do."""


@dataclass(frozen=True)
class Change:
    """One metric that was measured again."""

    metric: str
    baseline: float
    now: float
    tolerance_percent: float

    @property
    def percent(self) -> float:
        """Change relative to the baseline; infinite from zero."""
        if self.now == self.baseline:
            return 0.0
        if self.baseline == 0:
            return float("inf") if self.now > 0 else float("-inf")
        return 100 * (self.now - self.baseline) / abs(self.baseline)

    @property
    def worse(self) -> bool:
        if self.now != self.now:
            return True
        loss = -self.percent if self.metric in HIGHER_IS_BETTER else self.percent
        return loss > self.tolerance_percent

    @property
    def better(self) -> bool:
        gain = self.percent if self.metric in HIGHER_IS_BETTER else -self.percent
        return gain > self.tolerance_percent


class Baseline:
    """The file beside one test file: {test: {tensor: entry}}."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.version = ""
        self.tolerances = dict(TOLERANCES_PERCENT)
        self.results: dict[str, dict[str, Entry]] = {}
        self.exists = path.exists()
        if self.exists:
            self._read()

    @classmethod
    def beside(cls, test_file: Path) -> Baseline:
        """tests/test_accuracy.py has tests/test_accuracy.quantkit.json."""
        return cls(test_file.with_suffix(".quantkit.json"))

    def _read(self) -> None:
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            if content["schema"] != SCHEMA:
                raise BaselineError(
                    f"{self.path} has schema {content['schema']}, and quantkit {__version__} reads {SCHEMA}"
                )
            self.version = str(content["quantkit"])
            given = {str(metric): float(percent) for metric, percent in content["tolerances_percent"].items()}
            if given.keys() != self.tolerances.keys() or min(given.values()) < 0:
                raise ValueError(f"tolerances_percent wants {', '.join(self.tolerances)}, none negative")
            self.tolerances = given
            for test, tensors in content["results"].items():
                self.results[test] = {}
                for tensor, entry in tensors.items():
                    numbers = {metric: float(entry[metric]) for metric in TOLERANCES_PERCENT}
                    self.results[test][tensor] = {
                        **numbers,
                        "shape": str(entry["shape"]),
                        "weights_sha256": str(entry["weights_sha256"]),
                    }
        except (ValueError, KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
            raise BaselineError(
                f"{self.path} is no baseline that quantkit can read ({type(error).__name__}: {error})\n"
                "Restore it, or delete it and run pytest with --quantkit-update."
            ) from None

    def write(self) -> None:
        """Whole or not at all."""
        content = {
            "about": ABOUT,
            "quantkit": __version__,
            "schema": SCHEMA,
            "tolerances_percent": self.tolerances,
            "results": self.results,
        }
        part = self.path.with_name(f"{self.path.name}.{os.getpid()}.part")
        part.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        part.replace(self.path)

    def compare(self, stored: Entry, now: Entry) -> list[Change]:
        return [Change(metric, stored[metric], now[metric], self.tolerances[metric]) for metric in TOLERANCES_PERCENT]


def make_entry(metrics: dict[str, float], shape: tuple[int, ...], weights: bytes) -> Entry:
    """Numbers to six digits, which is what is compared too."""
    return {
        **{metric: float(f"{metrics[metric]:.{DIGITS}g}") for metric in TOLERANCES_PERCENT},
        "shape": " x ".join(map(str, shape)),
        "weights_sha256": hashlib.sha256(weights).hexdigest()[:16],
    }
