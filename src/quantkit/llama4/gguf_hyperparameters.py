"""The model's shape and constants as a GGUF has them, with what the runtime hard-codes for the rest."""

from __future__ import annotations

import numpy as np

from quantkit.errors import UnsupportedModelError
from quantkit.gguf import GgufFile
from quantkit.llama4.hyperparameters import MAX_EXPERTS, MAX_LAYERS, Hyperparameters
from quantkit.llama4.mismatches import (
    ATTN_SCALE,
    CHUNK_SIZE,
    EXPERTS_WITHOUT_QK_NORM,
    FLOOR_SCALE,
    NO_ROPE_STEP,
)
from quantkit.llama4.section import Section

_PREFIX = "llama4."


def gguf_hyperparameters(file: GgufFile) -> Hyperparameters:
    """What llama.cpp computes with when it loads the file: attention chunks, temperature and the norm of queries and
    keys stand in no key, so they are the runtime's own. Scaling of RoPE is the tensor `rope_freqs.weight`.

    Raises:
        UnsupportedModelError: another architecture, or settings that Llama 4 does not have.
        CheckpointError: a key is missing or of another type.
    """
    path = file.files[0]
    architecture = file.fields["general.architecture"].value if "general.architecture" in file.fields else None
    if architecture != "llama4":
        raise UnsupportedModelError(f"{path}: general.architecture is {architecture!r}, not 'llama4'")
    keys = Section(path, {key: field.value for key, field in file.fields.items()})
    names = {tensor.name: tensor for tensor in file.tensors}

    def integer(key: str, *, default: int | None = None, minimum: int = 1, maximum: int = 2**32 - 1) -> int:
        return keys.integer(_PREFIX + key, default=default, minimum=minimum, maximum=maximum)

    n_layers = integer("block_count", maximum=MAX_LAYERS)
    n_heads = integer("attention.head_count")
    n_kv_heads = integer("attention.head_count_kv", default=n_heads)
    if n_heads % n_kv_heads:
        raise keys.wrong(f"{_PREFIX}attention.head_count_kv", f"a divisor of attention.head_count ({n_heads})")
    hidden_size = integer("embedding_length")
    head_dim = integer("attention.key_length", default=hidden_size // n_heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if integer(key, default=head_dim) != head_dim:
            raise UnsupportedModelError(f"{path}: {_PREFIX}{key} is not attention.key_length, {head_dim}")
    n_experts = integer("expert_count", maximum=MAX_EXPERTS)
    step = integer("interleave_moe_layer_step", minimum=0)
    no_window = integer("attention.sliding_window", default=CHUNK_SIZE, minimum=0) == 0
    every = tuple(no_window or (layer + 1) % NO_ROPE_STEP != 0 for layer in range(n_layers))
    embedding = names.get("token_embd.weight")
    return Hyperparameters(
        conditional=False,
        n_layers=n_layers,
        hidden_size=hidden_size,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        n_experts=n_experts,
        n_experts_used=integer("expert_used_count", maximum=n_experts),
        expert_width=integer("expert_feed_forward_length"),
        dense_width=integer("feed_forward_length"),
        vocab_size=integer("vocab_size", default=embedding.shape[0] if embedding else None),
        context_length=integer("context_length"),
        rms_norm_eps=shortest(keys.number(f"{_PREFIX}attention.layer_norm_rms_epsilon")),
        moe_layers=tuple(range(step - 1, n_layers, step)) if step else (),
        moe_step=step,
        uses_rope=every,
        is_chunked=tuple(flag and not no_window for flag in every),
        attention_chunk_size=None if no_window else CHUNK_SIZE,
        attn_temperature_tuning=not no_window,
        attn_scale=ATTN_SCALE,
        floor_scale=FLOOR_SCALE,
        use_qk_norm=n_experts != EXPERTS_WITHOUT_QK_NORM,
        hidden_act="silu",
        rope_theta=shortest(keys.number(f"{_PREFIX}rope.freq_base", default=10000.0)),
        rope_type="llama3" if "rope_freqs.weight" in names else "default",
        rope_scaling=None,
        tied="output.weight" not in names,
        vision=None,
    )


def shortest(value: float) -> float:
    """The number that was meant by one that has been through float32: 1e-05 for 9.999999747378752e-06."""
    return float(str(np.float32(value)))
