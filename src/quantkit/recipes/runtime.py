"""What it takes to run a Llama 4 GGUF: memory for the KV cache, bytes touched per token, and the speed they allow."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod

from quantkit.kernels import row_bytes

# What llama.cpp's runtime hard-codes for Llama 4: every fourth layer attends to all tokens, the others to their chunk.
CHUNK_TOKENS = 8192
FULL_ATTENTION_EVERY = 4


def kv_cache_bytes(context: int, *, n_layers: int, n_kv_heads: int, head_dim: int, cache_type: str = "f16") -> int:
    """Bytes of keys and values of one sequence of `context` tokens.

    Args:
        cache_type: format of the cache; a row is one token's keys, or values, of one layer.
    """
    n_full = n_layers // FULL_ATTENTION_EVERY
    tokens = n_full * context + (n_layers - n_full) * min(context, CHUNK_TOKENS)
    return tokens * 2 * row_bytes(cache_type, n_kv_heads * head_dim)


def active_bytes_per_token(tensors: Iterable[tuple[str, Sequence[int], str]], *, n_experts_used: int = 1) -> int:
    """Bytes of weights that one generated token reads.

    Of routed experts that is the share in use, of the embeddings one row (and all of them where they are the output
    as well), of everything else all.

    Args:
        tensors: (GGUF name, shape in numpy order, type), all of the text model.
        n_experts_used: experts that each token is sent to.
    """
    listed = list(tensors)
    tied = all(name != "output.weight" for name, _, _ in listed)
    total = 0
    for name, shape, type_name in listed:
        row = row_bytes(type_name, shape[-1])
        n_bytes = row * prod(shape[:-1])
        if name == "token_embd.weight":
            total += row + (n_bytes if tied else 0)
        elif "_exps." in name and len(shape) == 3:
            total += n_bytes // shape[0] * min(n_experts_used, shape[0])
        else:
            total += n_bytes
    return total


def tokens_per_second_bound(bytes_per_token: int, bandwidth_gb_s: float) -> float:
    """Generated tokens per second that no machine with this memory bandwidth (10^9 bytes a second) can exceed."""
    return bandwidth_gb_s * 1e9 / bytes_per_token
