"""Weights that are missing, misshapen, of a wrong dtype, unknown, or not finite: one kind for each class of tensor."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Iterator
from typing import Any

from tests.checkpoint.malformed.kind import SHARDS, Draft, Kind, Tensor

from quantkit.checkpoint import DTYPE_BITS

_LAYER = "language_model.model.layers.2"
CLASSES: dict[str, str] = {
    "token-embedding": "language_model.model.embed_tokens.weight",
    "output": "language_model.lm_head.weight",
    "output-norm": "language_model.model.norm.weight",
    "attention-norm": f"{_LAYER}.input_layernorm.weight",
    "ffn-norm": f"{_LAYER}.post_attention_layernorm.weight",
    "query": f"{_LAYER}.self_attn.q_proj.weight",
    "key": f"{_LAYER}.self_attn.k_proj.weight",
    "value": f"{_LAYER}.self_attn.v_proj.weight",
    "attention-output": f"{_LAYER}.self_attn.o_proj.weight",
    "router": f"{_LAYER}.feed_forward.router.weight",
    "experts-gate-up": f"{_LAYER}.feed_forward.experts.gate_up_proj",
    "experts-down": f"{_LAYER}.feed_forward.experts.down_proj",
    "shared-gate": f"{_LAYER}.feed_forward.shared_expert.gate_proj.weight",
    "shared-up": f"{_LAYER}.feed_forward.shared_expert.up_proj.weight",
    "shared-down": f"{_LAYER}.feed_forward.shared_expert.down_proj.weight",
}
_TOWER = "vision_model.model.layers.1"
VISION_CLASSES: dict[str, str] = {
    "class-embedding": "vision_model.class_embedding",
    "position-embedding": "vision_model.positional_embedding_vlm",
    "patch-embedding": "vision_model.patch_embedding.linear.weight",
    "tower-norm-weight": f"{_TOWER}.post_attention_layernorm.weight",
    "tower-norm-bias": f"{_TOWER}.input_layernorm.bias",
    "tower-query": f"{_TOWER}.self_attn.q_proj.weight",
    "tower-bias": f"{_TOWER}.self_attn.v_proj.bias",
    "tower-mlp": f"{_TOWER}.mlp.fc1.weight",
    "adapter": "vision_model.vision_adapter.mlp.fc2.weight",
    "projector": "multi_modal_projector.linear_1.weight",
}
_BAD = {"nan": 0x7FC0, "inf": 0x7F80, "minus-inf": 0xFF80}  # bf16
_ALL = [(label, name, False) for label, name in CLASSES.items()] + [
    (label, name, True) for label, name in VISION_CLASSES.items()
]


def kinds() -> Iterator[Kind]:
    for label, name, vision in _ALL:
        yield from _structure(label, name, vision)
    yield from _dtypes()
    yield from _unknown()
    yield from _fp8()
    for number, (label, name, vision) in enumerate(_ALL):
        # each class with every value would say three times the same; each in turn
        yield _planted(label, name, list(_BAD)[number % 3], vision)
    for value in ("nan", "inf"):
        yield _planted("first-weight-of-all", CLASSES["output"], value, False, place=(0, 0))
        yield _planted("last-expert", CLASSES["experts-down"], value, False, place=(3, 255, 255))
        yield _planted("up-half", CLASSES["experts-gate-up"], value, False, place=(1, 17, 300))


def _structure(label: str, name: str, vision: bool) -> Iterator[Kind]:
    escaped = re.escape(name)
    yield Kind(
        f"tensor-{label}-missing",
        "model",
        "CheckpointError",
        rf"tensor {escaped} .*is in none of",
        lambda draft: draft.tensor(name, lambda tensors: tensors.pop(name)),
        vision,
    )

    def reshape(tensors: dict[str, Tensor]) -> None:
        shape = tensors[name].shape
        # the same bytes, so that nothing but the shape is wrong
        tensors[name].shape = [shape[0] * shape[1], *shape[2:]] if len(shape) > 1 else [2, shape[0] // 2]

    yield Kind(
        f"tensor-{label}-misshapen",
        "model",
        "CheckpointError",
        rf"tensor {escaped} has shape",
        lambda draft: draft.tensor(name, reshape),
        vision,
    )


def _retype(name: str, dtype: str) -> Callable[[Draft], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        shape = tensors[name].shape
        tensors[name] = Tensor(dtype, shape, bytes(math.prod(shape) * DTYPE_BITS[dtype] // 8))

    return lambda draft: draft.tensor(name, change)


def _dtypes() -> Iterator[Kind]:
    for label, dtype in (
        ("query", "I64"),
        ("key", "F64"),
        ("value", "U8"),
        ("experts-down", "I8"),
        ("experts-gate-up", "F4"),
        ("router", "I32"),
        ("output-norm", "BOOL"),
        ("attention-norm", "F8_E4M3"),
        ("output", "F8_E5M2"),
        ("token-embedding", "C64"),
    ):
        name = CLASSES[label]
        yield Kind(
            f"tensor-{label}-is-{dtype.lower()}",
            "model",
            "UnsupportedModelError",
            rf"tensor {re.escape(name)} is {dtype}",
            _retype(name, dtype),
        )


def _unknown() -> Iterator[Kind]:
    for label, name in (
        ("query-norm", f"{_LAYER}.self_attn.q_norm.weight"),
        ("bias", f"{_LAYER}.self_attn.q_proj.bias"),
        ("lora", f"{_LAYER}.self_attn.q_proj.lora_A.weight"),
        ("fifth-layer", "language_model.model.layers.4.input_layernorm.weight"),
        ("unprefixed", "model.norm.weight"),
        ("fifth-expert", f"{_LAYER}.feed_forward.experts.4.gate_proj.weight"),
        ("rotary", "language_model.model.rotary_emb.inv_freq"),
    ):
        yield Kind(
            f"tensor-unknown-{label}",
            "model",
            "CheckpointError",
            re.escape(name),
            lambda draft, name=name: draft.tensors(
                SHARDS[1], lambda tensors: tensors.update({name: Tensor("BF16", [8], bytes(16))})
            ),
        )


def _fp8() -> Iterator[Kind]:
    name = CLASSES["query"]  # [256, 256]
    stem = name.removesuffix(".weight")

    def scaled(**scales: Tensor) -> Callable[[Draft], None]:
        def change(tensors: dict[str, Tensor]) -> None:
            tensors[name] = Tensor("F8_E4M3", [256, 256], b"\x38" * 65536)
            tensors.update({f"{stem}.{suffix}": scale for suffix, scale in scales.items()})

        return lambda draft: draft.tensor(name, change)

    def floats(*shape: int, value: float = 1.0) -> Tensor:
        count = math.prod(shape)
        return Tensor("F32", list(shape), struct.pack(f"<{count}f", *[value] * count))

    def kind(label: str, error: str, match: str, spoil: Callable[[Draft], Any], stage: Any = "model") -> Kind:
        return Kind(f"fp8-{label}", stage, error, match, spoil)

    scale = re.escape(f"{stem}.weight_scale")
    yield kind("without-scale", "CheckpointError", rf"{re.escape(name)} is F8_E4M3, and its scale .*missing", scaled())
    yield kind(
        "activation-scale-only",
        "CheckpointError",
        rf"{re.escape(name)} is F8_E4M3, and its scale .*missing",
        scaled(input_scale=floats(1)),
    )
    yield kind("in-blocks", "UnsupportedModelError", rf"{scale} .*scales of blocks", scaled(weight_scale=floats(2, 2)))
    yield kind(
        "in-inverse-blocks",
        "UnsupportedModelError",
        rf"{scale}_inv .*scales of blocks",
        scaled(weight_scale_inv=floats(2, 2)),
    )
    yield kind("scale-per-column", "UnsupportedModelError", rf"{scale} ", scaled(weight_scale=floats(1, 256)))
    yield kind("scale-of-another-length", "UnsupportedModelError", rf"{scale} ", scaled(weight_scale=floats(128)))
    yield kind(
        "scale-of-integers",
        "UnsupportedModelError",
        rf"{scale} is I32",
        scaled(weight_scale=Tensor("I32", [1], bytes(4))),
    )
    yield kind("scale-is-nan", "NonFiniteError", scale, scaled(weight_scale=floats(1, value=math.nan)), "payload")
    yield kind("scale-is-inf", "NonFiniteError", scale, scaled(weight_scale=floats(256, 1, value=math.inf)), "payload")

    def nan_code(draft: Draft) -> None:
        scaled(weight_scale=floats(1))(draft)

        def plant(tensors: dict[str, Tensor]) -> None:
            data = bytearray(tensors[name].data)
            data[3 * 256 + 7] = 0x7F
            tensors[name].data = bytes(data)

        draft.tensor(name, plant)

    yield kind("weight-is-nan", "NonFiniteError", rf"{re.escape(name)}\[3, 7\]", nan_code, "payload")


def _planted(label: str, name: str, value: str, vision: bool, *, place: tuple[int, ...] | None = None) -> Kind:
    """One weight that is not finite, at `place` or in the midst of the tensor."""
    shape = _shape(name)
    at = place or tuple(2 * size // 3 for size in shape)
    flat = 0
    for size, index in zip(shape, at, strict=True):
        flat = flat * size + index

    def plant(tensors: dict[str, Tensor]) -> None:
        assert tensors[name].shape == list(shape)
        data = bytearray(tensors[name].data)
        struct.pack_into("<H", data, 2 * flat, _BAD[value])
        tensors[name].data = bytes(data)

    index_text = ", ?".join(map(str, at))
    return Kind(
        f"weight-{label}-{value}",
        "payload",
        "NonFiniteError",
        rf"{re.escape(name)}.*\[{index_text}\]",
        lambda draft: draft.tensor(name, plant),
        vision,
    )


def _shape(name: str) -> tuple[int, ...]:
    """Shapes of tiny-llama4, checked against the file when the weight is planted."""
    if name.startswith(("vision_model", "multi_modal")):
        return {
            "class-embedding": (64,),
            "position-embedding": (17, 64),
            "patch-embedding": (64, 588),
            "tower-norm-weight": (64,),
            "tower-norm-bias": (64,),
            "tower-query": (64, 64),
            "tower-bias": (64,),
            "tower-mlp": (256, 64),
            "adapter": (128, 128),
            "projector": (256, 128),
        }[next(label for label, other in VISION_CLASSES.items() if other == name)]
    return {
        "token-embedding": (1024, 256),
        "output": (1024, 256),
        "output-norm": (256,),
        "attention-norm": (256,),
        "ffn-norm": (256,),
        "query": (256, 256),
        "key": (128, 256),
        "value": (128, 256),
        "attention-output": (256, 256),
        "router": (4, 256),
        "experts-gate-up": (4, 256, 512),
        "experts-down": (4, 256, 256),
        "shared-gate": (256, 256),
        "shared-up": (256, 256),
        "shared-down": (256, 256),
    }[next(label for label, other in CLASSES.items() if other == name)]
