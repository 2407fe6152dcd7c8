"""Decoding equals the `gguf` package bit for bit, on random bytes and on every kind of scale."""

from __future__ import annotations

import gguf
import numpy as np
import numpy.typing as npt
import pytest

from quantkit.kernels import FORMATS, build_info, dequantize
from quantkit.testing.layout import F16_SCALES

SPECIAL = [0, 1, 2, 0x3FF, 0x400, 0x401, 0x3C00, 0x7BFF, 0x7C00, 0x7C01, 0x7DFF, 0x7E00, 0x7FFF]
SPECIAL += [half | 0x8000 for half in SPECIAL]

TIERS = build_info()["tiers_supported"]
Bits = npt.NDArray[np.uint32]


def blocks_of(name: str) -> npt.NDArray[np.uint8]:
    """Rows of random blocks, then one block for each combination of two special scales."""
    found = FORMATS[name]
    rng = np.random.default_rng(7)
    packed = rng.integers(0, 256, (1000 + len(SPECIAL) ** 2, found.block_bytes), dtype=np.uint8)
    for place, offset in enumerate(F16_SCALES[name]):
        repeat, tile = (len(SPECIAL), 1) if place else (1, len(SPECIAL))
        halves = np.tile(np.repeat(np.array(SPECIAL, "<u2"), repeat), tile)
        packed[1000:, offset : offset + 2] = halves.view(np.uint8).reshape(-1, 2)
    return packed


def bits_nan_as_one(values: npt.NDArray[np.float32]) -> Bits:
    return np.where(np.isnan(values), np.float32(np.nan), values).view(np.uint32)


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("name", [name for name, found in FORMATS.items() if found.block_size > 1])
def test_decode_equals_the_gguf_package(name: str, tier: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANTKIT_TIER", tier)
    packed = blocks_of(name)
    with np.errstate(all="ignore"):
        expected = gguf.dequantize(packed, gguf.GGMLQuantizationType(FORMATS[name].ggml_type))
    got = dequantize(packed, name)
    assert got.shape == expected.shape
    np.testing.assert_array_equal(bits_nan_as_one(got), bits_nan_as_one(expected))


@pytest.mark.parametrize("name", ["f32", "f16", "bf16"])
def test_every_scalar_decodes_to_its_value(name: str) -> None:
    size = FORMATS[name].block_bytes
    everything = np.arange(0, 2**32, 65521 if size == 4 else 65536, dtype=np.uint64).astype(np.uint32)
    if size == 2:
        everything = (everything >> 16).astype(np.uint16)
    packed = everything.view(np.uint8).reshape(1, -1)
    expected = {
        "f32": lambda: everything.view(np.float32),
        "f16": lambda: everything.view(np.float16).astype(np.float32),
        "bf16": lambda: (everything.astype(np.uint32) << 16).view(np.float32),
    }[name]()
    np.testing.assert_array_equal(bits_nan_as_one(dequantize(packed, name)[0]), bits_nan_as_one(expected))


@pytest.mark.parametrize("name", list(FORMATS))
def test_threads_do_not_show(name: str) -> None:
    found = FORMATS[name]
    rows = np.random.default_rng(3).integers(0, 256, (3, 90000 // found.block_size * found.block_bytes), dtype=np.uint8)
    one = dequantize(rows, name, threads=1)
    np.testing.assert_array_equal(one.view(np.uint32), dequantize(rows, name, threads=3).view(np.uint32))
    np.testing.assert_array_equal(one[1].view(np.uint32), dequantize(rows[1], name).view(np.uint32))
