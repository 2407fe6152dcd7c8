"""A plain forward pass of the vision tower from the tensors of an mmproj GGUF, by their GGUF names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

Arrays = Mapping[str, np.ndarray]
_erf = np.vectorize(math.erf, otypes=[np.float32])


@dataclass(frozen=True)
class Tower:
    """What the forward pass needs beside the tensors, all of it among the mmproj's `clip.*` keys."""

    n_layers: int
    n_heads: int
    image_size: int
    patch_size: int
    scale_factor: int
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0  # not a key: the runtime knows it

    @classmethod
    def from_keys(cls, keys: Mapping[str, object]) -> Tower:
        """From the metadata of an mmproj: key -> value."""

        def number(name: str) -> int:
            return int(keys[f"clip.vision.{name}"])  # type: ignore[call-overload, no-any-return]

        return cls(
            n_layers=number("block_count"),
            n_heads=number("attention.head_count"),
            image_size=number("image_size"),
            patch_size=number("patch_size"),
            scale_factor=number("projector.scale_factor"),
            norm_eps=float(keys["clip.vision.attention.layer_norm_epsilon"]),  # type: ignore[arg-type]
        )


def image_features(arrays: Arrays, tower: Tower, pixels: np.ndarray) -> np.ndarray:
    """Embeddings of one tile.

    Args:
        arrays: float32 by GGUF name, numpy order (out, in).
        pixels: float32 (3, image_size, image_size), normalised.

    Returns:
        float32 (tokens, width), row by row of the merged grid.
    """
    grid = tower.image_size // tower.patch_size
    x = _patches(pixels, tower.patch_size) @ arrays["v.patch_embd.weight"].T
    x = np.concatenate([x, arrays["v.class_embd"][None]]) + arrays["v.position_embd.weight"]
    x = _layer_norm(x, arrays, "v.pre_ln", tower.norm_eps)
    turns = _turns(tower, grid, x.shape[1] // tower.n_heads)
    for layer in range(tower.n_layers):
        block = f"v.blk.{layer}."
        x = x + _attention(_layer_norm(x, arrays, f"{block}ln1", tower.norm_eps), arrays, block, tower.n_heads, turns)
        h = gelu(_linear(_layer_norm(x, arrays, f"{block}ln2", tower.norm_eps), arrays, f"{block}ffn_up"))
        x = x + _linear(h, arrays, f"{block}ffn_down")
    x = _layer_norm(x, arrays, "v.post_ln", tower.norm_eps)[:-1]
    x = _merge(x, grid, tower.scale_factor)
    x = gelu(x @ arrays["mm.model.mlp.1.weight"].T)
    x = gelu(x @ arrays["mm.model.mlp.2.weight"].T)
    return x @ arrays["mm.model.fc.weight"].T


def _patches(pixels: np.ndarray, size: int) -> np.ndarray:
    """(tokens, channels * size * size), row by row."""
    channels, height, width = pixels.shape
    cut = pixels.reshape(channels, height // size, size, width // size, size)
    return cut.transpose(1, 3, 0, 2, 4).reshape(-1, channels * size * size)


def _turns(tower: Tower, grid: int, head_dim: int) -> np.ndarray:
    """Unit complex numbers (tokens, head_dim / 2): the first half of a head's pairs turns by x, the second by y."""
    half = head_dim // 2
    frequencies = tower.rope_theta ** (-np.arange(0, half, 2)[: half // 2] / half)
    y, x = np.divmod(np.arange(grid * grid), grid)
    angles = np.concatenate([(x + 1)[:, None] * frequencies, (y + 1)[:, None] * frequencies], axis=1)
    angles = np.concatenate([angles, np.zeros((1, half))])  # the class token stands nowhere
    return np.exp(1j * angles).astype(np.complex64)


def _attention(x: np.ndarray, arrays: Arrays, block: str, n_heads: int, turns: np.ndarray) -> np.ndarray:
    tokens, width = x.shape
    q, k, v = (_linear(x, arrays, f"{block}attn_{kind}").reshape(tokens, n_heads, -1) for kind in "qkv")
    q, k = _rotate(q, turns), _rotate(k, turns)
    scores = np.einsum("qhd,khd->hqk", q, k) / np.float32(np.sqrt(width // n_heads))
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return _linear(np.einsum("hqk,khd->qhd", weights, v).reshape(tokens, width), arrays, f"{block}attn_out")


def _rotate(x: np.ndarray, turns: np.ndarray) -> np.ndarray:
    pairs = np.ascontiguousarray(x).view(np.complex64)
    return (pairs * turns[:, None]).view(np.float32)


def _merge(x: np.ndarray, grid: int, factor: int) -> np.ndarray:
    """Pixel shuffle: factor x factor neighbours into one token, y within the square before x."""
    squares = x.reshape(grid // factor, factor, grid // factor, factor, -1)
    return squares.transpose(0, 2, 1, 3, 4).reshape((grid // factor) ** 2, -1)


def _linear(x: np.ndarray, arrays: Arrays, name: str) -> np.ndarray:
    return x @ arrays[f"{name}.weight"].T + arrays[f"{name}.bias"]


def _layer_norm(x: np.ndarray, arrays: Arrays, name: str, eps: float) -> np.ndarray:
    centred = x - x.mean(axis=-1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + np.float32(eps))
    return normed * arrays[f"{name}.weight"] + arrays[f"{name}.bias"]


def gelu(x: np.ndarray) -> np.ndarray:
    return (x * 0.5 * (1 + _erf(x / np.sqrt(np.float32(2))))).astype(np.float32)
