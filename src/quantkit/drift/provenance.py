"""What it takes to repeat a drift: versions, machine, options and files beside the models."""

from __future__ import annotations

import hashlib
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from quantkit import __version__
from quantkit.drift import intervals
from quantkit.errors import CheckpointError
from quantkit.kernels.blas import blas_libraries
from quantkit.kernels.tier import current_tier

_HASHED_BYTES = 1 << 22


@dataclass(frozen=True)
class Blas:
    """numpy's library for matrices; texts are empty where it does not say."""

    name: str
    version: str
    architecture: str


@dataclass(frozen=True)
class Machine:
    """What float32 is rounded by: on another one, a token that lies between two experts may go to the other.

    Args:
        tier: the instruction set that quantkit computed with.
        blas: that numpy has; more than one where it is the system's and other packages brought theirs.
        platform: system, processor and C library; a kernel's release decides no number.
    """

    tier: str
    blas: tuple[Blas, ...]
    platform: str

    @classmethod
    def here(cls) -> Machine:
        blas = tuple(Blas(*one) for one in blas_libraries())
        return cls(
            current_tier(), blas, " ".join((platform.system(), platform.machine(), *platform.libc_ver())).strip()
        )


@dataclass(frozen=True)
class Statistics:
    """An importance matrix.

    Args:
        file: as it was named.
        sha256: of the whole file.
    """

    file: str
    sha256: str

    @classmethod
    def of(cls, path: Path) -> Statistics:
        return cls(str(path), file_sha256(path))


@dataclass(frozen=True)
class Options:
    """What numbers depend on beside the files. Threads and memory do not show in any.

    Args:
        tokens: that were asked for; None for all of the text.
        context: of a chunk; None without text, or where a file of log-probabilities has its own.
        score: "all", or "second-half" of each chunk; None without text.
        weights: were compared.
        local: each layer was also measured by itself.
        draws, seed: of the bootstrap behind intervals.
    """

    tokens: int | None
    context: int | None
    score: str | None
    weights: bool
    local: bool
    draws: int = intervals.DRAWS
    seed: int = intervals.SEED


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while piece := file.read(_HASHED_BYTES):
                digest.update(piece)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Of what numbers depend on."""
    packages = {name: version(name) for name in ("gguf", "tokenizers")}
    return {"quantkit": __version__, "python": platform.python_version(), "numpy": np.__version__, **packages}
