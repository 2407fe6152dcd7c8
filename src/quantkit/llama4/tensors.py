"""The text model: what is read, what is written, and in which order."""

from __future__ import annotations

from quantkit.checkpoint import Checkpoint
from quantkit.llama4.claims import Claim, claim
from quantkit.llama4.hyperparameters import Hyperparameters
from quantkit.llama4.metadata import text_metadata
from quantkit.llama4.model import Model, OutputTensor, file_order
from quantkit.llama4.quantization import refuse_quantization
from quantkit.llama4.rope import rope_factors
from quantkit.llama4.slabs import MAX_SLAB_BYTES, cut, outputs_of
from quantkit.llama4.sources import text_sources, unfused_layers
from quantkit.llama4.vision_sources import vision_sources


def text_model(cp: Checkpoint, hp: Hyperparameters, max_slab_bytes: int = MAX_SLAB_BYTES) -> Model:
    """The text model of a checkpoint; reads headers and tokenizer only.

    Raises:
        CheckpointError: tensors are missing, unknown or misshapen; the tokenizer or model card is malformed.
        UnsupportedModelError: quantized weights that are not read, or another pre-tokenizer than Llama 4's.
    """
    claims = text_claims(cp, hp)
    outputs = outputs_of(claims)
    if hp.rope_scaling is not None:
        factors = rope_factors(hp.rope_scaling, hp.rope_theta, hp.head_dim)
        outputs.append(OutputTensor("rope_freqs.weight", factors.shape, "f32", factors))
    outputs.sort(key=file_order)
    return Model(outputs, cut(claims, cp.files, max_slab_bytes), text_metadata(cp, hp, outputs))


def text_claims(cp: Checkpoint, hp: Hyperparameters) -> list[Claim]:
    """All tensors of the text model, found and checked; errors as those of `text_model` that concern tensors."""
    refuse_quantization(cp)
    wanted = text_sources(hp, unfused_layers(hp, frozenset(cp.tensors)))
    known = vision_sources(hp.vision, hp.hidden_size) if hp.vision else []
    return claim(cp, wanted, known)
