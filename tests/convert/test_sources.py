"""Every kind of source that is read, in f32 and a block format: dtypes, fused and unfused, fp8 scales, tied, dense."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from tests.convert.source import text_tensors
from tests.llama4.checkpoints import SCOUT_ROPE_SCALING, build

from quantkit import kernels
from quantkit.convert import Tuning, convert
from quantkit.convert.weighting import weighting

SOURCES: dict[str, dict[str, Any]] = {
    "f16": {"dtype": "F16"},
    "f32": {"dtype": "F32"},
    "causal": {"conditional": False},
    "tied": {"tied": True},
    "interleaved": {"layers": 4, "moe_step": 2, "experts": 8},
    "one-expert": {"experts": 1},
    "unfused": {"unfused": True},
    "fp8-fused": {"fp8": "[]"},
    "fp8-tensor": {"fp8": "[1]", "unfused": True},
    "fp8-row": {"fp8": "[out]", "unfused": True, "scale_dtype": "BF16"},
    "fp8-column": {"fp8": "[out,1]", "unfused": True, "scale_dtype": "F16"},
    "rope": {"rope_scaling": SCOUT_ROPE_SCALING, "transformers5": True},
    "sharded": {"shard_bytes": 300_000},
    "odd-sizes": {"hidden": 160, "head_dim": 32, "heads": 5, "kv_heads": 1, "expert_width": 96, "experts": 3},
}


@pytest.mark.parametrize("tuning", [Tuning(), Tuning(slab_bytes=30_000, chunk_bytes=10_000)], ids=["whole", "cut"])
@pytest.mark.parametrize("name", list(SOURCES))
def test_every_tensor(name: str, tuning: Tuning, tmp_path: Path) -> None:
    checkpoint = build(tmp_path / "model", **{"layers": 2, **SOURCES[name]})
    types = ["f32", "q4_0"]
    convert(checkpoint, tmp_path / "{type}.gguf", types, tuning=tuning)
    expected = text_tensors(checkpoint)
    for recipe in types:
        read = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / f"{recipe}.gguf").tensors}
        extra = {"rope_freqs.weight"} if name == "rope" else set()
        assert set(read) - set(expected) == extra
        for tensor_name, values in expected.items():
            tensor = read[tensor_name]
            format = tensor.tensor_type.name.lower()
            if format == "f32":
                assert np.array_equal(tensor.data.reshape(values.shape), values), tensor_name
            else:
                packed = kernels.quantize(np.ascontiguousarray(values), format, weighting=weighting(format))
                assert np.array_equal(tensor.data.reshape(-1).view(np.uint8), packed.reshape(-1)), tensor_name
    if name == "rope":
        factors = next(t for t in gguf.GGUFReader(tmp_path / "f32.gguf").tensors if t.name == "rope_freqs.weight").data
        assert factors.shape == (32,)
        assert factors[0] == 1.0
        assert factors[-1] == 16.0
