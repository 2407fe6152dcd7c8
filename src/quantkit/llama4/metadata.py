"""The key-value pairs of both files, in the order, and of the types, that llama.cpp's converter has them."""

from __future__ import annotations

from collections.abc import Sequence

from gguf import GGUFValueType, GGUFWriter
from gguf.constants import GGUFType, VisionProjectorType

import quantkit
from quantkit.checkpoint import Checkpoint
from quantkit.gguf import Field
from quantkit.llama4.general import add_general, recorded
from quantkit.llama4.hyperparameters import Hyperparameters
from quantkit.llama4.model import OutputTensor
from quantkit.llama4.section import Section
from quantkit.llama4.vision_hyperparameters import VisionHyperparameters
from quantkit.llama4.vocabulary import vocabulary_fields


def text_metadata(cp: Checkpoint, hp: Hyperparameters, outputs: Sequence[OutputTensor]) -> list[Field]:
    """All keys of the text model but those named in `Model.metadata`."""
    # the writer is only a recorder here: it knows each key's spelling and type
    writer = GGUFWriter(None, "llama4")
    add_general(writer, cp, GGUFType.MODEL, outputs)
    writer.add_block_count(hp.n_layers)
    writer.add_context_length(hp.context_length)
    writer.add_embedding_length(hp.hidden_size)
    writer.add_feed_forward_length(hp.dense_width)
    writer.add_head_count(hp.n_heads)
    writer.add_head_count_kv(hp.n_kv_heads)
    writer.add_rope_freq_base(hp.rope_theta)
    writer.add_layer_norm_rms_eps(hp.rms_norm_eps)
    writer.add_expert_count(hp.n_experts)
    writer.add_expert_used_count(hp.n_experts_used)
    writer.add_key_length(hp.head_dim)
    writer.add_value_length(hp.head_dim)
    writer.add_vocab_size(hp.vocab_size)
    writer.add_rope_dimension_count(hp.head_dim)
    writer.add_interleave_moe_layer_step(hp.moe_step)
    writer.add_expert_feed_forward_length(hp.expert_width)
    if not any(hp.is_chunked):
        writer.add_sliding_window(0)
    return [*recorded(writer), *vocabulary_fields(cp, hp)]


def vision_metadata(
    cp: Checkpoint, hp: Hyperparameters, vision: VisionHyperparameters, outputs: Sequence[OutputTensor]
) -> list[Field]:
    """All keys of the vision model but those named in `Model.metadata`."""
    files = [cp.root / name for name in ("preprocessor_config.json", "processor_config.json")]
    processor = Section(next((file for file in files if file.is_file()), files[0]), cp.preprocessor_config)
    writer = GGUFWriter(None, "clip")
    add_general(writer, cp, GGUFType.MMPROJ, outputs)
    writer.add_clip_has_vision_encoder(True)
    writer.add_vision_projection_dim(hp.hidden_size)
    writer.add_vision_image_size(vision.image_size)
    writer.add_vision_patch_size(vision.patch_size)
    writer.add_vision_embedding_length(vision.hidden_size)
    writer.add_vision_feed_forward_length(vision.intermediate_size)
    writer.add_vision_block_count(vision.n_layers)
    writer.add_vision_head_count(vision.n_heads)
    writer.add_vision_image_mean(list(processor.numbers("image_mean", length=3)))
    writer.add_vision_image_std(list(processor.numbers("image_std", length=3)))
    writer.add_clip_projector_type(VisionProjectorType.LLAMA4)
    writer.add_vision_attention_layernorm_eps(vision.norm_eps)
    writer.add_vision_projector_scale_factor(vision.n_merge)
    writer.add_vision_use_gelu(True)
    return recorded(writer)


def provenance(cp: Checkpoint, recipe: str, mismatches: Sequence[str] = ()) -> list[Field]:
    """The `quantkit.*` keys: what made the file, by which recipe, from what, and what the runtime will do otherwise."""
    fields = [
        Field("quantkit.version", quantkit.__version__, GGUFValueType.STRING),
        Field("quantkit.recipe", recipe, GGUFValueType.STRING),
        Field("quantkit.source_fingerprint", cp.fingerprint, GGUFValueType.STRING),
    ]
    if mismatches:
        fields.append(Field("quantkit.mismatch", list(mismatches), GGUFValueType.ARRAY, GGUFValueType.STRING))
    return fields
