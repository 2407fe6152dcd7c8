"""The vision tower's and projector's tensors, and the names that llama.cpp's runtime reads them by."""

from __future__ import annotations

from quantkit.llama4.sources import Source, plain
from quantkit.llama4.vision_hyperparameters import VisionHyperparameters


def vision_sources(vision: VisionHyperparameters, text_width: int, patch_type: str = "f32") -> list[Source]:
    """All tensors of the tower; `patch_type` is the format of the patch embedding, which no recipe touches."""
    width = vision.hidden_size
    patch = vision.n_channels * vision.patch_size**2
    root = "vision_model."
    found = [
        # without ".weight", as the runtime asks for it
        plain(f"{root}class_embedding", "v.class_embd", (width,), "f32"),
        plain(f"{root}positional_embedding_vlm", "v.position_embd.weight", (vision.n_patches + 1, width), "f32"),
        plain(f"{root}patch_embedding.linear.weight", "v.patch_embd.weight", (width, patch), patch_type),
        *_affine(f"{root}layernorm_pre", "v.pre_ln", width),
        *_affine(f"{root}layernorm_post", "v.post_ln", width),
    ]
    for layer in range(vision.n_layers):
        found += _block(vision, f"{root}model.layers.{layer}.", f"v.blk.{layer}.")
    adapter = f"{root}vision_adapter.mlp."
    found += [
        plain(f"{adapter}fc1.weight", "mm.model.mlp.1.weight", (vision.adapter_width, vision.intermediate_size)),
        plain(f"{adapter}fc2.weight", "mm.model.mlp.2.weight", (vision.adapter_width, vision.adapter_width)),
        plain("multi_modal_projector.linear_1.weight", "mm.model.fc.weight", (text_width, vision.adapter_width)),
    ]
    return found


def _block(vision: VisionHyperparameters, source: str, block: str) -> list[Source]:
    width, hidden = vision.hidden_size, vision.intermediate_size
    found = [
        *_affine(f"{source}input_layernorm", f"{block}ln1", width),
        # llama.cpp's own converter writes attn_post_norm, which its runtime takes for something else
        *_affine(f"{source}post_attention_layernorm", f"{block}ln2", width),
        *_linear(f"{source}mlp.fc1", f"{block}ffn_up", hidden, width),
        *_linear(f"{source}mlp.fc2", f"{block}ffn_down", width, hidden),
    ]
    for kind, name in (("q", "attn_q"), ("k", "attn_k"), ("v", "attn_v"), ("o", "attn_out")):
        found += _linear(f"{source}self_attn.{kind}_proj", f"{block}{name}", width, width)
    return found


def _affine(source: str, output: str, width: int) -> list[Source]:
    return [plain(f"{source}.{kind}", f"{output}.{kind}", (width,), "f32") for kind in ("weight", "bias")]


def _linear(source: str, output: str, rows: int, cols: int) -> list[Source]:
    return [
        plain(f"{source}.weight", f"{output}.weight", (rows, cols)),
        plain(f"{source}.bias", f"{output}.bias", (rows,), "f32"),
    ]
