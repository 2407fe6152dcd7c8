"""llama.cpp's own quantizer as a function from a model's shape to types, and tensor lists of Llama 4 models."""

from __future__ import annotations

import ctypes
from pathlib import Path

import gguf
import llama_cpp
import numpy as np

from quantkit.recipes import ModelShape

Tensors = list[tuple[str, tuple[int, ...]]]


@llama_cpp.llama_log_callback
def quiet(level: int, text: bytes, user_data: ctypes.c_void_p) -> None:
    """A log callback that drops what llama.cpp says."""


def llama4_tensors(
    shape: ModelShape,
    *,
    width: int,
    expert_width: int,
    dense_width: int,
    kv_width: int,
    vocab: int,
    step: int = 1,
    rope_freqs: int = 0,
    tied: bool = False,
    max_rows: int = 2**31,
) -> Tensors:
    """Names and shapes (numpy order) of a Llama 4 text model; every `step`-th layer has experts.

    `max_rows` cuts matrices short, which no rule about types looks at, and which makes the peer quick.
    """
    tensors: Tensors = [("rope_freqs.weight", (rope_freqs,))] if rope_freqs else []
    tensors += [] if tied else [("output.weight", (vocab, width))]
    tensors += [("token_embd.weight", (vocab, width)), ("output_norm.weight", (width,))]
    for i in range(shape.n_layers):
        layer: Tensors = [
            ("attn_norm", (width,)),
            ("ffn_norm", (width,)),
            ("attn_q", (width, width)),
            ("attn_k", (kv_width, width)),
            ("attn_v", (kv_width, width)),
            ("attn_output", (width, width)),
        ]
        if (i + 1) % step == 0:
            layer += [
                ("ffn_gate_inp", (shape.n_experts, width)),
                ("ffn_gate_exps", (shape.n_experts, expert_width, width)),
                ("ffn_up_exps", (shape.n_experts, expert_width, width)),
                ("ffn_down_exps", (shape.n_experts, width, expert_width)),
                ("ffn_gate_shexp", (expert_width, width)),
                ("ffn_up_shexp", (expert_width, width)),
                ("ffn_down_shexp", (width, expert_width)),
            ]
        else:
            layer += [
                ("ffn_gate", (dense_width, width)),
                ("ffn_up", (dense_width, width)),
                ("ffn_down", (width, dense_width)),
            ]
        tensors += [(f"blk.{i}.{name}.weight", extents) for name, extents in layer]
    return [(name, (*s[:-2], min(s[-2], max_rows), s[-1]) if len(s) > 1 else s) for name, s in tensors]


def write_source(path: Path, shape: ModelShape, tensors: Tensors, source: str) -> None:
    """A GGUF with just what llama_model_quantize reads: matrices in `source`, what the converter keeps in f32."""
    writer = gguf.GGUFWriter(path, "llama4")
    writer.add_block_count(shape.n_layers)
    writer.add_context_length(64)
    writer.add_embedding_length(shape.n_heads * 2)
    writer.add_head_count(shape.n_heads)
    writer.add_head_count_kv(shape.n_kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_expert_count(shape.n_experts)
    writer.add_expert_used_count(1)
    writer.add_expert_feed_forward_length(64)
    writer.add_interleave_moe_layer_step(1)
    rng = np.random.default_rng(0)
    for name, extents in tensors:
        values = rng.standard_normal(extents, dtype=np.float32)
        if source == "bf16" and len(extents) > 1 and "ffn_gate_inp" not in name:
            packed = (values.view(np.uint32) >> 16).astype(np.uint16)
            writer.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType.BF16)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def llama_quantize(
    folder: Path,
    ftype: int,
    shape: ModelShape,
    tensors: Tensors,
    *,
    source: str = "f32",
    has_imatrix: bool = False,
    pure: bool = False,
    tensor_types: tuple[tuple[str, str], ...] = (),
    token_embedding_type: str | None = None,
    output_tensor_type: str | None = None,
) -> dict[str, str]:
    """{name: type}: random weights of these shapes, quantized by llama.cpp, types read back from its file."""
    before, after = folder / "before.gguf", folder / "after.gguf"
    write_source(before, shape, tensors, source)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread, params.ftype, params.pure = 1, ftype, pure
    if token_embedding_type:
        params.token_embedding_type = _id(token_embedding_type)
    if output_tensor_type:
        params.output_tensor_type = _id(output_tensor_type)
    if has_imatrix:
        ones = {name: np.ones(int(np.prod(s[:-2])) * s[-1], np.float32) for name, s in tensors if len(s) > 1}
        entries = (llama_cpp.llama_model_imatrix_data * (len(ones) + 1))()
        for entry, (name, values) in zip(entries, ones.items(), strict=False):
            entry.name, entry.size = name.encode(), values.size
            entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        params.imatrix = entries
    if tensor_types:
        overrides = (llama_cpp.llama_model_tensor_override * (len(tensor_types) + 1))()
        for override, (pattern, name) in zip(overrides, tensor_types, strict=False):
            override.pattern, override.type = pattern.lower().encode(), _id(name)  # as the command line does
        params.tt_overrides = overrides
    assert llama_cpp.llama_model_quantize(bytes(before), bytes(after), params) == 0
    return {tensor.name: tensor.tensor_type.name.lower() for tensor in gguf.GGUFReader(after).tensors}


def _id(name: str) -> int:
    return int(gguf.GGMLQuantizationType[name.upper()])
