"""Front door: a Hugging Face checkpoint on disk, checked before a payload byte is read. Refuses, never repairs."""

from quantkit.checkpoint.checkpoint import Checkpoint, open_checkpoint
from quantkit.checkpoint.header import DTYPE_BITS, TensorEntry, byte_size
from quantkit.checkpoint.tokenizer import LLAMA4_REGEX, Tokenizer, is_llama4_pre_tokenizer

__all__ = [
    "DTYPE_BITS",
    "LLAMA4_REGEX",
    "Checkpoint",
    "TensorEntry",
    "Tokenizer",
    "byte_size",
    "is_llama4_pre_tokenizer",
    "open_checkpoint",
]
