"""llama.cpp's vision part: loads an mmproj beside its text model and turns an image into embeddings."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path
from types import TracebackType

import numpy as np
from llama_cpp import mtmd_cpp
from numpy.typing import NDArray
from tests.oracle import llama


class Vision:
    """An mmproj, loaded with `text`. `log` is what was said while loading, `n_loaded` how many tensors were taken."""

    def __init__(self, path: Path, text: llama.Model) -> None:
        llama.LOG.clear()
        mtmd_cpp.mtmd_log_set(llama._log, ctypes.c_void_p(0))
        params = mtmd_cpp.mtmd_context_params_default()
        params.use_gpu = params.warmup = False
        params.n_threads = llama.N_THREADS
        params.flash_attn_type = 0
        self._context = mtmd_cpp.mtmd_init_from_file(str(path).encode(), text.model, params)
        if not self._context:
            raise llama.LlamaError(f"llama.cpp does not load {path}")
        self.log = "".join(llama.LOG)
        loaded = re.search(r"loaded (\d+) tensors from", self.log)
        self.n_loaded = int(loaded[1]) if loaded else None

    def __enter__(self) -> Vision:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        mtmd_cpp.mtmd_free(self._context)

    def encode(self, image: NDArray[np.uint8], width: int) -> NDArray[np.float32]:
        """Embeddings (tokens, width) of an image (rows, columns, 3)."""
        rows, columns, _ = image.shape
        raw = (ctypes.c_uint8 * image.size).from_buffer_copy(image.tobytes())
        bitmap = mtmd_cpp.mtmd_bitmap_init(columns, rows, raw)
        chunks = mtmd_cpp.mtmd_input_chunks_init()
        try:
            marker = mtmd_cpp.mtmd_default_marker()
            text = mtmd_cpp.mtmd_input_text(text=marker, text_len=len(marker), add_special=False, parse_special=True)
            bitmaps = (ctypes.c_void_p * 1)(bitmap)
            if mtmd_cpp.mtmd_tokenize(self._context, chunks, ctypes.byref(text), bitmaps, 1) != 0:
                raise llama.LlamaError("mtmd_tokenize failed")
            parts = []
            for i in range(mtmd_cpp.mtmd_input_chunks_size(chunks)):
                chunk = mtmd_cpp.mtmd_input_chunks_get(chunks, i)
                if mtmd_cpp.mtmd_input_chunk_get_type(chunk) != mtmd_cpp.MTMD_INPUT_CHUNK_TYPE_IMAGE:
                    continue
                if mtmd_cpp.mtmd_encode_chunk(self._context, chunk) != 0:
                    raise llama.LlamaError("mtmd_encode_chunk failed")
                n_tokens = mtmd_cpp.mtmd_input_chunk_get_n_tokens(chunk)
                values = mtmd_cpp.mtmd_get_output_embd(self._context)
                parts.append(np.ctypeslib.as_array(values, (n_tokens, width)).copy())
            return np.concatenate(parts)
        finally:
            mtmd_cpp.mtmd_input_chunks_free(chunks)
            mtmd_cpp.mtmd_bitmap_free(bitmap)
