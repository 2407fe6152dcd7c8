"""The tensors that a checkpoint must hold, by its hyperparameters, and where each goes."""

from __future__ import annotations

from dataclasses import dataclass

from quantkit.llama4.hyperparameters import Hyperparameters


@dataclass(frozen=True)
class Part:
    """An output tensor, or one expert of it, inside a source.

    Args:
        tensor: GGUF name.
        expert: which expert, for a source that is one expert of several; None otherwise.
        n_rows: output rows.
        first_column: for input-major sources, the column that is output row 0.
    """

    tensor: str
    n_rows: int
    expert: int | None = None
    first_column: int = 0


@dataclass(frozen=True)
class Source:
    """A checkpoint tensor.

    Args:
        name: as the checkpoint has it.
        shape: as the checkpoint must have it; three axes mean (experts, inputs, outputs), two (outputs, inputs).
        parts: where it goes; none for tensors that are known and not wanted.
        n_experts: of the output tensor, for a source that is one expert of it.
        keep: see `OutputTensor.keep`.
    """

    name: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...] = ()
    n_experts: int | None = None
    keep: str | None = None


def text_prefix(hp: Hyperparameters) -> str:
    """What the text model's tensor names begin with."""
    return "language_model." if hp.conditional else ""


def layer_prefix(hp: Hyperparameters, layer: int) -> str:
    return f"{text_prefix(hp)}model.layers.{layer}."


def plain(name: str, tensor: str, shape: tuple[int, ...], keep: str | None = None) -> Source:
    """A source that becomes one output tensor as it is."""
    return Source(name, shape, (Part(tensor, shape[0] if len(shape) == 2 else 1),), keep=keep)


def text_sources(hp: Hyperparameters, unfused_layers: frozenset[int] = frozenset()) -> list[Source]:
    """All tensors of the text model; layers in `unfused_layers` have one matrix per expert and projection."""
    prefix = text_prefix(hp)
    width, vocab = hp.hidden_size, hp.vocab_size
    found = [plain(f"{prefix}model.embed_tokens.weight", "token_embd.weight", (vocab, width))]
    if not hp.tied:
        found.append(plain(f"{prefix}lm_head.weight", "output.weight", (vocab, width)))
    found.append(plain(f"{prefix}model.norm.weight", "output_norm.weight", (width,), "f32"))
    for layer in range(hp.n_layers):
        source, block = layer_prefix(hp, layer), f"blk.{layer}."
        found += [
            plain(f"{source}input_layernorm.weight", f"{block}attn_norm.weight", (width,), "f32"),
            plain(f"{source}post_attention_layernorm.weight", f"{block}ffn_norm.weight", (width,), "f32"),
            *_attention(hp, f"{source}self_attn.", block),
        ]
        if layer in hp.moe_layers:
            found += _experts(hp, f"{source}feed_forward.", block, unfused=layer in unfused_layers)
        else:
            found += _swiglu(f"{source}feed_forward.", block, "", width, hp.dense_width)
    return found


def _attention(hp: Hyperparameters, source: str, block: str) -> list[Source]:
    # rows stay as they are: the checkpoint already has them in pairs, as the runtime's llama4 rotates them
    queries, keys = hp.n_heads * hp.head_dim, hp.n_kv_heads * hp.head_dim
    return [
        plain(f"{source}q_proj.weight", f"{block}attn_q.weight", (queries, hp.hidden_size)),
        plain(f"{source}k_proj.weight", f"{block}attn_k.weight", (keys, hp.hidden_size)),
        plain(f"{source}v_proj.weight", f"{block}attn_v.weight", (keys, hp.hidden_size)),
        plain(f"{source}o_proj.weight", f"{block}attn_output.weight", (hp.hidden_size, queries)),
    ]


def _swiglu(source: str, block: str, suffix: str, width: int, hidden: int) -> list[Source]:
    return [
        plain(f"{source}{kind}_proj.weight", f"{block}ffn_{kind}{suffix}.weight", shape)
        for kind, shape in (("gate", (hidden, width)), ("up", (hidden, width)), ("down", (width, hidden)))
    ]


def _experts(hp: Hyperparameters, source: str, block: str, *, unfused: bool) -> list[Source]:
    width, hidden, n_experts = hp.hidden_size, hp.expert_width, hp.n_experts
    gate, up, down = (f"{block}ffn_{kind}_exps.weight" for kind in ("gate", "up", "down"))
    found = [plain(f"{source}router.weight", f"{block}ffn_gate_inp.weight", (n_experts, width), "f32")]
    found += _swiglu(f"{source}shared_expert.", block, "_shexp", width, hidden)
    if not unfused:
        return [
            *found,
            Source(
                f"{source}experts.gate_up_proj",
                (n_experts, width, 2 * hidden),
                (Part(gate, hidden), Part(up, hidden, first_column=hidden)),
            ),
            Source(f"{source}experts.down_proj", (n_experts, hidden, width), (Part(down, width),)),
        ]
    for expert in range(n_experts):
        for kind, tensor, shape in (
            ("gate", gate, (hidden, width)),
            ("up", up, (hidden, width)),
            ("down", down, (width, hidden)),
        ):
            part = Part(tensor, shape[0], expert=expert)
            found.append(Source(f"{source}experts.{expert}.{kind}_proj.weight", shape, (part,), n_experts))
    return found


def unfused_layers(hp: Hyperparameters, names: frozenset[str]) -> frozenset[int]:
    """Layers whose experts are stored one by one, as quantized releases have them."""

    def is_unfused(layer: int) -> bool:
        experts = f"{layer_prefix(hp, layer)}feed_forward.experts."
        if f"{experts}gate_up_proj" in names or f"{experts}down_proj" in names:
            return False
        return any(
            f"{experts}{expert}.{kind}_proj.weight" in names
            for expert in range(hp.n_experts)
            for kind in ("gate", "up", "down")
        )

    return frozenset(layer for layer in hp.moe_layers if is_unfused(layer))
