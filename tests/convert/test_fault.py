"""A weight that no format can hold is named by file, tensor, expert and full index; nothing is left behind."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from quantkit.convert import Tuning, convert
from quantkit.errors import NonFiniteError

PREFIX = "language_model.model.layers.2."
NAN, INFINITY, LARGE = 0x7FC0, 0x7F80, 0x4800  # bf16; the last is 131072, too much for f16


def plant(folder: Path, name: str, index: tuple[int, ...], bits: int) -> str:
    """Write one bf16 weight; returns the shard's name."""
    shard = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"][name]
    path = folder / shard
    data = bytearray(path.read_bytes())
    n_header = int.from_bytes(data[:8], "little")
    info = json.loads(data[8 : 8 + n_header])[name]
    place = 8 + n_header + info["data_offsets"][0] + 2 * int(np.ravel_multi_index(index, info["shape"]))
    data[place : place + 2] = bits.to_bytes(2, "little")
    path.write_bytes(data)
    return str(shard)


@pytest.mark.parametrize("tuning", [Tuning(), Tuning(slab_bytes=5000, chunk_bytes=3000)])
@pytest.mark.parametrize(
    ("name", "index", "where"),
    [
        ("feed_forward.experts.gate_up_proj", (1, 17, 200), "[1, 17, 200] (expert 1)"),  # gate
        ("feed_forward.experts.gate_up_proj", (3, 255, 511), "[3, 255, 511] (expert 3)"),  # up, the last weight
        ("feed_forward.experts.down_proj", (2, 0, 90), "[2, 0, 90] (expert 2)"),
        ("self_attn.q_proj.weight", (131, 7), "[131, 7]"),
        ("feed_forward.router.weight", (3, 255), "[3, 255]"),
        ("input_layernorm.weight", (100,), "[100]"),
    ],
)
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_place(
    name: str, index: tuple[int, ...], where: str, value: str, tuning: Tuning, own_tiny: Path, tmp_path: Path
) -> None:
    bits = NAN if value == "nan" else INFINITY
    shard = plant(own_tiny, PREFIX + name, index, bits)
    with pytest.raises(NonFiniteError) as caught:
        convert(own_tiny, tmp_path / "out.gguf", "q4_k_m", tuning=tuning)
    assert caught.value.what == f"{own_tiny / shard}: {PREFIX}{name}{where}: weight {value} is not finite"
    assert caught.value.hint
    assert not list(tmp_path.glob("out*"))


def test_beyond_the_format(own_tiny: Path, tmp_path: Path) -> None:
    plant(own_tiny, PREFIX + "self_attn.k_proj.weight", (3, 4), LARGE)
    convert(own_tiny, tmp_path / "wide.gguf", "bf16")
    with pytest.raises(NonFiniteError, match=r"k_proj\.weight\[3, 4\]: weight 131072\.0 is beyond .* f16"):
        convert(own_tiny, tmp_path / "narrow.gguf", "f16")
