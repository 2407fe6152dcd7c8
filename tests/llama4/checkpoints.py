"""Llama 4 checkpoints of any shape, made on the spot: random weights, or sparse files of zeros for true sizes.

build(tmp_path / "scout", **SCOUT | {"layers": 1}, zeros=True)
"""

from __future__ import annotations

import json
import re
import shutil
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

TINY = Path(__file__).parents[1] / "data" / "tiny-llama4"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
SMALLEST_VOCAB = 1024  # tiny-llama4's tokenizer comes along, with special tokens 992..1023

SCOUT: dict[str, Any] = {
    "layers": 48,
    "experts": 16,
    "heads": 40,
    "kv_heads": 8,
    "head_dim": 128,
    "hidden": 5120,
    "expert_width": 8192,
    "dense_width": 16384,
    "vocab": 202048,
    "moe_step": 1,
}
MAVERICK: dict[str, Any] = SCOUT | {"experts": 128, "moe_step": 2}
SCOUT_ROPE_SCALING = {
    "rope_type": "llama3",
    "factor": 16.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
}

_DTYPES: dict[str, Any] = {
    "BF16": ml_dtypes.bfloat16,
    "F16": np.float16,
    "F32": np.float32,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
}
_CHUNK = 1 << 22  # elements made at a time, so that true layer sizes need little memory
_NORM = ("norm.weight", "layernorm.weight", "layernorm_pre.weight", "layernorm_post.weight")


@dataclass(frozen=True)
class Spec:
    """One tensor to be written; `fp8_scale` is the shape of its scale, which follows as a tensor of its own."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    fp8_scale: tuple[int, ...] | None = None


def build(
    dst: Path,
    *,
    layers: int = 4,
    experts: int = 4,
    experts_used: int = 1,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 64,
    hidden: int = 256,
    expert_width: int = 256,
    dense_width: int = 512,
    vocab: int = SMALLEST_VOCAB,
    moe_step: int = 1,
    conditional: bool = True,
    vision: bool | Mapping[str, int] = False,
    dtype: str = "BF16",
    unfused: bool = False,
    fp8: str | None = None,
    scale_dtype: str = "F32",
    tied: bool = False,
    rope_scaling: Mapping[str, Any] | None = None,
    transformers5: bool = False,
    text_config: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    zeros: bool | str = False,
    shard_bytes: int | None = None,
    std: float = 0.02,
    seed: int = 0,
) -> Path:
    """Write a checkpoint folder with config, tokenizer (tiny-llama4's) and weights; returns `dst`.

    Args:
        moe_step: layers moe_step - 1, 2 * moe_step - 1, ... have experts, the others are dense.
        conditional: Llama4ForConditionalGeneration with `language_model.` names, else Llama4ForCausalLM.
        vision: True for a small tower, or its sizes: layers, hidden, heads, image, patch, adapter. Needs `conditional`.
        dtype: of all weights, "BF16", "F16" or "F32".
        unfused: one matrix per expert and projection, [out, in], as quantized releases have them.
        fp8: linear layers in F8_E4M3 with a weight_scale of shape "[]", "[1]", "[out]" or "[out,1]" (the latter two
            need `unfused`: fused tensors have no single output axis); embeddings, head, router, norms keep `dtype`.
        tied: no lm_head.
        rope_scaling: for instance SCOUT_ROPE_SCALING.
        transformers5: spell `rope_parameters` instead of `rope_theta` and `rope_scaling`, and `layer_types`.
        text_config, config: keys that replace or add to what is written; a value of ... takes the key away.
        zeros: True: all weights 0, in sparse files that take no room. A regular expression: those whose names it finds.
        shard_bytes: start a new shard when the current one holds as much; None for one file without an index.
        std: of the weights; norms are near 1.
    """
    if vocab < SMALLEST_VOCAB:
        raise ValueError(f"the tokenizer that comes along has {SMALLEST_VOCAB} tokens")
    if fp8 in ("[out]", "[out,1]") and not unfused:
        raise ValueError("a scale per output row needs unfused experts")
    tower = _tower(vision)
    dst.mkdir(parents=True, exist_ok=True)
    text = {
        "model_type": "llama4_text",
        "hidden_size": hidden,
        "intermediate_size": expert_width,
        "intermediate_size_mlp": dense_width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "num_local_experts": experts,
        "num_experts_per_tok": experts_used,
        "interleave_moe_layer_step": moe_step,
        "moe_layers": list(range(moe_step - 1, layers, moe_step)),
        "no_rope_layers": [int((layer + 1) % 4 != 0) for layer in range(layers)],
        "use_qk_norm": experts != 128,
        "attention_chunk_size": 8192,
        "attn_temperature_tuning": True,
        "attn_scale": 0.1,
        "floor_scale": 8192,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "max_position_embeddings": 8192,
        "vocab_size": vocab,
        "tie_word_embeddings": tied,
        "attention_bias": False,
        "bos_token_id": 992,
        "eos_token_id": [993, 999, 1000],
        "pad_token_id": 1002,
    }
    if transformers5:
        text["rope_parameters"] = {"rope_type": "default", "rope_theta": 500000.0, **(rope_scaling or {})}
        text["layer_types"] = [
            "full_attention" if (layer + 1) % 4 == 0 else "chunked_attention" for layer in range(layers)
        ]
    else:
        text |= {"rope_theta": 500000.0, "rope_scaling": dict(rope_scaling) if rope_scaling else None}
    text = _edited(text, text_config)
    top: dict[str, Any] = {"architectures": ["Llama4ForCausalLM"], **text}
    if conditional:
        top = {
            "architectures": ["Llama4ForConditionalGeneration"],
            "model_type": "llama4",
            "image_token_index": 1008,
            "boi_token_index": 1003,
            "eoi_token_index": 1004,
            "text_config": text,
            "tie_word_embeddings": tied,
        }
    if tower:
        top["vision_config"] = _vision_config(tower)
        processor = json.loads((TINY / "preprocessor_config.json").read_text(encoding="utf-8"))
        processor["size"] = {"height": tower["image"], "width": tower["image"]}
        (dst / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")
    if fp8:
        strategy = "channel" if "out" in fp8 else "tensor"
        weights = {"type": "float", "num_bits": 8, "strategy": strategy, "symmetric": True, "dynamic": False}
        top["quantization_config"] = {
            "quant_method": "compressed-tensors",
            "format": "float-quantized",
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        }
    (dst / "config.json").write_text(json.dumps(_edited(top, config), indent=1), encoding="utf-8")
    for name in TOKENIZER_FILES:
        shutil.copyfile(TINY / name, dst / name)
    prefix = "language_model." if conditional else ""
    specs: list[Spec] = [Spec(f"{prefix}model.embed_tokens.weight", (vocab, hidden), dtype)]
    if not tied:
        specs.append(Spec(f"{prefix}lm_head.weight", (vocab, hidden), dtype))
    specs.append(Spec(f"{prefix}model.norm.weight", (hidden,), dtype))
    for layer in range(layers):
        root = f"{prefix}model.layers.{layer}."
        is_moe = (layer + 1) % moe_step == 0
        for name, shape in {
            **_attention(hidden, heads * head_dim, kv_heads * head_dim),
            **(_moe(hidden, expert_width, experts, unfused) if is_moe else _dense(hidden, dense_width)),
        }.items():
            quantized = fp8 is not None and len(shape) > 1 and "router" not in name
            specs.append(
                Spec(root + name, shape, "F8_E4M3", _scale_shape(fp8, shape[0]))
                if fp8 and quantized
                else Spec(root + name, shape, dtype)
            )
    if tower:
        specs += [Spec(name, shape, dtype) for name, shape in _vision_shapes(tower, hidden).items()]
    _write_shards(dst, sorted(specs, key=lambda spec: spec.name), shard_bytes, scale_dtype, zeros, std, seed)
    return dst


def _edited(values: dict[str, Any], changes: Mapping[str, Any] | None) -> dict[str, Any]:
    return {key: value for key, value in {**values, **(changes or {})}.items() if value is not ...}


def _tower(vision: bool | Mapping[str, int]) -> dict[str, int]:
    if vision is False:
        return {}
    sizes = {"layers": 3, "hidden": 64, "heads": 4, "image": 56, "patch": 14, "adapter": 128}
    return sizes | (dict(vision) if isinstance(vision, Mapping) else {})


def _vision_config(tower: Mapping[str, int]) -> dict[str, Any]:
    return {
        "model_type": "llama4_vision_model",
        "hidden_size": tower["hidden"],
        "intermediate_size": 4 * tower["hidden"],
        "num_hidden_layers": tower["layers"],
        "num_attention_heads": tower["heads"],
        "num_channels": 3,
        "image_size": tower["image"],
        "patch_size": tower["patch"],
        "pixel_shuffle_ratio": 0.5,
        "projector_input_dim": tower["adapter"],
        "projector_output_dim": tower["adapter"],
        "vision_output_dim": tower["adapter"],
        "norm_eps": 1e-5,
        "rope_theta": 10000,
        "hidden_act": "gelu",
        "multi_modal_projector_bias": False,
    }


def _attention(hidden: int, queries: int, keys: int) -> dict[str, tuple[int, ...]]:
    return {
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (queries, hidden),
        "self_attn.k_proj.weight": (keys, hidden),
        "self_attn.v_proj.weight": (keys, hidden),
        "self_attn.o_proj.weight": (hidden, queries),
    }


def _dense(hidden: int, width: int, root: str = "feed_forward.") -> dict[str, tuple[int, ...]]:
    return {
        f"{root}gate_proj.weight": (width, hidden),
        f"{root}up_proj.weight": (width, hidden),
        f"{root}down_proj.weight": (hidden, width),
    }


def _moe(hidden: int, width: int, experts: int, unfused: bool) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"feed_forward.router.weight": (experts, hidden)}
    shapes |= _dense(hidden, width, "feed_forward.shared_expert.")
    if unfused:
        for expert in range(experts):
            shapes |= _dense(hidden, width, f"feed_forward.experts.{expert}.")
    else:
        shapes["feed_forward.experts.gate_up_proj"] = (experts, hidden, 2 * width)
        shapes["feed_forward.experts.down_proj"] = (experts, width, hidden)
    return shapes


def _vision_shapes(tower: Mapping[str, int], text_hidden: int) -> dict[str, tuple[int, ...]]:
    width, adapter, patch = tower["hidden"], tower["adapter"], tower["patch"]
    root = "vision_model."
    shapes: dict[str, tuple[int, ...]] = {
        f"{root}class_embedding": (width,),
        f"{root}positional_embedding_vlm": ((tower["image"] // patch) ** 2 + 1, width),
        f"{root}patch_embedding.linear.weight": (width, 3 * patch * patch),
        f"{root}vision_adapter.mlp.fc1.weight": (adapter, 4 * width),
        f"{root}vision_adapter.mlp.fc2.weight": (adapter, adapter),
        "multi_modal_projector.linear_1.weight": (text_hidden, adapter),
    }
    linears = {f"{root}model.layers.{layer}.mlp.fc1": (4 * width, width) for layer in range(tower["layers"])}
    norms = [f"{root}layernorm_pre", f"{root}layernorm_post"]
    for layer in range(tower["layers"]):
        block = f"{root}model.layers.{layer}."
        linears[f"{block}mlp.fc2"] = (width, 4 * width)
        linears |= {f"{block}self_attn.{kind}_proj": (width, width) for kind in "qkvo"}
        norms += [f"{block}input_layernorm", f"{block}post_attention_layernorm"]
    for name, shape in linears.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for name in norms:
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    return shapes


def _scale_shape(fp8: str, rows: int) -> tuple[int, ...]:
    return {"[]": (), "[1]": (1,), "[out]": (rows,), "[out,1]": (rows, 1)}[fp8]


def _write_shards(
    dst: Path, specs: list[Spec], shard_bytes: int | None, scale_dtype: str, zeros: bool | str, std: float, seed: int
) -> None:
    shards: list[list[Spec]] = [[]]
    room = shard_bytes
    for spec in specs:
        if room is not None and shard_bytes is not None and room <= 0:
            shards.append([])
            room = shard_bytes
        shards[-1].append(spec)
        if room is not None:
            room -= _n_bytes(spec.shape, spec.dtype)
    index: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = "model.safetensors" if shard_bytes is None else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        index |= dict.fromkeys(_write_shard(dst / name, shard, scale_dtype, zeros, std, seed), name)
    if shard_bytes is not None:
        text = json.dumps({"metadata": {}, "weight_map": index}, indent=1)
        (dst / "model.safetensors.index.json").write_text(text, encoding="utf-8")


def _n_bytes(shape: tuple[int, ...], dtype: str) -> int:
    return int(np.prod(shape, dtype=np.int64)) * np.dtype(_DTYPES[dtype]).itemsize


def _write_shard(
    path: Path, specs: list[Spec], scale_dtype: str, zeros: bool | str, std: float, seed: int
) -> list[str]:
    """Write one safetensors file; returns the names of its tensors."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0

    def enter(name: str, shape: tuple[int, ...], dtype: str) -> None:
        nonlocal place
        end = place + _n_bytes(shape, dtype)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [place, end]}
        place = end

    for spec in specs:
        enter(spec.name, spec.shape, spec.dtype)
        if spec.fp8_scale is not None:
            enter(_scale_name(spec.name), spec.fp8_scale, scale_dtype)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        pattern = "" if zeros is True else zeros
        for spec in specs:
            file.seek(8 + len(text) + header[spec.name]["data_offsets"][0])
            if pattern is False or not re.search(pattern, spec.name):
                _write_random(file, spec, scale_dtype, std, seed)
        file.truncate(8 + len(text) + place)
    return [name for name in header if name != "__metadata__"]


def _scale_name(name: str) -> str:
    return f"{name}_scale"  # X.weight_scale, and gate_up_proj_scale for fused tensors


def _write_random(file: BinaryIO, spec: Spec, scale_dtype: str, std: float, seed: int) -> None:
    if spec.fp8_scale is not None:
        _write_fp8(file, spec, scale_dtype, std, seed)
        return
    for chunk in random_weights(spec.name, spec.shape, std, seed):
        file.write(chunk.astype(_DTYPES[spec.dtype]).tobytes())


def random_weights(name: str, shape: tuple[int, ...], std: float, seed: int) -> Iterator[np.ndarray]:
    """The float32 weights of one tensor, flat, in chunks; they depend on name, shape and seed only."""
    random = np.random.default_rng([seed, zlib.crc32(name.encode())])
    left = int(np.prod(shape, dtype=np.int64))
    offset = 1.0 if name.endswith(_NORM) else 0.0
    while left:
        n = min(left, _CHUNK)
        yield random.standard_normal(n, dtype=np.float32) * np.float32(std) + np.float32(offset)
        left -= n


def _write_fp8(file: BinaryIO, spec: Spec, scale_dtype: str, std: float, seed: int) -> None:
    """Codes with a scale that uses the whole range of E4M3, then the scale."""
    weights = np.concatenate(list(random_weights(spec.name, spec.shape, std, seed))).reshape(spec.shape)
    assert spec.fp8_scale is not None
    per_row = spec.fp8_scale not in ((), (1,))
    largest = np.abs(weights).max(axis=1 if per_row else None, keepdims=True)
    scale = (largest / 448).astype(_DTYPES[scale_dtype])
    codes = np.clip(weights / scale.astype(np.float32), -448, 448).astype(ml_dtypes.float8_e4m3fn)
    file.write(codes.tobytes())
    file.write(scale.tobytes())
