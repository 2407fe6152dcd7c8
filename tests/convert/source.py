"""What a checkpoint's GGUF must hold, written down without quantkit: names, transposition, float32 values."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import safe_open

_LAYER = {
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "feed_forward.router.weight": "ffn_gate_inp.weight",
    "feed_forward.shared_expert.gate_proj.weight": "ffn_gate_shexp.weight",
    "feed_forward.shared_expert.up_proj.weight": "ffn_up_shexp.weight",
    "feed_forward.shared_expert.down_proj.weight": "ffn_down_shexp.weight",
    "feed_forward.gate_proj.weight": "ffn_gate.weight",
    "feed_forward.up_proj.weight": "ffn_up.weight",
    "feed_forward.down_proj.weight": "ffn_down.weight",
}
_TOP = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
KEPT = ("attn_norm.weight", "ffn_norm.weight", "output_norm.weight", "ffn_gate_inp.weight", "rope_freqs.weight")

Floats = npt.NDArray[np.float32]


def text_tensors(folder: Path) -> dict[str, Floats]:
    """GGUF name -> float32 values in GGUF's order (rows are output features), of every text tensor but rope_freqs."""
    found: dict[str, Floats] = {}
    experts: dict[str, dict[int, Floats]] = {}
    for name, values in scaled_tensors(folder).items():
        name = name.removeprefix("language_model.")
        if name in _TOP:
            found[_TOP[name]] = values
        if not (match := re.fullmatch(r"model\.layers\.(\d+)\.(.*)", name)):
            continue
        block, rest = f"blk.{match[1]}.", match[2]
        if rest in _LAYER:
            found[block + _LAYER[rest]] = values
        elif rest == "feed_forward.experts.gate_up_proj":
            half = values.shape[2] // 2
            found[block + "ffn_gate_exps.weight"] = values[:, :, :half].transpose(0, 2, 1)
            found[block + "ffn_up_exps.weight"] = values[:, :, half:].transpose(0, 2, 1)
        elif rest == "feed_forward.experts.down_proj":
            found[block + "ffn_down_exps.weight"] = values.transpose(0, 2, 1)
        elif one := re.fullmatch(r"feed_forward\.experts\.(\d+)\.(gate|up|down)_proj\.weight", rest):
            experts.setdefault(f"{block}ffn_{one[2]}_exps.weight", {})[int(one[1])] = values
        else:
            raise AssertionError(name)
    return found | {name: np.stack([rows[e] for e in range(len(rows))]) for name, rows in experts.items()}


def scaled_tensors(folder: Path) -> dict[str, Floats]:
    """HF name -> float32 values, those of fp8 tensors times their scale."""
    raw = raw_tensors(folder)
    scales = {name.removesuffix("_scale"): values for name, values in raw.items() if name.endswith("_scale")}
    return {
        name: values * scales[name].reshape(-1, *[1] * (values.ndim - 1)) if name in scales else values
        for name, values in raw.items()
        if not name.endswith("_scale")
    }


def raw_tensors(folder: Path) -> dict[str, Floats]:
    """HF name -> float32 values, without the vision tower."""
    found: dict[str, Floats] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  not a mapping
                if not name.startswith(("vision_model.", "multi_modal_projector.")):
                    found[name] = file.get_tensor(name).float().numpy()
    return found
