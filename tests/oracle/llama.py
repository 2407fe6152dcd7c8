"""llama.cpp through its C functions: the judge of what quantkit writes.

Everything here is done the plain way, so that a difference seen is one of the file and not of the runtime: float32 KV
cache, no flash attention, no repacked weights, one thread.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import llama_cpp
import numpy as np
from numpy.typing import NDArray

LOG: list[str] = []  # what llama.cpp has said since the last `clear`; its errors end up in our messages
N_THREADS = 1  # with more, ggml waits in a spin at every node, which a busy machine turns into seconds


@llama_cpp.llama_log_callback
def _log(level: int, text: bytes, _: object) -> None:
    LOG.append(text.decode("utf-8", "replace"))


llama_cpp.llama_backend_init()


class LlamaError(RuntimeError):
    """llama.cpp refused; the message holds the end of its log."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}\n{''.join(LOG[-30:])}")


class Model:
    """A loaded GGUF. A context manager: the C side is freed at the end.

    `n_ctx` is the most tokens that one call can see. `vocab_only` loads the tokenizer alone. `observe` is called for
    every node of the graph, as ggml's scheduler callback: (tensor, ask, user data) -> bool.
    """

    def __init__(
        self,
        path: Path,
        *,
        n_ctx: int = 512,
        n_threads: int = N_THREADS,
        vocab_only: bool = False,
        observe: Callable[[int, bool, int], bool] | None = None,
    ) -> None:
        LOG.clear()
        llama_cpp.llama_log_set(_log, ctypes.c_void_p(0))  # each time: other tests listen elsewhere
        self._context = None
        params = llama_cpp.llama_model_default_params()
        params.vocab_only = vocab_only
        params.use_extra_bufts = False
        params.n_gpu_layers = 0
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        if not self._model:
            raise LlamaError(f"llama.cpp does not load {path}")
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        self.n_vocab: int = llama_cpp.llama_vocab_n_tokens(self._vocab)
        if vocab_only:
            return
        ctx = llama_cpp.llama_context_default_params()
        ctx.n_ctx = ctx.n_batch = ctx.n_ubatch = ctx.n_outputs_max = n_ctx
        ctx.n_seq_max = 1
        ctx.n_threads = ctx.n_threads_batch = n_threads
        ctx.type_k = ctx.type_v = llama_cpp.GGML_TYPE_F32
        ctx.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        ctx.no_perf = True
        ctx.swa_full = True
        ctx.op_offload = ctx.offload_kqv = False
        if observe is not None:
            self._observe = llama_cpp.ggml_backend_sched_eval_callback(observe)  # kept alive with the context
            ctx.cb_eval = self._observe
        self._context = llama_cpp.llama_init_from_model(self._model, ctx)
        if not self._context:
            self.close()
            raise LlamaError(f"llama.cpp makes no context for {path}")

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the context and the model; harmless when done twice."""
        if self._context:
            llama_cpp.llama_free(self._context)
            self._context = None
        if self._model:
            llama_cpp.llama_model_free(self._model)
            self._model = None

    @property
    def model(self) -> int:
        """The C handle, for what is not wrapped here."""
        assert self._model is not None
        return self._model

    def logits(self, tokens: Sequence[int] | NDArray[np.integer], *, last: int | None = None) -> NDArray[np.float32]:
        """Logits (n, vocab) after each of `tokens` (n,), or only after the `last` of them (last, vocab)."""
        self._forget()
        return self._decode(np.asarray(tokens, dtype=np.int32), 0, n_out=len(tokens) if last is None else last)

    def generate(self, tokens: Sequence[int], n_tokens: int) -> list[int]:
        """The `n_tokens` likeliest tokens after `tokens`, one at a time by KV cache; end tokens do not stop it."""
        self._forget()
        step = np.asarray(tokens, dtype=np.int32)
        position = 0
        out: list[int] = []
        for _ in range(n_tokens):
            best = self._decode(step, position, n_out=1)[-1].argmax()
            position += len(step)
            step = np.asarray([best], dtype=np.int32)
            out.append(int(best))
        return out

    def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = False) -> list[int]:
        """Token ids of `text`."""
        raw = text.encode()
        buffer = (llama_cpp.llama_token * (len(raw) + 8))()
        n = llama_cpp.llama_tokenize(self._vocab, raw, len(raw), buffer, len(buffer), add_special, parse_special)
        if n < 0:
            raise LlamaError(f"{-n} tokens for {len(raw)} bytes")
        return list(buffer[:n])

    def _forget(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)

    def _decode(self, tokens: NDArray[np.int32], position: int, *, n_out: int) -> NDArray[np.float32]:
        n = len(tokens)
        batch = llama_cpp.llama_batch_init(n, 0, 1)
        try:
            batch.n_tokens = n
            for i, token in enumerate(tokens.tolist()):
                batch.token[i] = token
                batch.pos[i] = position + i
                batch.n_seq_id[i] = 1
                batch.seq_id[i][0] = 0
                batch.logits[i] = i >= n - n_out
            if (status := llama_cpp.llama_decode(self._context, batch)) != 0:
                raise LlamaError(f"llama_decode returned {status}")
        finally:
            llama_cpp.llama_batch_free(batch)
        return np.ctypeslib.as_array(llama_cpp.llama_get_logits(self._context), (n_out, self.n_vocab)).copy()


def quantize(
    source: Path,
    path: Path,
    ftype: int,
    *,
    importance: Mapping[str, NDArray[np.float32]] | None = None,
    pure: bool = False,
    tensor_types: Sequence[tuple[str, int]] = (),
    token_embedding_type: int | None = None,
    output_tensor_type: int | None = None,
    n_threads: int = N_THREADS,
) -> Path:
    """llama.cpp's own quantization of the GGUF `source`; `importance`: Σx²/count by tensor name, experts in a row."""
    LOG.clear()
    llama_cpp.llama_log_set(_log, ctypes.c_void_p(0))
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = ftype
    params.nthread = n_threads
    params.pure = pure
    if token_embedding_type is not None:
        params.token_embedding_type = token_embedding_type
    if output_tensor_type is not None:
        params.output_tensor_type = output_tensor_type
    if tensor_types:
        overrides = (llama_cpp.llama_model_tensor_override * (len(tensor_types) + 1))()
        for slot, (pattern, kind) in zip(overrides, tensor_types, strict=False):
            slot.pattern, slot.type = pattern.encode(), kind
        params.tt_overrides = overrides
    if importance is not None:
        kept = {name: np.ascontiguousarray(values, dtype=np.float32).ravel() for name, values in importance.items()}
        entries = (llama_cpp.llama_model_imatrix_data * (len(kept) + 1))()
        for slot, (name, values) in zip(entries, kept.items(), strict=False):
            slot.name, slot.size = name.encode(), values.size
            slot.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        params.imatrix = entries
    if llama_cpp.llama_model_quantize(str(source).encode(), str(path).encode(), ctypes.byref(params)) != 0:
        raise LlamaError(f"llama_model_quantize did not write {path}")
    return path
