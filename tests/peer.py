"""llama.cpp's own converter, run in this process: the file that quantkit's is held against.

The converter recognises the pre-tokenizer by a fingerprint of the released vocabularies, so a small trained vocabulary
is unknown to it. It is told the answer; nothing else of it is touched.
"""

from __future__ import annotations

import logging
from pathlib import Path
from unittest import mock

import gguf
import torch
from conversion import ModelBase, ModelType, get_model_architecture, get_model_class
from conversion.base import TextModel

FILE_TYPES = {
    "f32": gguf.LlamaFileType.ALL_F32,
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "bf16": gguf.LlamaFileType.MOSTLY_BF16,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
}


def convert(checkpoint: Path, path: Path, file_type: str = "bf16", *, mmproj: bool = False) -> Path:
    """Write `checkpoint` as a GGUF at `path`; returns where it is (an mmproj's name may get a prefix)."""
    kind = ModelType.MMPROJ if mmproj else ModelType.TEXT
    logging.disable(logging.WARNING)
    try:
        with torch.inference_mode(), mock.patch.object(TextModel, "get_vocab_base_pre", return_value="llama4"):
            hyperparameters = ModelBase.load_hparams(checkpoint, False)
            architecture = get_model_architecture(hyperparameters, kind)
            model = get_model_class(architecture, mmproj=mmproj)(checkpoint, FILE_TYPES[file_type], path)
            model.write()
    finally:
        logging.disable(logging.NOTSET)
    return Path(model.fname_out)
