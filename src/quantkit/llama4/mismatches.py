"""What llama.cpp hard-codes for Llama 4: a file from a checkpoint that differs loads, and computes wrong, silently."""

from __future__ import annotations

import json

from quantkit.llama4.hyperparameters import Hyperparameters

CHUNK_SIZE = 8192
FLOOR_SCALE = 8192.0
ATTN_SCALE = 0.1
NO_ROPE_STEP = 4
# the one expert count for which the runtime leaves out the norm of queries and keys
EXPERTS_WITHOUT_QK_NORM = 128


def mismatches(hp: Hyperparameters) -> list[str]:
    """One sentence for each hyperparameter that the file cannot carry and the runtime takes otherwise."""
    found = _attention(hp)
    normed = hp.n_experts != EXPERTS_WITHOUT_QK_NORM
    if hp.use_qk_norm != normed:
        found.append(
            f"use_qk_norm is {json.dumps(hp.use_qk_norm)}; with {hp.n_experts} experts the runtime has it "
            f"{'on' if normed else 'off'} (it is off for exactly {EXPERTS_WITHOUT_QK_NORM} experts)"
        )
    if hp.moe_layers != hp.stepped_layers(hp.moe_step):
        found.append(
            f"moe_layers is {list(hp.moe_layers)}; the runtime knows only every n-th layer "
            f"(interleave_moe_layer_step), and will not load the file"
        )
    if hp.hidden_act != "silu":
        found.append(f'hidden_act is "{hp.hidden_act}"; the runtime always uses silu')
    if hp.rope_type not in ("default", "llama3"):
        found.append(
            f'rope_type is "{hp.rope_type}"; only default and llama3 can be written, so positions would not be scaled'
        )
    return found


def _attention(hp: Hyperparameters) -> list[str]:
    if not any(hp.is_chunked):
        # the key `sliding_window = 0` that says so also drops RoPE from the last layer and trips an assertion
        return ["all layers have full attention; the runtime's mode for that stops at its first token"]
    found = []
    if hp.attention_chunk_size != CHUNK_SIZE:
        found.append(
            f"attention_chunk_size is {json.dumps(hp.attention_chunk_size)}; the runtime always uses {CHUNK_SIZE}"
        )
    every = tuple((layer + 1) % NO_ROPE_STEP != 0 for layer in range(hp.n_layers))
    for flags, what in ((hp.uses_rope, "without RoPE"), (hp.is_chunked, "with full attention")):
        if flags != every:
            layers = [index for index, flag in enumerate(flags) if not flag]
            found.append(f"layers {what} are {layers or 'none'}; the runtime takes every {NO_ROPE_STEP}th layer")
    if all(hp.uses_rope):
        return found  # the temperature touches layers without RoPE only
    if not hp.attn_temperature_tuning:
        found.append("attn_temperature_tuning is off; the runtime always tunes the layers without RoPE")
    if hp.floor_scale != FLOOR_SCALE:
        found.append(f"floor_scale is {hp.floor_scale:g}; the runtime always uses {FLOOR_SCALE:g}")
    if hp.attn_scale != ATTN_SCALE:
        found.append(f"attn_scale is {hp.attn_scale:g}; the runtime always uses {ATTN_SCALE:g}")
    return found
