"""What config.json says about the model: every value checked, both spellings of every key read."""

from __future__ import annotations

from dataclasses import dataclass

from quantkit.checkpoint import Checkpoint
from quantkit.errors import UnsupportedModelError
from quantkit.llama4.section import U32_MAX, Section
from quantkit.llama4.vision_hyperparameters import VisionHyperparameters

CONDITIONAL = "Llama4ForConditionalGeneration"
CAUSAL = "Llama4ForCausalLM"
# the runtime's arrays have this many places
MAX_LAYERS = 512
MAX_EXPERTS = 1024


@dataclass(frozen=True)
class RopeScaling:
    """`rope_type: llama3`: long wavelengths are stretched by `factor`."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int


@dataclass(frozen=True)
class Hyperparameters:
    """The text model's shape and constants.

    Args:
        conditional: True for Llama4ForConditionalGeneration, whose tensors begin with `language_model.`.
        expert_width: hidden width of one expert and of the shared expert (`intermediate_size`).
        dense_width: hidden width of dense layers (`intermediate_size_mlp`).
        moe_layers: indices of layers with experts, ascending.
        moe_step: the `interleave_moe_layer_step` to write, the one that gives `moe_layers` where there is one.
        uses_rope: per layer, False for layers without position information.
        is_chunked: per layer, True for attention within chunks.
        attention_chunk_size: None for no chunks.
        rope_type: "default", "llama3", or what else the file says.
        rope_scaling: for rope_type "llama3" only.
        tied: the output matrix is the token embedding.
        vision: None for checkpoints without a vision tower.
    """

    conditional: bool
    n_layers: int
    hidden_size: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    n_experts: int
    n_experts_used: int
    expert_width: int
    dense_width: int
    vocab_size: int
    context_length: int
    rms_norm_eps: float
    moe_layers: tuple[int, ...]
    moe_step: int
    uses_rope: tuple[bool, ...]
    is_chunked: tuple[bool, ...]
    attention_chunk_size: int | None
    attn_temperature_tuning: bool
    attn_scale: float
    floor_scale: float
    use_qk_norm: bool
    hidden_act: str
    rope_theta: float
    rope_type: str
    rope_scaling: RopeScaling | None
    tied: bool
    vision: VisionHyperparameters | None

    def stepped_layers(self, step: int) -> tuple[int, ...]:
        """The layers that the runtime takes to have experts for `interleave_moe_layer_step` = `step`."""
        return _stepped_layers(self.n_layers, step)

    @classmethod
    def from_checkpoint(cls, cp: Checkpoint) -> Hyperparameters:
        """Read config.json.

        Raises:
            UnsupportedModelError: another architecture, no experts, biases, or more than the runtime has room for.
            CheckpointError: a value is missing, of another type, or does not fit the others.
        """
        config = Section(cp.root / "config.json", cp.config)
        conditional = _is_conditional(config)
        text = config.section("text_config") or config
        # before anything else: the files of families without experts may lack other keys
        n_experts = _n_experts(text)
        n_layers = text.integer("num_hidden_layers", maximum=MAX_LAYERS)
        hidden_size = text.integer("hidden_size")
        n_heads = text.integer("num_attention_heads")
        n_kv_heads = text.integer("num_key_value_heads", default=n_heads)
        if n_heads % n_kv_heads:
            raise text.wrong("num_key_value_heads", f"a divisor of num_attention_heads ({n_heads})")
        if "head_dim" not in text and hidden_size % n_heads:
            raise text.wrong("head_dim", f"a value, since {n_heads} heads do not divide hidden_size {hidden_size}")
        head_dim = text.integer("head_dim", default=max(1, hidden_size // n_heads))
        if head_dim % 2:
            raise text.wrong("head_dim", "an even number, since rotary embeddings turn pairs")
        if text.boolean("attention_bias", default=False):
            raise UnsupportedModelError(
                f"{text.file}: attention_bias is true, and the runtime has no place for the output projection's bias"
            )
        moe_layers, moe_step = _moe_layers(text, n_layers)
        uses_rope, is_chunked = _attention_layers(text, n_layers)
        rope_theta, rope_type, rope_scaling = _rope(text)
        vision = config.section("vision_config") if conditional else None
        return cls(
            conditional=conditional,
            n_layers=n_layers,
            hidden_size=hidden_size,
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            head_dim=head_dim,
            n_experts=n_experts,
            n_experts_used=text.integer("num_experts_per_tok", default=1, maximum=n_experts),
            expert_width=text.integer("intermediate_size"),
            dense_width=text.integer("intermediate_size_mlp"),
            vocab_size=text.integer("vocab_size"),
            context_length=text.integer("max_position_embeddings"),
            rms_norm_eps=text.number("rms_norm_eps", default=1e-5),
            moe_layers=moe_layers,
            moe_step=moe_step,
            uses_rope=uses_rope,
            is_chunked=is_chunked,
            attention_chunk_size=_chunk_size(text),
            attn_temperature_tuning=_temperature_tuning(text),
            attn_scale=text.number("attn_scale", default=0.1, positive=False),
            floor_scale=text.number("floor_scale", default=8192.0),
            use_qk_norm=text.boolean("use_qk_norm", default=True),
            hidden_act=text.string("hidden_act", default="silu"),
            rope_theta=rope_theta,
            rope_type=rope_type,
            rope_scaling=rope_scaling,
            # the language model is tied by its own flag; older files have it at the top only
            tied=text.boolean("tie_word_embeddings", default=config.boolean("tie_word_embeddings", default=False)),
            vision=VisionHyperparameters.from_section(vision) if vision else None,
        )


def _is_conditional(config: Section) -> bool:
    architectures = config.strings("architectures") or ()
    model_type = config.string("model_type", default="")
    if architectures:
        if architectures[0] in (CONDITIONAL, CAUSAL):
            return architectures[0] == CONDITIONAL
        named = f"architectures is {architectures[0]}"
    elif model_type in ("llama4", "llama4_text"):
        return model_type == "llama4"
    else:
        named = f"model_type is {model_type}" if model_type else "there is neither architectures nor model_type"
    raise UnsupportedModelError(
        f"{config.file}: {named}, which is not a Llama 4", hint=f"Only {CONDITIONAL} and {CAUSAL} are converted."
    )


def _n_experts(text: Section) -> int:
    n_experts = text.integer("num_local_experts", minimum=0)
    if n_experts == 0:
        raise UnsupportedModelError(
            f"{text.file}: num_local_experts is 0: this is a dense relative of Llama 4 "
            "(Llama Guard 4, MobileLLM), and llama.cpp refuses to load llama4 files without experts"
        )
    if n_experts > MAX_EXPERTS:
        raise UnsupportedModelError(f"{text.file}: num_local_experts is {n_experts}; the runtime takes {MAX_EXPERTS}")
    return n_experts


def _stepped_layers(n_layers: int, step: int) -> tuple[int, ...]:
    return tuple(range(step - 1, n_layers, step)) if step else ()


def _moe_layers(text: Section, n_layers: int) -> tuple[tuple[int, ...], int]:
    """Layers with experts, and the step that gives them (the file's own step where none does)."""
    step = text.integer("interleave_moe_layer_step", default=1, minimum=0)
    listed = text.integers("moe_layers")
    if listed is None:
        if step == 0:
            raise text.wrong("interleave_moe_layer_step", "an integer above 0 where moe_layers is not given")
        return _stepped_layers(n_layers, step), step
    # indices beyond the last layer are left over from a longer model, to transformers as well
    layers = tuple(sorted({layer for layer in listed if layer < n_layers}))
    for candidate in (step, *range(1, n_layers + 2)):
        if _stepped_layers(n_layers, candidate) == layers:
            return layers, candidate
    return layers, step


def _attention_layers(text: Section, n_layers: int) -> tuple[tuple[bool, ...], tuple[bool, ...]]:
    interval = text.integer("no_rope_layer_interval", default=4)
    listed = text.integers("no_rope_layers", maximum=1) or tuple(
        int((layer + 1) % interval != 0) for layer in range(n_layers)
    )
    if len(listed) < n_layers:
        raise text.wrong("no_rope_layers", f"a list of {n_layers} zeros and ones")
    uses_rope = tuple(bool(item) for item in listed[:n_layers])
    kinds = text.strings("layer_types")
    if kinds is None:
        return uses_rope, uses_rope
    known = {"chunked_attention", "full_attention"}
    if len(kinds) != n_layers or not known.issuperset(kinds):
        raise text.wrong("layer_types", f"a list of {n_layers} of {', '.join(sorted(known))}")
    return uses_rope, tuple(kind == "chunked_attention" for kind in kinds)


def _chunk_size(text: Section) -> int | None:
    # an explicit null switches chunks off; a missing key means the class default
    if "attention_chunk_size" in text.values and text.values["attention_chunk_size"] is None:
        return None
    return text.integer("attention_chunk_size", default=8192)


def _temperature_tuning(text: Section) -> bool:
    """true or false; the first released files say 4."""
    value = text.values.get("attn_temperature_tuning", True)
    if not isinstance(value, (bool, int)):
        raise text.wrong("attn_temperature_tuning", "true, false or an integer")
    return bool(value)


def _rope(text: Section) -> tuple[float, str, RopeScaling | None]:
    """(theta, type, scaling) from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling`."""
    rope = text.section("rope_parameters") or text.section("rope_scaling") or Section(text.file, {}, "rope_scaling")
    theta_section = rope if "rope_theta" in rope else text
    theta = theta_section.number("rope_theta", default=500000.0)
    rope_type = rope.string("rope_type", default=rope.string("type", default="default")).lower()
    if rope_type != "llama3":
        return theta, rope_type, None
    original = rope if "original_max_position_embeddings" in rope else text
    scaling = RopeScaling(
        factor=rope.number("factor"),
        low_freq_factor=rope.number("low_freq_factor"),
        high_freq_factor=rope.number("high_freq_factor"),
        original_context=original.integer("original_max_position_embeddings", maximum=U32_MAX),
    )
    if scaling.high_freq_factor < scaling.low_freq_factor:
        raise rope.wrong("high_freq_factor", f"at least low_freq_factor ({scaling.low_freq_factor:g})")
    return theta, rope_type, scaling
