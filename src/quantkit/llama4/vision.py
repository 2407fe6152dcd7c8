"""The vision tower and its projector, as an mmproj GGUF."""

from __future__ import annotations

from quantkit.checkpoint import Checkpoint
from quantkit.llama4.claims import claim
from quantkit.llama4.hyperparameters import Hyperparameters
from quantkit.llama4.metadata import vision_metadata
from quantkit.llama4.model import Model, file_order
from quantkit.llama4.quantization import refuse_quantization
from quantkit.llama4.slabs import MAX_SLAB_BYTES, cut, outputs_of
from quantkit.llama4.sources import text_sources, unfused_layers
from quantkit.llama4.vision_hyperparameters import missing_vision
from quantkit.llama4.vision_sources import vision_sources


def vision_model(
    cp: Checkpoint, hp: Hyperparameters, max_slab_bytes: int = MAX_SLAB_BYTES, *, type: str = "f16"
) -> Model:
    """The vision model of a checkpoint; reads headers and preprocessor settings only.

    Args:
        type: the format chosen for the matrices. The patch embedding, which is never quantized, is f16 beside f16
            matrices and f32 otherwise.

    Raises:
        CheckpointError: no vision tower; tensors missing, unknown or misshapen; image settings missing.
        UnsupportedModelError: quantized weights that are not read.
    """
    if hp.vision is None:
        raise missing_vision(str(cp.root / "config.json"))
    refuse_quantization(cp)
    wanted = vision_sources(hp.vision, hp.hidden_size, "f16" if type == "f16" else "f32")
    claims = claim(cp, wanted, text_sources(hp, unfused_layers(hp, frozenset(cp.tensors))))
    outputs = sorted(outputs_of(claims), key=file_order)
    return Model(outputs, cut(claims, cp.files, max_slab_bytes), vision_metadata(cp, hp, hp.vision, outputs))
