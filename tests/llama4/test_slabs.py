"""Slabs cover every byte once, in the order of the files, and their targets cover every output row once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.llama4.checkpoints import MAVERICK, SCOUT, build, random_weights
from tests.llama4.gathering import gather

from quantkit.checkpoint import open_checkpoint
from quantkit.llama4 import Hyperparameters, Model, text_model

SMALL: dict[str, Any] = {
    "layers": 2,
    "moe_step": 2,
    "experts": 3,
    "hidden": 32,
    "heads": 2,
    "kv_heads": 1,
    "head_dim": 16,
    "expert_width": 48,
    "dense_width": 64,
}


def check_cover(model: Model, files: tuple[Path, ...]) -> None:
    """Every byte of every claimed tensor once, front to back, and every row of every output once."""
    places = [(files.index(slab.entry.file), slab.entry.offset_bytes + slab.offset_bytes) for slab in model.slabs]
    assert places == sorted(places)
    ends: dict[str, int] = {}
    for slab in model.slabs:
        assert slab.offset_bytes == ends.get(slab.entry.name, 0)
        ends[slab.entry.name] = slab.offset_bytes + slab.n_bytes
    sizes = {slab.entry.name: slab.entry.n_bytes for slab in model.slabs}
    assert ends == sizes
    rows: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for slab in model.slabs:
        for target in slab.targets:
            rows.setdefault((target.tensor, target.expert), []).append((target.row_start, target.n_rows))
    for output in model.outputs:
        if output.values is None:
            experts = output.shape[0] if len(output.shape) == 3 else 1
            n_rows = output.shape[-2] if len(output.shape) > 1 else 1
            for expert in range(experts):
                runs = sorted(rows.pop((output.name, expert)))
                assert [start for start, _ in runs] == [0, *np.cumsum([n for _, n in runs])[:-1]]
                assert sum(n for _, n in runs) == n_rows
    assert not rows


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("small") / "model", **SMALL, shard_bytes=20_000)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 200_000))
def test_any_slab_size_covers_everything_and_gives_the_same_values(small: Path, max_slab_bytes: int) -> None:
    cp = open_checkpoint(small)
    hp = Hyperparameters.from_checkpoint(cp)
    model = text_model(cp, hp, max_slab_bytes)
    check_cover(model, cp.files)
    whole = gather(cp, text_model(cp, hp))
    for name, array in gather(cp, model).items():
        np.testing.assert_array_equal(array, whole[name], name)
    for slab in model.slabs:
        if len(slab.entry.shape) == 2:
            assert slab.n_bytes <= max(max_slab_bytes, slab.entry.n_bytes // slab.entry.shape[0])


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_experts_are_transposed_and_split(tmp_path: Path, dtype: str) -> None:
    """Against the weights that the builder wrote, with nothing of ours between."""
    cp = open_checkpoint(build(tmp_path / "model", **SMALL, dtype=dtype, seed=3))
    arrays = gather(cp, text_model(cp, Hyperparameters.from_checkpoint(cp)))
    numpy_dtype = {"BF16": ml_dtypes.bfloat16, "F16": np.float16, "F32": np.float32}[dtype]

    def written(name: str, *shape: int) -> np.ndarray:
        name = f"language_model.model.layers.1.feed_forward.{name}"
        flat = np.concatenate(list(random_weights(name, shape, 0.02, 3)))
        return flat.reshape(shape).astype(numpy_dtype).astype(np.float32)

    fused = written("experts.gate_up_proj", 3, 32, 96)
    np.testing.assert_array_equal(arrays["blk.1.ffn_gate_exps.weight"], fused[:, :, :48].transpose(0, 2, 1))
    np.testing.assert_array_equal(arrays["blk.1.ffn_up_exps.weight"], fused[:, :, 48:].transpose(0, 2, 1))
    down = written("experts.down_proj", 3, 48, 32)
    np.testing.assert_array_equal(arrays["blk.1.ffn_down_exps.weight"], down.transpose(0, 2, 1))
    np.testing.assert_array_equal(arrays["blk.1.ffn_gate_inp.weight"], written("router.weight", 3, 32))


@pytest.mark.parametrize("fp8", [None, "[]", "[1]", "[out]", "[out,1]"])
def test_unfused_experts_become_the_same_outputs(tmp_path: Path, fp8: str | None) -> None:
    fused = open_checkpoint(build(tmp_path / "fused", **SMALL))
    unfused = open_checkpoint(build(tmp_path / "unfused", **SMALL, unfused=True, fp8=fp8, std=0.5))
    models = [text_model(cp, Hyperparameters.from_checkpoint(cp), 700) for cp in (fused, unfused)]
    assert models[0].outputs == models[1].outputs
    check_cover(models[1], unfused.files)
    arrays = gather(unfused, models[1])
    for kind, shape in (("gate", (48, 32)), ("up", (48, 32)), ("down", (32, 48))):
        for expert in range(3):
            name = f"language_model.model.layers.1.feed_forward.experts.{expert}.{kind}_proj.weight"
            weights = np.concatenate(list(random_weights(name, shape, 0.5, 0))).reshape(shape)
            array = arrays[f"blk.1.ffn_{kind}_exps.weight"][expert]
            # E4M3 has 3 bits of mantissa, and its smallest step is 2^-9 of a scale that maps the largest weight to 448
            tolerance = 2**-8 if fp8 is None else 2**-4
            assert np.abs(array - weights).max() <= tolerance * np.abs(weights).max()
            assert np.abs(array - weights).max() > 0


@pytest.mark.parametrize("shape", [SCOUT, MAVERICK], ids=["Scout", "Maverick"])
@pytest.mark.parametrize("unfused", [False, True])
def test_true_shapes_from_headers_alone(tmp_path: Path, shape: dict[str, Any], unfused: bool) -> None:
    checkpoint = build(tmp_path / "model", **{**shape, "layers": 4}, zeros=True, unfused=unfused, shard_bytes=5 * 10**9)
    cp = open_checkpoint(checkpoint)
    model = text_model(cp, Hyperparameters.from_checkpoint(cp))
    check_cover(model, cp.files)
    assert len(cp.files) > 1
    largest = max(slab.n_bytes for slab in model.slabs)
    # one expert's gate and up together, the same for both models; matrices of one expert are cut
    assert largest == (64 * 2**20 if unfused else 5120 * 16384 * 2)


@pytest.mark.parametrize(
    ("shape", "tensors", "weights"), [(SCOUT, 627, 107.77e9), (MAVERICK, 531, 400.71e9)], ids=["Scout", "Maverick"]
)
def test_whole_models_have_the_known_size(tmp_path: Path, shape: dict[str, Any], tensors: int, weights: float) -> None:
    cp = open_checkpoint(build(tmp_path / "model", **shape, zeros=True, shard_bytes=50 * 10**9))
    model = text_model(cp, Hyperparameters.from_checkpoint(cp))
    assert len(model.outputs) == tensors
    total = sum(int(np.prod(output.shape, dtype=np.int64)) for output in model.outputs)
    assert total == pytest.approx(weights, rel=1e-4)
    sizes = {field.key: field.value for field in model.metadata}
    assert sizes["general.size_label"] == f"{shape['experts']}x17B"
