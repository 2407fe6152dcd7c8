"""From text to a file of statistics."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Literal, get_args

from quantkit.calibration.cost import Cost
from quantkit.calibration.fingerprint import run_fingerprint
from quantkit.calibration.rounds import Calibration, Ending, Round, has_stalled, short_experts
from quantkit.calibration.savepoint import Savepoint, refuse_existing
from quantkit.calibration.text import DEFAULT_NAME, default_documents, documents, largest_bytes
from quantkit.calibration.tokens import give_back_memory, token_source
from quantkit.calibration.walk import Supply, Walk
from quantkit.calibration.watch import Progress, Watch
from quantkit.checkpoint import open_checkpoint
from quantkit.errors import UsageError
from quantkit.gguf import read_imatrix
from quantkit.llama4.forward import open_weights

Format = Literal["gguf", "dat"]
_UNREAD = re.compile(r"vision_model\.|multi_modal_projector\.|(language_model\.)?(lm_head|model\.norm)\.")
_LAYER = re.compile(r"\.layers\.(\d+)\.")


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
    keep_journal: bool = False,
    announce: Callable[[Cost], None] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Calibration:
    """Run the text through the model, a layer and an expert at a time, and write what its matrices were given.

    Each expert has the statistics of its own tokens, multiplied by the router's weight as the runtime does it.

    Args:
        text: .txt and .jsonl files, in order; None takes the text that comes with quantkit, which the file's `datasets`
            name "quantkit-default-2".
        context: tokens of a chunk; chunks do not see each other.
        tokens: of the first round, rounded down to whole chunks; None takes all.
        min_tokens_per_expert: after a round in which an expert has seen fewer, another begins, over as many new tokens.
        max_tokens: of all rounds, if there may be several; None allows four times `tokens`.
        format: "gguf", or "dat" as older llama.cpp had it, without counts by expert.
        max_ram_bytes: of the whole process, about, tokenizer and text included; where hidden states do not fit in, they
            are kept in a file.
        threads: 0 takes all processors. No bit of the file depends on it.
        force: replace `out`.
        keep_journal: leave OUT.part.journal, by which the same call finds its work done, until `forget(out)`.
        announce: is told what it will cost, before it begins.
        progress: is told how far it is, from any thread, one call at a time. What it raises ends the run.

    Stopped at any moment (KeyboardInterrupt and kill -9 included), the same call goes on after the last layer that was
    finished, from files OUT.part.*, to identical bytes; `max_ram_bytes` and `threads` may differ.

    Raises:
        UsageError: arguments or text that do not fit together; less text than one chunk.
        CheckpointError, NonFiniteError, UnsupportedModelError: from the checkpoint.
        PlanRefusedError: `out` exists, or too little memory is allowed.
        ResumeError: OUT.part.* belong to a run with other arguments, text or checkpoint.
        OutputError: writing failed. `out` appears only when it is whole.
        VerificationError: one layer of each kind is computed for a few tokens by a plain implementation as well, before
            the first round, and the two do not agree.
    """
    path, texts = Path(out), None if text is None else [Path(one) for one in text]
    names = (DEFAULT_NAME,) if texts is None else tuple(map(str, texts))
    n_first, n_most = _n_chunks(context, tokens, min_tokens_per_expert, max_tokens)
    _check(path, texts, format, force=force)
    options = {
        "context": context,
        "tokens": tokens,
        "min tokens per expert": min_tokens_per_expert,
        "max tokens": max_tokens,
        "parse special": parse_special,
        "format": format,
    }
    with open_checkpoint(checkpoint) as cp:
        read = default_documents() if texts is None else documents(texts)
        source = token_source(cp, read, context=context, parse_special=parse_special)
        read_bytes = [(_layer(name), entry.n_bytes) for name, entry in cp.tensors.items() if not _UNREAD.match(name)]
        fingerprint = run_fingerprint(cp, texts, options)
    with Savepoint(path, fingerprint, force=force) as saved, closing(open_weights(checkpoint)) as weights:
        imatrix = None
        if saved.point.ending is None:
            supply = Supply(source, names, n_first, n_most)
            for _ in saved.point.rounds:
                supply.take()
            watch, text_bytes = Watch(weights.hp, progress), largest_bytes(texts)
            saved.restore(watch)
            walk = Walk(
                weights, watch, saved, max_ram_bytes, text_bytes, path.absolute().parent, threads, read_bytes, announce
            )
            chunks = supply.take()
            give_back_memory()
        while saved.point.ending is None:
            point, seconds = saved.point, walk.run(chunks, supply)
            short = short_experts(watch.imatrix((), 0, context), min_tokens_per_expert)
            done = Round(chunks.size, seconds, len(short))
            ending: Ending | None = None
            if not short:
                ending = "floor"
            elif point.rounds and has_stalled(point.short, short):
                ending = "stalled"
            elif supply.n_chunks >= supply.n_most:
                ending = "max-tokens"
            elif not len(chunks := supply.take()):
                ending = "text"
            if ending is not None:
                imatrix = watch.imatrix(names, supply.n_chunks, context)
                saved.write(imatrix, legacy=format == "dat")
            saved.note_round(done, short, ending)
        saved.publish(keep_journal=keep_journal)
    point = saved.point
    assert point.ending is not None
    return Calibration(path, imatrix or read_imatrix(path, inputs=True), point.rounds, point.ending, point.short)


def _n_chunks(context: int, tokens: int | None, floor: int, max_tokens: int | None) -> tuple[int | None, int | None]:
    """Chunks of the first round and of all rounds; None for those of all text."""
    if floor < 0:
        raise UsageError(f"{floor} tokens per expert")
    if max_tokens is not None and not floor:
        raise UsageError(
            f"{max_tokens} tokens at most, and no number of them that an expert needs: there is one round",
            hint="Say --min-tokens-per-expert too, or say --tokens alone.",
        )
    if tokens is None:
        if floor:
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
    refuse_existing(path, force=force)
    if not path.absolute().parent.is_dir():
        raise UsageError(f"{path}: there is no such folder")


def _layer(name: str) -> int:
    """The layer to which a tensor of a checkpoint belongs; 0 for those of none."""
    found = _LAYER.search(name)
    return int(found[1]) if found else 0
