"""numpy's BLAS, the one that we bound: other packages that tests import bring their own."""

from __future__ import annotations

from threadpoolctl import threadpool_info


def numpy_blas_threads() -> set[int]:
    found = {
        one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas" and "numpy" in one["filepath"]
    }
    assert found, "numpy has no BLAS of its own whose threads can be set"
    return found
