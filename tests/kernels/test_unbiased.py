"""weighting="unbiased": decoded blocks are as long along the weights as the weights themselves."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.kernels.matrices import matrices
from tests.kernels.test_error_vs_ggml import importance_of, trained_matrices

from quantkit.kernels import FORMATS, dequantize, quantize

SCALED = [name for name, found in FORMATS.items() if found.block_size > 1 and name != "mxfp4"]
NAME, TRAINED = max(trained_matrices(), key=lambda found: found[1].size)


def along(
    x: npt.NDArray[np.float32], packed: npt.NDArray[np.uint8], format: str, weights: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """sum(w x y) / sum(w x^2) per block, y as decoded."""
    n = FORMATS[format].block_size
    y = dequantize(packed, format).astype(np.float64)
    wide = x.astype(np.float64)
    return (weights * wide * y).reshape(-1, n).sum(1) / (weights * wide * wide).reshape(-1, n).sum(1)


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "importance"])
@pytest.mark.parametrize("format", SCALED)
def test_blocks_keep_their_length(format: str, weighted: bool) -> None:
    x = TRAINED
    importance = importance_of(x.shape[1]) if weighted else None
    weights = np.ones(x.shape[1]) if importance is None else importance.astype(np.float64)
    short = along(x, quantize(x, format, importance=importance), format, weights) - 1
    stretched = along(x, quantize(x, format, importance=importance, weighting="unbiased"), format, weights) - 1
    # what is left is the rounding of the scales to f16; those of iq4_xs are below its normal range here
    assert np.abs(stretched).max() < (2**-6 if format == "iq4_xs" else 2**-9)
    assert abs(stretched.mean()) < 2**-13
    assert abs(stretched.mean()) < abs(short.mean()) or FORMATS[format].block_bytes * 8 / FORMATS[format].block_size > 6


@pytest.mark.parametrize("format", SCALED)
def test_codes_are_those_of_plain_and_the_error_grows_by_its_share(format: str) -> None:
    x = TRAINED
    plain, unbiased = (quantize(x, format, weighting=weighting) for weighting in ("plain", "unbiased"))
    n = FORMATS[format].block_bytes
    changed = np.flatnonzero((plain != unbiased).reshape(-1, n).any(axis=0))
    assert len(changed) <= (4 if "_1" in format or format in ("q2_k", "q4_k", "q5_k") else 2)  # f16 scales alone
    before, after = (np.square(dequantize(p, format) - x).sum(dtype=np.float64) for p in (plain, unbiased))
    share = before / np.square(x, dtype=np.float64).sum()
    assert after <= before * (1 + 2 * share + 2e-3)


@pytest.mark.parametrize("format", SCALED)
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_hard_matrices_stay_finite_and_within_a_quarter(format: str, data: st.DataObject) -> None:
    x = data.draw(matrices(FORMATS[format].block_size))
    plain, unbiased = (
        dequantize(quantize(x, format, weighting=weighting), format).astype(np.float64)
        for weighting in ("plain", "unbiased")
    )
    assert np.isfinite(unbiased).all()
    longer, length = (np.abs(y).reshape(-1, FORMATS[format].block_size).max(1) for y in (unbiased, plain))
    # scales below the normal range of f16 are rounded by up to half their last place, times scale and code
    assert (longer <= length * 1.26 + 2**-25 * 63 * 127).all()


def test_mxfp4_has_no_scale_to_stretch() -> None:
    np.testing.assert_array_equal(quantize(TRAINED, "mxfp4", weighting="unbiased"), quantize(TRAINED, "mxfp4"))
