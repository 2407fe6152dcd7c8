"""How many threads numpy's BLAS takes while we call it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

_lock = Lock()
_inside = 0
_limit: Any = None


@cache
def _libraries() -> Any:
    from threadpoolctl import ThreadpoolController  # looks for the process's libraries: milliseconds, once

    return ThreadpoolController()


def blas_libraries() -> list[tuple[str, str, str]]:
    """(name, version, architecture) of numpy's BLAS; empty texts where it does not say.

    It lies in numpy's folder or beside it, in numpy.libs. Where none does, it is the system's, and whatever BLAS other
    packages have brought into this process cannot be told from it: all are given.
    """
    import numpy as np

    found = [one for one in _libraries().info() if one["user_api"] == "blas"]
    numpy_folder = str(Path(np.__file__).resolve().parent)
    own = [one for one in found if one["filepath"].startswith(numpy_folder)]
    return [(one["internal_api"], one["version"] or "", one.get("architecture") or "") for one in own or found]


def blas_identity() -> str:
    """Which BLAS computes, and for which processor: with another, products round otherwise."""
    import numpy as np

    found = (" ".join(one) for one in blas_libraries())
    return f"numpy {np.__version__}, {', '.join(found) or 'BLAS of the system'}"


@contextmanager
def blas_threads(count: int) -> Iterator[None]:
    """Set the number of threads of BLAS for the length of a `with` block; 0 leaves it as it is.

    The number is one for the whole process. Where blocks overlap in time, that of the first one holds until the last
    has left, so that none puts back a number that another had set.
    """
    global _inside, _limit
    if not count:
        yield
        return
    with _lock:
        if not _inside:
            _limit = _libraries().limit(limits=count, user_api="blas")
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                _limit.restore_original_limits()
                _limit = None
