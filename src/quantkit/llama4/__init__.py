"""The family: hyperparameters, names and shapes from Hugging Face to GGUF, metadata, vision tower."""

from quantkit.llama4.hyperparameters import Hyperparameters, RopeScaling
from quantkit.llama4.metadata import provenance
from quantkit.llama4.mismatches import mismatches
from quantkit.llama4.model import Model, OutputTensor, Slab, Target
from quantkit.llama4.tensors import text_model
from quantkit.llama4.vision import vision_model
from quantkit.llama4.vision_hyperparameters import VisionHyperparameters, vision_mismatches

__all__ = [
    "Hyperparameters",
    "Model",
    "OutputTensor",
    "RopeScaling",
    "Slab",
    "Target",
    "VisionHyperparameters",
    "mismatches",
    "provenance",
    "text_model",
    "vision_mismatches",
    "vision_model",
]
