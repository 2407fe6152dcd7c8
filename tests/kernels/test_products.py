"""Fast products of hard weights and activations, whatever hypothesis draws: within the derived bound of float64, the
same bits on every tier, and by expert what each expert gives alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.kernels.fast_bound import Floats, fast_bound, operand

from quantkit.kernels import FORMATS, QuantizedTensor, _machine
from quantkit.kernels.group_format import find_group_format
from quantkit.testing import activations, supported_tiers, use_tier, weight_matrices

TIERS: list[str] = _machine.matmul_tiers()
BLOCKS = [name for name, found in FORMATS.items() if found.block_size > 1]
GROUPS = ["int4_g32", "int4_g64", "int4_row", "int8_g64", "int8_g128", "int8_row"]


def multiply(x: Floats, qt: QuantizedTensor, tier: str, threads: int) -> Floats:
    """By the machine room's door, which knows tiers that QUANTKIT_TIER does not: avx512-maddubs."""
    rows, cols = qt.shape
    out = np.full((len(x), rows), np.nan, np.float32)
    group = find_group_format(qt.format)
    packed, flat = np.ascontiguousarray(qt.packed).reshape(-1), out.reshape(-1)
    if group is None:
        assert _machine.matmul_fast(tier, qt.format, x.reshape(-1), packed, rows, cols, flat, threads)
    else:
        assert qt.scales is not None
        assert qt.biases is not None
        sizes = group.bits, group.group_cols(cols)
        scales = qt.scales.reshape(-1), qt.biases.reshape(-1)
        assert _machine.matmul_fast_groups(tier, *sizes, x.reshape(-1), packed, *scales, rows, cols, flat, threads)
    return out


@pytest.mark.parametrize("name", [*BLOCKS, *GROUPS])
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_within_the_bound_and_the_same_everywhere(name: str, data: st.DataObject) -> None:
    group = find_group_format(name)
    block = max(32, group.group_size) if group else FORMATS[name].block_size
    # more columns than a tile of weights has, and numbers of rows that fill no panel
    matrix = weight_matrices("f32", min_block=block, max_blocks=768 // block, max_rows=12)
    w = data.draw(matrix)
    x = data.draw(activations(w.shape[1], max_rows=9))
    qt = QuantizedTensor.quantize(w, name)
    expected = multiply(x, qt, TIERS[0], 1)
    error = np.abs(expected - x.astype(np.float64) @ qt.dequantize().astype(np.float64).T)
    bound = fast_bound(x, operand(qt))
    assert (error <= bound).all(), f"{np.max(error / np.where(bound > 0, bound, 1)):.3f} of the bound"
    for tier in TIERS:
        for threads in (1, 2):
            got = multiply(x, qt, tier, threads)
            np.testing.assert_array_equal(got.view(np.uint32), expected.view(np.uint32), err_msg=f"tier {tier}")


@pytest.mark.parametrize("name", [*BLOCKS, *GROUPS])
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_experts_give_what_each_gives_alone(name: str, data: st.DataObject) -> None:
    group = find_group_format(name)
    block = max(32, group.group_size) if group else FORMATS[name].block_size
    w = data.draw(weight_matrices("f32", min_block=block, max_blocks=512 // block, max_rows=12))
    x = data.draw(activations(w.shape[1], max_rows=16))
    n_experts = data.draw(st.integers(1, 4))
    ids = np.array(data.draw(st.lists(st.integers(0, n_experts - 1), min_size=len(x), max_size=len(x))))
    router = np.linspace(0.1, 1, len(x), dtype=np.float32)
    scale = router if data.draw(st.booleans()) else None
    qt = QuantizedTensor.quantize(np.stack([np.roll(w, i, axis=1) for i in range(n_experts)]), name)
    for tier in supported_tiers():
        with use_tier(tier):
            y = qt.matmul_experts(x, ids, scale=scale, mode="fast")
            for expert in np.unique(ids):
                mine = ids == expert
                rows = x[mine] if scale is None else x[mine] * scale[mine, None]
                np.testing.assert_array_equal(y[mine], qt[int(expert)].matmul(rows, mode="fast"))
