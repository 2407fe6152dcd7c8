"""The processes that `calibrate.py` times: `python walks.py NAME '{"argument": ...}'` prints what it has found as JSON.

Each reads what it needs into the page cache first, so that the disk is no part of what is timed, unless `cold` asks for
the opposite; and each is alone in its process, so that the threads of one do not spin while another is measured.
"""

from __future__ import annotations

import ctypes
import json
import os
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

Found = dict[str, Any]
ROWS = 960  # of activations at a time, as the stream has them


def token_ids(n: int, context: int, vocab: int) -> np.ndarray:
    """The same on both sides: int64 (n / context, context)."""
    return np.random.default_rng(0).integers(0, vocab, (n // context, context))


def files_of(path: Path) -> list[Path]:
    return sorted(path.glob("*.safetensors")) if path.is_dir() else [path]


def warm(path: Path) -> None:
    """Into the page cache."""
    block = bytearray(1 << 24)
    for name in files_of(path):
        with name.open("rb", buffering=0) as file:
            while file.readinto(block):
                pass


def cool(path: Path) -> None:
    """Out of the page cache."""
    for name in files_of(path):
        with name.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def prepare(path: Path, is_cold: bool) -> None:
    (cool if is_cold else warm)(path)


def timed(run: Callable[[], None]) -> Found:
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}


def blas() -> str:
    """What numpy multiplies with, and the kernels that it has chosen for this processor."""
    from threadpoolctl import threadpool_info

    found = [one for one in threadpool_info() if one["user_api"] == "blas"]
    return (
        ", ".join(f"{one['internal_api']} {one['version']} ({one.get('architecture')})" for one in found) or "unknown"
    )


def quantkit(
    checkpoint: str,
    tokens: int,
    context: int,
    threads: int,
    *,
    collect: bool = True,
    cold: bool = False,
    first: bool = False,
    logits: str = "",
) -> Found:
    """A walk of random tokens through all layers, with the statistics that `quantkit calibrate` takes.

    `first`: a chunk goes through before, as it does in `llama`, so that memory for weights has been touched.
    `shared_seconds` are those in which work was shared out among threads; in the rest only one computes.
    """
    from tests.llama4.peak import high_water_bytes

    from quantkit.calibration.collector import Collector
    from quantkit.llama4.forward import Observer, Stream, open_weights
    from quantkit.llama4.forward.team import Team

    prepare(Path(checkpoint), cold)
    weights = open_weights(checkpoint)
    ids = token_ids(tokens, context, weights.hp.vocab_size)
    if first:
        with Stream(weights, ids[:1], threads=threads) as stream:
            stream.run()
    shared = 0.0
    share_out = Team.run

    def run(self: Team, tasks: Any) -> None:
        nonlocal shared
        start = time.perf_counter()
        share_out(self, tasks)
        shared += time.perf_counter() - start

    Team.run = run  # type: ignore[method-assign]
    observer = Collector(weights.hp) if collect else Observer()
    streams: list[Stream] = []

    def walk() -> None:
        streams.append(Stream(weights, ids, observer=observer, threads=threads))
        streams[0].run()

    found = timed(walk) | {"shared_seconds": shared, "peak_bytes": high_water_bytes(), "blas": blas()}
    if logits:
        np.save(logits, streams[0].logits(0, context))
    streams[0].close()
    weights.close()
    return found


def set_rope_step(model: Any, step: int) -> None:
    """Make every `step`-th layer one without RoPE, as the checkpoint's config has it.

    llama.cpp has 4 there for Llama 4, whatever the file says, and aborts where no layer uses its temperatures: a model
    of two layers is not foreseen. The number stands in llama_hparams before three others that tell its place.
    """
    address = ctypes.cast(model, ctypes.c_void_p).value
    assert address is not None
    known = struct.pack("<IIff", 4, 8192, 0.1, 1.0)
    place = ctypes.string_at(address, 1 << 16).find(known)
    if place < 0:
        raise SystemExit("this llama.cpp keeps its hyperparameters otherwise than llama-cpp-python 0.3.36")
    ctypes.c_uint32.from_address(address + place).value = step


def llama(gguf: str, tokens: int, context: int, threads: int, *, ubatch: int, step: int, logits: str = "") -> Found:
    """The same tokens through llama.cpp with its own defaults, `ubatch` of them at a time, without any statistics.

    Logits of all tokens are asked for, as llama-imatrix does: without, the last layer would skip its experts.
    """
    import llama_cpp

    log: list[str] = []
    keep = llama_cpp.llama_log_callback(lambda _, text, __: log.append(text.decode("utf-8", "replace")))
    llama_cpp.llama_log_set(keep, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    warm(Path(gguf))
    model = llama_cpp.llama_model_load_from_file(gguf.encode(), llama_cpp.llama_model_default_params())
    if not model:
        raise SystemExit("".join(log[-20:]))
    if step != 4:
        set_rope_step(model, step)
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = params.n_outputs_max = ubatch
    params.n_seq_max = at_once = ubatch // context
    params.n_threads = params.n_threads_batch = threads
    state = llama_cpp.llama_init_from_model(model, params)
    if not state:
        raise SystemExit("".join(log[-20:]))
    n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    ids = token_ids(tokens, context, n_vocab)

    def decode(chunks: np.ndarray) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(state), True)
        batch = llama_cpp.llama_batch_init(chunks.size, 0, 1)
        batch.n_tokens = chunks.size
        for at, token in enumerate(chunks.reshape(-1).tolist()):
            batch.token[at], batch.pos[at], batch.logits[at] = token, at % context, 1
            batch.n_seq_id[at], batch.seq_id[at][0] = 1, at // context
        if (status := llama_cpp.llama_decode(state, batch)) != 0:
            raise SystemExit(f"llama_decode returned {status}\n{''.join(log[-20:])}")
        llama_cpp.llama_synchronize(state)
        llama_cpp.llama_batch_free(batch)

    decode(ids[:1])  # maps the file, makes the threads
    if logits:
        np.save(logits, np.ctypeslib.as_array(llama_cpp.llama_get_logits(state), (context, n_vocab)))
    found = timed(lambda: [decode(ids[at : at + at_once]) for at in range(0, len(ids), at_once)] and None)
    llama_cpp.llama_free(state)
    llama_cpp.llama_model_free(model)
    return found | {"flags": llama_cpp.llama_print_system_info().decode().strip(" |\n")}


def ceilings(threads: int, inputs: int, outputs: int) -> Found:
    """Float32 operations a second: in registers, and numpy's BLAS on one product of a layer; best of several."""
    from ceilings import Ceilings

    from quantkit.kernels.blas import blas_threads

    limits = Ceilings(megabytes=64, seconds=0.05)
    names = [name for name in limits.names if name.startswith("f32_fma")]
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((ROWS, inputs), np.float32), rng.standard_normal((outputs, inputs), np.float32)
    y = np.empty((ROWS, outputs), np.float32)
    best = 0.0
    with blas_threads(threads):
        for _ in range(5):
            for name in names:
                limits.sample(threads, name)
            seconds = timed(lambda: np.matmul(x, w.T, out=y) is None)["seconds"]
            best = max(best, 2 * x.size * outputs / seconds)
    limits.close()
    return {"fma": max(limits.best.values()), "blas_rate": best, "blas": blas()}


def reading(checkpoint: str, experts: int, *, cold: bool = False) -> Found:
    """Experts read and checked by one thread, as the stream does it beside its products."""
    from quantkit.llama4.forward import open_weights
    from quantkit.llama4.forward.layer_weights import read_expert

    prepare(Path(checkpoint), cold)
    weights = open_weights(checkpoint)
    n_bytes = 0

    def read() -> None:
        nonlocal n_bytes
        for expert in range(experts):
            unit = read_expert(weights, weights.hp.moe_layers[0], expert)
            n_bytes += sum(matrix.packed.nbytes for matrix in unit.matrices)
            weights.give_back(unit.matrices)

    found = timed(read) | {"bytes": n_bytes}
    weights.close()
    return found


def command(arguments: list[str]) -> Found:
    """A command of quantkit, with the peak of the whole process."""
    from tests.llama4.peak import high_water_bytes

    from quantkit.cli import app

    status: object = 0

    def run() -> None:
        nonlocal status
        try:
            app.main(arguments, prog_name="quantkit")
        except SystemExit as end:
            status = end.code

    found = timed(run)
    if status:
        raise SystemExit(f"quantkit {' '.join(arguments)} ended with {status}")
    return found | {"peak_bytes": high_water_bytes()}


WALKS: dict[str, Callable[..., Found]] = {walk.__name__: walk for walk in (quantkit, llama, ceilings, reading, command)}

if __name__ == "__main__":
    result = WALKS[sys.argv[1]](**json.loads(sys.argv[2]))
    print("\n" + json.dumps(result))
