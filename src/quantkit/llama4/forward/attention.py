"""Causal attention in blocks of queries and keys: memory does not depend on the context."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from quantkit.llama4.forward.floats import Floats, Ids

QUERY_BLOCK = 128
KEY_BLOCK = 1024


def attend(
    q: Floats,
    k: Floats,
    v: Floats,
    first: int,
    out: Floats,
    query_block: int = QUERY_BLOCK,
    key_block: int = KEY_BLOCK,
) -> Iterator[Callable[[], None]]:
    """Tasks that together do out = softmax(q kᵀ) v, query i seeing keys 0 to `first` + i.

    Softmax is kept as a running maximum and sum while the keys of a block of queries go by (Milakov and Gimelshein,
    2018), so block sizes change the result by rounding only. Blocks that no query of a block sees are never computed.

    Args:
        q: float32 (n, heads, head_dim), already scaled by 1 / sqrt(head_dim).
        k, v: float32 (m, kv_heads, head_dim), m >= first + n; heads is a multiple of kv_heads, and neighbours share.
        first: how many keys lie before that of query 0.
        out: float32 (n, heads, head_dim).
        query_block, key_block: how many at a time.
    """
    n, heads, head_dim = q.shape
    group = heads // k.shape[1]

    def attend_some(head: int, start: int) -> None:
        mine, stop = slice(head * group, (head + 1) * group), min(n, start + query_block)
        rows = np.ascontiguousarray(q[start:stop, mine]).reshape(-1, head_dim)
        last_key = np.repeat(np.arange(first + start, first + stop), group)
        found = _attend_rows(rows, k[:, head], v[:, head], last_key, key_block)
        out[start:stop, mine] = found.reshape(stop - start, group, head_dim)

    for start in reversed(range(0, n, query_block)):  # those that see most keys first
        for head in range(k.shape[1]):
            yield partial(attend_some, head, start)


def _attend_rows(q: Floats, k: Floats, v: Floats, last_key: Ids, key_block: int) -> Floats:
    """One head's keys and a few queries (n, head_dim), of which each sees keys up to its own `last_key`."""
    end = int(last_key[-1]) + 1
    top = np.empty((len(q), 1), np.float32)
    total = np.empty((len(q), 1), np.float32)
    out = np.empty_like(q)
    for start in range(0, end, key_block):
        keys = slice(start, min(end, start + key_block))
        scores = q @ k[keys].T
        if keys.stop > last_key[0] + 1:
            ahead = slice(max(start, int(last_key[0]) + 1), keys.stop)  # of the first query
            scores[:, ahead.start - start :][np.arange(ahead.start, ahead.stop) > last_key[:, None]] = -np.inf
        # key 0 is seen by all, so the first maximum is finite and so are all that follow
        peak = scores.max(axis=1, keepdims=True)
        if start:
            np.maximum(peak, top, out=peak)
        scores -= peak
        np.exp(scores, out=scores)
        if start:
            fade = np.exp(top - peak)
            total *= fade
            out *= fade
            total += scores.sum(axis=1, keepdims=True)
            out += scores @ v[keys]
        else:
            total = scores.sum(axis=1, keepdims=True)
            np.matmul(scores, v[keys], out=out)
        top = peak
    out /= total
    return out
