"""Each tensor of a checkpoint is claimed exactly once; what is missing, unknown, misshapen or unreadable is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.llama4.checkpoints import build

from quantkit.checkpoint import open_checkpoint
from quantkit.errors import CheckpointError, UnsupportedModelError
from quantkit.llama4 import Hyperparameters, Model, text_model, vision_model
from quantkit.llama4.claims import nearest

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
    "zeros": True,
}
ROOT = "language_model.model.layers.1."
Header = dict[str, Any]


def text(checkpoint: Path) -> Model:
    cp = open_checkpoint(checkpoint)
    return text_model(cp, Hyperparameters.from_checkpoint(cp))


def with_header(folder: Path, change: Callable[[Header], object], **options: Any) -> Path:
    """A checkpoint of zeros whose tensors have been renamed, dropped, added or reshaped; places are made anew."""
    checkpoint = build(folder / "model", **{**SMALL, **options})
    file = checkpoint / "model.safetensors"
    data = file.read_bytes()
    header: Header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    change(header)
    sizes = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "U8": 1, "I32": 4}
    place = 0
    for name, entry in header.items():
        if name != "__metadata__":
            n_bytes = sizes[entry["dtype"]]
            for extent in entry["shape"]:
                n_bytes *= extent
            entry["data_offsets"] = [place, place := place + n_bytes]
    blob = json.dumps(header).encode()
    with file.open("wb") as out:
        out.write(len(blob).to_bytes(8, "little") + blob)
        out.truncate(8 + len(blob) + place)
    return checkpoint


def add(name: str, shape: list[int], dtype: str = "BF16") -> Callable[[Header], object]:
    return lambda header: header.update({name: {"dtype": dtype, "shape": shape}})


def alter(name: str, **changes: Any) -> Callable[[Header], object]:
    return lambda header: header[name].update(changes)


def drop(name: str) -> Callable[[Header], object]:
    return lambda header: header.pop(name)


def rename(old: str, new: str) -> Callable[[Header], object]:
    return lambda header: header.update({new: header.pop(old)})


def test_every_tensor_is_claimed_by_one_of_the_two_models(tmp_path: Path) -> None:
    cp = open_checkpoint(build(tmp_path / "model", **SMALL, vision=True))
    hp = Hyperparameters.from_checkpoint(cp)
    texts = {slab.entry.name for slab in text_model(cp, hp).slabs}
    visions = {slab.entry.name for slab in vision_model(cp, hp).slabs}
    assert texts | visions == set(cp.tensors)
    assert not texts & visions


def test_missing_tensors_are_named_and_counted(tmp_path: Path) -> None:
    def change(header: Header) -> None:
        for name in [name for name in header if "self_attn.k_proj" in name]:
            del header[name]

    with pytest.raises(CheckpointError, match=r"layers\.0\.self_attn\.k_proj\.weight \[16, 32\].*and 1 more"):
        text(with_header(tmp_path, change))


def test_unknown_tensors_are_named_with_file_and_nearest(tmp_path: Path) -> None:
    checkpoint = with_header(tmp_path, add(f"{ROOT}self_attn.q_proj.bias", [32]))
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: tensor {ROOT}self_attn\.q_proj\.bias") as caught:
        text(checkpoint)
    assert f"{ROOT}self_attn.q_proj.weight" in caught.value.hint


@pytest.mark.parametrize(
    "name",
    [
        "language_model.model.layers.2.input_layernorm.weight",
        "language_model.model.layers.1.feed_forward.gate_proj.weight",
        "model.norm.weight",
        "vision_model.class_embedding",  # config.json has no vision_config
        f"{ROOT}self_attn.q_proj.weight_scale",  # a scale beside bf16 weights
        f"{ROOT}feed_forward.experts.0.gate_proj.weight",  # beside the fused tensor
        f"{ROOT}self_attn.q_norm.weight",
    ],
)
def test_left_over_tensors_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match="is not one of Llama 4's"):
        text(with_header(tmp_path, add(name, [32])))


def test_tied_embeddings_leave_no_room_for_a_head(tmp_path: Path) -> None:
    model = text(build(tmp_path / "tied", **SMALL, tied=True))
    assert "output.weight" not in {output.name for output in model.outputs}
    with pytest.raises(CheckpointError, match="lm_head"):
        text(with_header(tmp_path, add("language_model.lm_head.weight", [1024, 32]), tied=True))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        (f"{ROOT}feed_forward.experts.gate_up_proj", [3, 96, 32]),  # output-major
        (f"{ROOT}feed_forward.experts.down_proj", [4, 48, 32]),
        (f"{ROOT}self_attn.o_proj.weight", [32, 33]),
        (f"{ROOT}feed_forward.router.weight", [32, 3]),
        ("language_model.model.embed_tokens.weight", [1023, 32]),
        ("language_model.model.norm.weight", [32, 1]),
    ],
)
def test_wrong_shapes_are_named_with_both(tmp_path: Path, name: str, shape: list[int]) -> None:
    with pytest.raises(CheckpointError) as caught:
        text(with_header(tmp_path, alter(name, shape=shape)))
    assert "model.safetensors" in caught.value.what
    assert name in caught.value.what
    assert str(shape) in caught.value.what


@pytest.mark.parametrize("dtype", ["F64", "F8_E5M2", "I32", "U8"])
def test_unsupported_dtypes_are_named(tmp_path: Path, dtype: str) -> None:
    with pytest.raises(UnsupportedModelError, match=rf"q_proj\.weight is {dtype}"):
        text(with_header(tmp_path, alter(f"{ROOT}self_attn.q_proj.weight", dtype=dtype)))


def test_fp8_norms_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"norm\.weight is F8_E4M3"):
        text(with_header(tmp_path, alter("language_model.model.norm.weight", dtype="F8_E4M3")))


SCALE = f"{ROOT}self_attn.q_proj.weight_scale"


@pytest.mark.parametrize("shape", ["[]", "[1]", "[out]", "[out,1]"])
def test_fp8_scales_of_tensors_and_rows_come_with_their_slabs(tmp_path: Path, shape: str) -> None:
    cp = open_checkpoint(build(tmp_path / "model", **SMALL, unfused=True, fp8=shape))
    model = text_model(cp, Hyperparameters.from_checkpoint(cp))
    scaled = [slab for slab in model.slabs if slab.entry.dtype == "F8_E4M3"]
    assert {slab.entry.name for slab in scaled} | {slab.scale.name for slab in scaled if slab.scale} | {
        slab.entry.name for slab in model.slabs
    } == set(cp.tensors)
    for slab in model.slabs:
        assert (slab.scale is not None) == (slab.entry.dtype == "F8_E4M3")
        assert slab.scale is None or slab.scale.name == f"{slab.entry.name}_scale"


@pytest.mark.parametrize("name", ["gate_up_proj_scale", "gate_up_proj.weight_scale", "gate_up_proj_weight_scale"])
def test_scales_of_fused_experts_by_any_of_their_names(tmp_path: Path, name: str) -> None:
    experts = f"{ROOT}feed_forward.experts."
    model = text(with_header(tmp_path, rename(f"{experts}gate_up_proj_scale", experts + name), fp8="[]"))
    scales = {slab.scale.name for slab in model.slabs if slab.scale and slab.entry.name.endswith("gate_up_proj")}
    assert scales == {experts + name}


def test_scales_of_activations_are_known_and_left_out(tmp_path: Path) -> None:
    attention = f"{ROOT}self_attn."

    def change(header: Header) -> None:
        names = ["q_proj.input_scale", "k_proj.k_scale", "v_proj.v_scale", "k_scale", "v_scale"]
        for name in [attention + name for name in names] + [f"{ROOT}feed_forward.experts.gate_up_proj_input_scale"]:
            add(name, [1], "F32")(header)

    assert len(text(with_header(tmp_path / "a", change, fp8="[1]")).slabs) == len(
        text(build(tmp_path / "b", **SMALL, fp8="[1]")).slabs
    )


def test_fp8_without_a_scale_of_the_weights(tmp_path: Path) -> None:
    # a scale of the activations is none of the weights
    checkpoint = with_header(tmp_path, rename(SCALE, f"{ROOT}self_attn.q_proj.input_scale"), fp8="[]")
    with pytest.raises(CheckpointError, match=rf"{SCALE} is missing"):
        text(checkpoint)


@pytest.mark.parametrize("shape", [[1, 1], [2, 1], [32, 2], [16], [1, 32]])
def test_scales_of_blocks_are_refused_by_name(tmp_path: Path, shape: list[int]) -> None:
    checkpoint = with_header(tmp_path, alter(SCALE, shape=shape), fp8="[out]", unfused=True)
    with pytest.raises(UnsupportedModelError, match=rf"{SCALE} has shape .*blocks"):
        text(checkpoint)


def test_inverse_scales_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="weight_scale_inv"):
        text(with_header(tmp_path, rename(SCALE, f"{SCALE}_inv"), fp8="[]"))


def test_two_scales_for_one_tensor(tmp_path: Path) -> None:
    experts = f"{ROOT}feed_forward.experts.down_proj"
    with pytest.raises(CheckpointError, match="two scales"):
        text(with_header(tmp_path, add(f"{experts}.weight_scale", [1], "F32"), fp8="[1]"))


def test_scales_of_another_dtype(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=rf"{SCALE} is U8"):
        text(with_header(tmp_path, alter(SCALE, dtype="U8"), fp8="[1]"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        *[({"quant_method": name}, name) for name in ("gptq", "awq", "bitsandbytes", "mxfp4", "hqq")],
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "NVFP4"),
        ({"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}, "nvfp4-pack-quantized"),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "pack-quantized"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "scales of blocks"),
        (
            {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"num_bits": 4, "type": "int"}}}},
            "4-bit int",
        ),
        (
            {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"strategy": "block"}}}},
            "scale per block",
        ),
        ({}, "none named"),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_other_quantizations_are_refused_by_name(
    tmp_path: Path, settings: dict[str, Any], said: str, nested: bool
) -> None:
    change = {"quantization_config": settings}
    checkpoint = build(tmp_path / "model", **SMALL, **({"text_config": change} if nested else {"config": change}))
    with pytest.raises(UnsupportedModelError, match=rf"quantization_config says .*{said}"):
        text(checkpoint)


@pytest.mark.parametrize(
    "settings",
    [{"quant_method": "modelopt", "quant_algo": "FP8"}, {"quant_method": "fbgemm_fp8"}, {"quant_method": "fp8"}],
)
def test_plain_fp8_by_any_of_its_makers(tmp_path: Path, settings: dict[str, Any]) -> None:
    checkpoint = build(tmp_path / "model", **SMALL, fp8="[]", config={"quantization_config": settings})
    assert any(slab.scale for slab in text(checkpoint).slabs)


def test_nearest_goes_by_words_and_then_by_numbers() -> None:
    names = [f"layers.{layer}.{kind}.weight" for layer in range(50) for kind in ("q_proj", "gate_proj")]
    assert nearest("layers.31.q_prj.weight", names) == "layers.31.q_proj.weight"
    assert nearest("layers.99.gate_proj.weigth", names) == "layers.49.gate_proj.weight"
    assert nearest("something", names) in names
