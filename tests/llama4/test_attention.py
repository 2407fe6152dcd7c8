"""Attention in blocks against its definition in float64."""

from __future__ import annotations

import tracemalloc

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from quantkit.llama4.forward.attention import attend
from quantkit.llama4.forward.blocks import Piece, groups, pieces


def plain(q: np.ndarray, k: np.ndarray, v: np.ndarray, first: int) -> np.ndarray:
    group = q.shape[1] // k.shape[1]
    k, v = (np.repeat(x.astype(np.float64), group, axis=1) for x in (k, v))
    scores = np.einsum("qhd,khd->hqk", q.astype(np.float64), k)
    scores[:, np.arange(len(k)) > first + np.arange(len(q))[:, None]] = -np.inf
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.einsum("hqk,khd->qhd", weights / weights.sum(axis=-1, keepdims=True), v)


def attended(q: np.ndarray, k: np.ndarray, v: np.ndarray, *places: int) -> np.ndarray:
    first, query_block, key_block = places
    out = np.full_like(q, np.nan)
    for task in attend(q, k, v, first, out, query_block, key_block):
        task()
    return out


def draw(n: int, m: int, heads: int, kv_heads: int, seed: int, scale: float) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    shapes = [(n, heads, 8), (m, kv_heads, 8), (m, kv_heads, 8)]
    return tuple((rng.standard_normal(shape) * scale).astype(np.float32) for shape in shapes)


@settings(max_examples=50, deadline=None)
@given(
    n=st.integers(1, 40),
    first=st.integers(0, 30),
    heads=st.sampled_from([(1, 1), (4, 2), (5, 1)]),
    query_block=st.integers(1, 50),
    key_block=st.integers(1, 50),
    scale=st.sampled_from([0.1, 1.0, 6.0]),
    seed=st.integers(0, 99),
)
def test_blocks_give_the_softmax(
    n: int, first: int, heads: tuple[int, int], query_block: int, key_block: int, scale: float, seed: int
) -> None:
    q, k, v = draw(n, first + n + seed % 3, *heads, seed, scale)  # keys beyond the last query are never looked at
    k[first + n :], v[first + n :] = np.nan, np.nan
    found = attended(q, k, v, first, query_block, key_block)
    expected = plain(q, k[: first + n], v[: first + n], first)
    # exp turns an absolute error of a score into a relative one, and scores are sums of 8 products
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * scale * max(1, scale**2))


def test_memory_does_not_grow_with_the_square_of_the_context() -> None:
    peaks = []
    for n in (1024, 4096):
        q, k, v = draw(n, n, 2, 1, 0, 1.0)
        tracemalloc.start()
        attended(q, k, v, 0, 64, 256)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 4.5 * peaks[0]
    assert peaks[1] < 4096 * 4096


def test_pieces_and_groups_cover_every_token_once() -> None:
    for n_sequences, context, chunk, n_tokens in [(3, 10, 4, 7), (1, 5, None, 2), (4, 8, 8, 16), (2, 3, 100, 1)]:
        found = pieces(n_sequences, context, chunk)
        assert [token for piece in found for token in range(piece.row, piece.row + piece.count)] == list(
            range(n_sequences * context)
        )
        for piece in found:
            assert piece.position == piece.row % context
            assert piece.position + piece.count <= context
            if chunk:
                assert piece.position % chunk == 0
        together = groups(found, n_tokens)
        assert [piece for group in together for piece in group] == found
        assert all(len(group) == 1 or sum(piece.count for piece in group) <= n_tokens for group in together)
    assert groups(pieces(4, 8, None), 16) == [
        [Piece(0, 0, 8), Piece(8, 0, 8)],
        [Piece(16, 0, 8), Piece(24, 0, 8)],
    ]
