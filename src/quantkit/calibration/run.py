"""From text to a file of statistics."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal, get_args

from quantkit.calibration.collector import statistics_bytes
from quantkit.calibration.cost import Cost
from quantkit.calibration.rounds import Calibration, Ending, Round, ShortExpert, has_stalled, short_experts
from quantkit.calibration.self_check import check_layers
from quantkit.calibration.text import DEFAULT_NAME, default_documents, documents
from quantkit.calibration.tokens import Ids, TokenSource, token_source
from quantkit.calibration.watch import Progress, Watch
from quantkit.checkpoint import open_checkpoint
from quantkit.errors import PlanRefusedError, UsageError
from quantkit.gguf import write_imatrix
from quantkit.llama4 import Hyperparameters
from quantkit.llama4.forward import Memory, Stream, open_weights

Format = Literal["gguf", "dat"]
_VISION = re.compile(r"vision_model\.|multi_modal_projector\.")  # not read


def calibrate(
    checkpoint: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    text: Iterable[str | os.PathLike[str]] | None = None,
    context: int = 512,
    tokens: int | None = None,
    min_tokens_per_expert: int = 0,
    max_tokens: int | None = None,
    parse_special: bool = False,
    format: Format = "gguf",
    max_ram_bytes: int | None = None,
    threads: int = 0,
    force: bool = False,
    announce: Callable[[Cost], None] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Calibration:
    """Run the text through the model, a layer and an expert at a time, and write what its matrices were given.

    Each expert has the statistics of its own tokens, multiplied by the router's weight as the runtime does it.

    Args:
        text: .txt and .jsonl files, in order; None takes the text that comes with quantkit, which the file's `datasets`
            name "quantkit-default-1".
        context: tokens of a chunk; chunks do not see each other.
        tokens: of the first round, rounded down to whole chunks; None takes all.
        min_tokens_per_expert: after a round in which an expert has seen fewer, another begins, over as many new tokens.
        max_tokens: of all rounds; None allows four times `tokens`.
        format: "gguf", or "dat" as older llama.cpp had it, without counts by expert.
        max_ram_bytes: of the whole process, about; where hidden states do not fit in, they are kept in a file.
        threads: 0 takes all processors. No bit of the file depends on it.
        force: replace `out`.
        announce: is told what it will cost, before it begins.

    Raises:
        UsageError: arguments or text that do not fit together; less text than one chunk.
        CheckpointError, NonFiniteError, UnsupportedModelError: from the checkpoint.
        PlanRefusedError: `out` exists, or too little memory is allowed.
        OutputError: writing failed. `out` appears only when it is whole.
        VerificationError: one layer of each kind is computed for a few tokens by a plain implementation as well, before
            the first round, and the two do not agree.
    """
    path, texts = Path(out), None if text is None else [Path(one) for one in text]
    names = (DEFAULT_NAME,) if texts is None else tuple(map(str, texts))
    n_first, n_most = _n_chunks(context, tokens, min_tokens_per_expert, max_tokens)
    _check(path, texts, format, force=force)
    with open_checkpoint(checkpoint) as cp:
        read = default_documents() if texts is None else documents(texts)
        source = token_source(cp, read, context=context, parse_special=parse_special)
        read_bytes = sum(entry.n_bytes for name, entry in cp.tensors.items() if not _VISION.match(name))
    chunks = _first(source, names, n_first)
    n_most = len(chunks) if n_most is None else n_most
    weights = open_weights(checkpoint)
    try:
        watch = Watch(weights.hp, progress)
        rest_bytes = _beside_statistics(max_ram_bytes, weights.hp)
        rounds: list[Round] = []
        short: tuple[ShortExpert, ...] = ()
        n_chunks = 0
        ending: Ending | None = None
        while ending is None:
            before, start = short, time.monotonic()
            watch.begin(len(rounds) + 1, chunks.size)
            folder = path.absolute().parent
            with Stream(
                weights, chunks, observer=watch, max_ram_bytes=rest_bytes, folder=folder, threads=threads
            ) as stream:
                if announce is not None and not rounds:
                    announce(_cost(stream.memory, weights.hp, chunks, n_most, rest_bytes, read_bytes))
                if not rounds:
                    check_layers(weights, chunks, threads)
                stream.run()
            watch.tell(weights.hp.n_layers)
            n_chunks += len(chunks)
            short = short_experts(watch.imatrix((), n_chunks, context), min_tokens_per_expert)
            rounds.append(Round(chunks.size, time.monotonic() - start, len(short)))
            if not short:
                ending = "floor"
            elif len(rounds) > 1 and has_stalled(before, short):
                ending = "stalled"
            elif n_chunks >= n_most:
                ending = "max-tokens"
            elif not len(chunks := source.take(min(n_first or n_most, n_most - n_chunks))):
                ending = "text"
        imatrix = watch.imatrix(names, n_chunks, context)
        write_imatrix(path, imatrix, legacy=format == "dat")
    finally:
        weights.close()
    return Calibration(path, imatrix, tuple(rounds), ending, short)


def _n_chunks(context: int, tokens: int | None, floor: int, max_tokens: int | None) -> tuple[int | None, int | None]:
    """Chunks of the first round and of all rounds; None for those of all text."""
    if floor < 0:
        raise UsageError(f"{floor} tokens per expert")
    if tokens is None:
        if floor or max_tokens is not None:
            raise UsageError(
                "without a number of tokens the first round takes all the text, and none is left for others",
                hint="Say how many tokens a round takes (--tokens).",
            )
        return None, None
    if tokens < context:
        raise UsageError(f"{tokens} tokens do not fill one chunk of {context}")
    if max_tokens is not None and max_tokens < tokens:
        raise UsageError(f"{max_tokens} tokens at most, and {tokens} in the first round")
    most = (4 * tokens if max_tokens is None else max_tokens) if floor else tokens
    return tokens // context, most // context


def _check(path: Path, texts: list[Path] | None, format: str, *, force: bool) -> None:
    if format not in get_args(Format):
        raise UsageError(f"unknown format {format!r}", hint=f"Known: {', '.join(get_args(Format))}.")
    if texts is not None and not texts:
        raise UsageError(
            "text names no file",
            hint="Name one or more .txt or .jsonl files, or leave --text away for the text that comes with quantkit.",
        )
    if os.path.lexists(path) and not force:
        raise PlanRefusedError(f"{path} exists", hint="Pass --force to overwrite it, or choose another name.")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"{path}: there is no such folder")


def _first(source: TokenSource, names: tuple[str, ...], n_chunks: int | None) -> Ids:
    chunks = source.take(n_chunks)
    if not len(chunks):
        raise UsageError(
            f"{', '.join(names)}: {source.n_left} tokens do not fill one chunk of {source.context}",
            hint="Give more text, or a shorter --context.",
        )
    return chunks


def _beside_statistics(max_ram_bytes: int | None, hp: Hyperparameters) -> int | None:
    """What the stream may take of the memory that is allowed."""
    if max_ram_bytes is None:
        return None
    n_bytes = statistics_bytes(hp)
    if n_bytes >= max_ram_bytes:
        raise PlanRefusedError(f"{max_ram_bytes:,} bytes of memory are allowed, and statistics alone take {n_bytes:,}")
    return max_ram_bytes - n_bytes


def _cost(
    memory: Memory, hp: Hyperparameters, chunks: Ids, n_most: int, rest_bytes: int | None, read_bytes: int
) -> Cost:
    in_memory = memory.keeps_states(rest_bytes)
    return Cost(
        tokens=chunks.size,
        context=chunks.shape[1],
        max_tokens=max(n_most, len(chunks)) * chunks.shape[1],
        layers=hp.n_layers,
        read_bytes=read_bytes,
        states_bytes=memory.states,
        states_in_memory=in_memory,
        peak_ram_bytes=memory.working + statistics_bytes(hp) + (memory.states if in_memory else 0),
    )
