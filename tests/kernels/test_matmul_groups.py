"""Products with group-quantized weights against float64."""

from __future__ import annotations

import numpy as np
import pytest
from tests.kernels.fast_bound import fast_bound, operand
from tests.kernels.test_matmul import assert_within_bound, gauss

from quantkit.errors import NonFiniteError, UsageError
from quantkit.kernels import QuantizedTensor, build_info, dequantize_groups, matmul_groups, quantize_groups

TIERS = build_info()["tiers_supported"]


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("scale_dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("group_size", [32, 64, 128, -1])
@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_groups_within_the_bounds(
    bits: int, group_size: int, scale_dtype: str, tier: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUANTKIT_TIER", tier)
    packed, scales, biases = quantize_groups(gauss((37, 384)), bits, group_size, scale_dtype=scale_dtype)  # type: ignore[arg-type]
    w = dequantize_groups(packed, scales, biases, bits, group_size)
    for n in (0, 1, 3, 20):
        x = gauss((n, 384), 3)
        y = matmul_groups(x, packed, scales, biases, bits=bits, group_size=group_size, threads=2)
        assert_within_bound(y, x, w, 384)
        if bits in (4, 8):
            fast = matmul_groups(x, packed, scales, biases, bits=bits, group_size=group_size, mode="fast")
            error = np.abs(fast - x.astype(np.float64) @ w.T.astype(np.float64))
            name = f"int{bits}_g{group_size}" if group_size > 0 else f"int{bits}_row"
            assert (error <= fast_bound(x, operand(QuantizedTensor(packed, name, scales, biases)))).all()
            assert n == 0 or error.max() > 1e-4, "as good as exact: not the int8 product"


def test_one_dimension_and_strides() -> None:
    packed, scales, biases = quantize_groups(gauss((6, 128)))
    x = gauss((1, 128)).astype(np.float16)
    y = matmul_groups(x[0], packed, scales, biases)
    assert y.shape == (6,)
    apart = [np.repeat(array, 2, axis=0)[::2] for array in (packed, scales, biases)]
    for mode in ("exact", "fast"):
        expected = matmul_groups(x, packed, scales, biases, mode=mode)
        np.testing.assert_array_equal(matmul_groups(x, *apart, mode=mode), expected)


def test_wrong_usage_is_named() -> None:
    packed, scales, biases = quantize_groups(gauss((6, 128)), 3)
    x = gauss((2, 128))
    for wrong, words in [
        (lambda: matmul_groups(x[:, :64], packed, scales, biases, bits=3), r"\(n, 128\)"),
        (lambda: matmul_groups(x, packed, scales, biases, bits=3, mode="fast"), "4 or 8 bits, not 3"),
        (lambda: matmul_groups(x, packed, scales, biases, bits=3, mode="quick"), "unknown mode"),  # type: ignore[arg-type]
        (lambda: matmul_groups(x, packed.view(np.int32), scales, biases, bits=3), "int32"),
        (lambda: matmul_groups(x, packed[None], scales, biases, bits=3), r"\(1, 6, 12\)"),
        (lambda: matmul_groups(x, packed, scales[:, :1], biases, bits=3), "scales"),
        (lambda: matmul_groups(x, packed, scales[:5], biases, bits=3), "scales 5"),
        (lambda: matmul_groups(x, packed, scales, biases, bits=7), "bits is 7"),
        (lambda: matmul_groups(x, packed, scales, biases, bits=3, group_size=48), "group_size is 48"),
    ]:
        with pytest.raises(UsageError, match=words):
            wrong()
    scales[4, 1] = np.nan
    with pytest.raises(NonFiniteError, match="scales: nan at row 4, column 1"):
        matmul_groups(x, packed, scales, biases, bits=3)
