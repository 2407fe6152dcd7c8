"""Image features by the vision part of llama.cpp (mtmd), through its C functions."""

from __future__ import annotations

import ctypes
from pathlib import Path

import llama_cpp
import numpy as np
from llama_cpp import mtmd_cpp as mtmd

LOG: list[str] = []


@llama_cpp.llama_log_callback
def _log(level: int, text: bytes, _: object) -> None:
    LOG.append(text.decode("utf-8", "replace"))


def encode_tile(text_model: Path, mmproj: Path, pixels: np.ndarray) -> np.ndarray:
    """Embeddings of the first tile that mtmd makes of an image.

    Args:
        pixels: uint8 (side, side, 3), of the tower's own size, so that nothing is resized.

    Returns:
        float32 (tokens, width of the text model).
    """
    LOG.clear()
    mtmd.mtmd_log_set(_log, None)
    llama_cpp.llama_log_set(_log, ctypes.c_void_p(0))
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = 0
    model = llama_cpp.llama_model_load_from_file(str(text_model).encode(), params)
    assert model is not None, "".join(LOG[-30:])
    options = mtmd.mtmd_context_params_default()
    options.use_gpu, options.warmup, options.n_threads = False, False, 1
    context = mtmd.mtmd_init_from_file(str(mmproj).encode(), model, options)
    assert context is not None, "".join(LOG[-30:])
    chunks = mtmd.mtmd_input_chunks_init()
    side = pixels.shape[0]
    data = np.ascontiguousarray(pixels).ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
    bitmap = mtmd.mtmd_bitmap_init(side, side, ctypes.cast(data, ctypes.POINTER(ctypes.c_uint8 * pixels.size)).contents)
    try:
        marker = mtmd.mtmd_default_marker()
        text = mtmd.mtmd_input_text(text=marker, text_len=len(marker), add_special=False, parse_special=True)
        bitmaps = (mtmd.mtmd_bitmap_p_ctypes * 1)(bitmap)
        assert mtmd.mtmd_tokenize(context, chunks, ctypes.byref(text), bitmaps, 1) == 0, "".join(LOG[-30:])
        for index in range(mtmd.mtmd_input_chunks_size(chunks)):
            chunk = mtmd.mtmd_input_chunks_get(chunks, index)
            if mtmd.mtmd_input_chunk_get_type(chunk) == mtmd.MTMD_INPUT_CHUNK_TYPE_IMAGE:
                assert mtmd.mtmd_encode_chunk(context, chunk) == 0, "".join(LOG[-30:])
                shape = (mtmd.mtmd_input_chunk_get_n_tokens(chunk), llama_cpp.llama_model_n_embd(model))
                pointer = mtmd.mtmd_get_output_embd(context)
                return np.ctypeslib.as_array(pointer, shape).copy()
        raise AssertionError("mtmd made no image of it")
    finally:
        mtmd.mtmd_bitmap_free(bitmap)
        mtmd.mtmd_input_chunks_free(chunks)
        mtmd.mtmd_free(context)
        llama_cpp.llama_model_free(model)
