"""Which BLAS numpy has does not depend on what else a process has loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from quantkit.kernels import blas

SHOW = """
import json
from threadpoolctl import threadpool_info
from quantkit.kernels.blas import blas_identity, blas_libraries
print(json.dumps([blas_libraries(), blas_identity(), [one["user_api"] for one in threadpool_info()].count("blas")]))
"""


def test_another_package_s_is_not_named() -> None:
    def shown(first: str) -> Any:
        run = subprocess.run([sys.executable, "-c", first + SHOW], capture_output=True, text=True, check=True)
        return json.loads(run.stdout)

    *own, n_own = shown("")
    *beside, n_beside = shown("import scipy.linalg")
    assert n_beside > n_own  # scipy brings its own
    assert beside == own
    assert len(own[0]) == 1


def test_where_numpy_brings_none_all_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    def library(api: str, version: str | None, path: str) -> dict[str, Any]:
        return {"user_api": api, "internal_api": "openblas", "version": version, "filepath": path}

    found = [library("blas", "0.3", "/usr/lib/libopenblas.so"), library("openmp", "1", "/usr/lib/libgomp.so")]
    found.append(library("blas", None, "/usr/lib/libblas.so"))
    monkeypatch.setattr(blas, "_libraries", lambda: SimpleNamespace(info=lambda: found))
    assert blas.blas_libraries() == [("openblas", "0.3", ""), ("openblas", "", "")]
