"""How far a conversion is, and what it came to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.convert.plan import Fallback


@dataclass(frozen=True)
class Progress:
    """A report during the walk, about ten a second.

    Args:
        done_bytes, total_bytes: source bytes dealt with (skipped on resume included) and in all.
        tensor: HF name of the tensor in work; "" before the first and after the last.
        bytes_per_second: source bytes of this run over its time so far; 0.0 before there is one.
        remaining_seconds: None while it cannot be told.
        resumed_bytes: of `done_bytes`, those that an earlier run had dealt with.
        written_bytes: payload bytes written by this run, all outputs together.
    """

    done_bytes: int
    total_bytes: int
    tensor: str
    bytes_per_second: float
    remaining_seconds: float | None
    resumed_bytes: int
    written_bytes: int


@dataclass(frozen=True)
class OutputResult:
    """One finished GGUF; `files` has more than one entry when it was split."""

    kind: str
    recipe: str
    files: tuple[Path, ...]
    n_bytes: int
    bits_per_weight: float
    nominal_bits_per_weight: float
    fallbacks: tuple[Fallback, ...]


@dataclass(frozen=True)
class ConvertResult:
    """What `convert` did.

    Args:
        seconds, cpu_seconds: wall clock and processor time of this run.
        peak_rss_bytes: of the process since its start, interpreter included.
        source_bytes: payload bytes of the checkpoint that belong to the outputs.
        read_bytes: of `source_bytes`, what this run read; the rest was done by an earlier one.
        n_slabs, resumed_slabs: pieces in all, and those that an earlier run had finished.
        statistics: the importance matrix that was collected before; None without `calibrate`.
    """

    outputs: tuple[OutputResult, ...]
    source_bytes: int
    read_bytes: int
    n_slabs: int
    resumed_slabs: int
    seconds: float
    cpu_seconds: float
    peak_rss_bytes: int
    warnings: tuple[str, ...] = ()
    statistics: Path | None = None

    def to_json(self) -> dict[str, Any]:
        """A plain dict for `json.dumps`, versioned like the plan's."""
        return {
            "schema": 1,
            "outputs": [
                {
                    "kind": output.kind,
                    "recipe": output.recipe,
                    "files": [str(path) for path in output.files],
                    "n_bytes": output.n_bytes,
                    "bits_per_weight": output.bits_per_weight,
                    "nominal_bits_per_weight": output.nominal_bits_per_weight,
                    "fallbacks": [vars(fallback) for fallback in output.fallbacks],
                }
                for output in self.outputs
            ],
            "source_bytes": self.source_bytes,
            "read_bytes": self.read_bytes,
            "n_slabs": self.n_slabs,
            "resumed_slabs": self.resumed_slabs,
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "peak_rss_bytes": self.peak_rss_bytes,
            "warnings": list(self.warnings),
            "statistics": None if self.statistics is None else str(self.statistics),
        }
