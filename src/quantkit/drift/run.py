"""From files and text to a result."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from quantkit.calibration import documents
from quantkit.drift.base_run import base_drift
from quantkit.drift.diagnosis import diagnose
from quantkit.drift.differences import differences
from quantkit.drift.figures import figures, only
from quantkit.drift.findings import findings
from quantkit.drift.kl_base import check_writable, file_bytes, is_kl_base, open_kl_base
from quantkit.drift.kl_base import write_kl_base as write_base
from quantkit.drift.models import Model, names_of, open_model, refuse_quantized
from quantkit.drift.progress import Progress
from quantkit.drift.provenance import Options, Statistics
from quantkit.drift.result import SCHEMA, Candidate, Domain, Drift, Routing, TensorDrift, TextFacts
from quantkit.drift.sample import Sample, Score, take_sample
from quantkit.drift.walk import Walked, walk
from quantkit.drift.weights import compare_weights
from quantkit.errors import UsageError
from quantkit.gguf import Imatrix, read_imatrix
from quantkit.llama4.forward import Stream

AnyPath = str | os.PathLike[str]

CONTEXT = 512  # as llama-perplexity has it
_INTERVAL_SECONDS = 0.1  # between reports


def drift(
    reference: AnyPath,
    candidates: Iterable[AnyPath],
    *,
    text: Iterable[AnyPath] | None = None,
    tokens: int | None = None,
    context: int | None = None,
    score: Score | None = None,
    weights: bool = True,
    weights_only: bool = False,
    imatrix: AnyPath | None = None,
    local: bool = True,
    max_ram_bytes: int | None = None,
    folder: AnyPath | None = None,
    threads: int = 0,
    write_kl_base: AnyPath | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Drift:
    """Run text through the reference and through each candidate, side by side, and say how far they are apart.

    Hidden states of all tokens go through one layer of each model, are compared, and go on; the models are read from
    disk a layer and an expert at a time. Logits are compared in pieces and never kept.

    Args:
        reference: checkpoint folder, or GGUF of f32, f16 or bf16; or a file of llama.cpp's that has the reference's
            log-probabilities (--kl-divergence-base), and its tokens: then only output is compared, as
            llama-perplexity does, in the file's chunks.
        candidates: GGUF files of the same model, whoever made them; several share one pass of the reference.
        text: .txt (a document) and .jsonl ({"text": ..., "domain": ...} a line), and not what candidates were
            calibrated on.
        tokens: to read, rounded down to whole chunks; None takes all.
        context: tokens of a chunk; chunks do not see each other. None for 512.
        score: "all" tokens that have a next one (None too), or the "second-half" of each chunk, as llama-perplexity
            does.
        weights: also the errors of weights, by tensor and expert.
        weights_only: these and nothing else, for which no text is needed.
        imatrix: importance of columns, which weights their errors as well.
        local: also each layer's own error apart from what it inherits, on one chunk of sixteen: an eighth more time.
        max_ram_bytes: of the whole process, about; where hidden states do not fit in, they are kept in files.
        folder: where those files lie; None for the system's folder of temporary files.
        threads: 0 takes all processors. No number depends on it.
        write_kl_base: where to write such a file of the reference's, from the second half of each chunk. For each
            token of Llama 4 it takes 0.2 MB.

    Raises:
        UsageError: arguments that do not fit together; files of different models; less text than one chunk.
        CheckpointError, NonFiniteError, UnsupportedModelError: from the files.
        PlanRefusedError: too little memory is allowed; the file to write exists, or takes more than is free.
    """
    texts = [Path(one) for one in text or ()]
    if is_kl_base(reference):
        only_output = not (texts or weights_only or imatrix is not None or write_kl_base is not None)
        if not only_output or context is not None or score not in (None, "second-half"):
            raise UsageError(
                f"{reference} holds log-probabilities and their tokens: there is nothing else to compare with",
                hint="Leave away --text, --context, --score, --weights-only, --imatrix and --write-kl-base.",
            )
        given = None if folder is None else Path(folder)
        return base_drift(
            open_kl_base(reference),
            list(candidates),
            tokens=tokens,
            max_ram_bytes=max_ram_bytes,
            folder=given,
            threads=threads,
            progress=progress,
        )
    if weights_only and (texts or tokens is not None):
        raise UsageError("weights alone are compared without text", hint="Leave away --text and --tokens.")
    if weights_only and write_kl_base is not None:
        raise UsageError("logits are not computed where weights alone are compared")
    if not texts and not weights_only:
        raise UsageError(
            "no text to measure drift on",
            hint="Name one or more .txt or .jsonl files with --text, of what the model will read, and not what the "
            "files were calibrated on: there they look better than they are. --weights-only needs none.",
        )
    with ExitStack() as stack:
        models = [_open(path, stack) for path in (reference, *candidates)]
        _check(models)
        importance = None if imatrix is None else read_imatrix(Path(imatrix))
        statistics = None if imatrix is None else Statistics.of(Path(imatrix))
        options = Options(
            tokens,
            (context or CONTEXT) if texts else None,
            (score or "all") if texts else None,
            weights=weights or weights_only,
            local=local and bool(texts),
        )
        sample, found = None, None
        if texts:
            sample = take_sample(
                documents(texts),
                models[0].encoder(),
                context=context or CONTEXT,
                tokens=tokens,
                score=score or "all",
                paths=texts,
            )
            at_end = None if write_kl_base is None else _base_writer(Path(write_kl_base), models[0], sample)
            found = walk(
                models[0].weights,
                [model.weights for model in models[1:]],
                sample,
                local=local,
                max_ram_bytes=max_ram_bytes,
                folder=None if folder is None else Path(folder),
                threads=threads,
                progress=progress,
                at_end=at_end,
            )
        tensors: Sequence[tuple[TensorDrift, ...]] = [()] * (len(models) - 1)
        if weights or weights_only:
            tensors = _compare_weights(models, importance, threads, progress)
        result = _result(models, sample, found, tensors, texts, options)
        return _with_findings(replace(result, imatrix=statistics), models)


def _base_writer(path: Path, reference: Model, sample: Sample) -> Callable[[Stream], None]:
    n_vocab, context = reference.weights.hp.vocab_size, sample.context
    if context < 3:
        raise UsageError(f"a chunk of {context} tokens has no second half to write")
    check_writable(path, file_bytes(len(sample.chunks), context, n_vocab))

    def write(stream: Stream) -> None:
        def logits(chunk: int, first: int, stop: int) -> npt.NDArray[np.float32]:
            return stream.logits(chunk * context + first, chunk * context + stop)

        write_base(path, sample.text_tokens, n_vocab, logits)

    return write


def _open(path: AnyPath, stack: ExitStack) -> Model:
    model = open_model(path)
    stack.enter_context(closing(model.weights))
    return model


def _check(models: Sequence[Model]) -> None:
    reference, *candidates = models
    if not candidates:
        raise UsageError("there is no file to compare with the reference")
    refuse_quantized(reference)
    for candidate in candidates:
        reference.refuse_other(candidate)


def _compare_weights(
    models: Sequence[Model], imatrix: Imatrix | None, threads: int, progress: Callable[[Progress], None] | None
) -> Sequence[tuple[TensorDrift, ...]]:
    start = told = time.monotonic()

    def tell(name: str, done: int, total: int) -> None:
        nonlocal told
        now = time.monotonic()
        if progress is not None and (now - told > _INTERVAL_SECONDS or done == total):
            told = now
            progress(Progress(name, 0, 0, done, total, now - start))

    own, *others = [model.weights for model in models]
    return compare_weights(
        own, others, [model.stored for model in models], imatrix=imatrix, threads=threads, progress=tell
    )


def _result(
    models: Sequence[Model],
    sample: Sample | None,
    found: Sequence[Walked] | None,
    tensors: Sequence[tuple[TensorDrift, ...]],
    texts: list[Path],
    options: Options,
) -> Drift:
    reference, identities = models[0].identity, [model.identity for model in models[1:]]
    if sample is None or found is None:
        alone = zip(identities, tensors, strict=True)
        candidates = tuple(Candidate.of(identity, None, tensors=errors) for identity, errors in alone)
        return Drift(SCHEMA, reference, None, candidates, (), options)
    groups = sample.clusters
    candidates = tuple(
        Candidate.of(
            identity,
            figures(walked.scores, groups),
            routing=Routing.of(walked.routing) if walked.routing else None,
            embedding=walked.embedding,
            layers=walked.layers,
            domains=_domains(walked, sample),
            tensors=errors,
            scores=walked.scores,
        )
        for identity, walked, errors in zip(identities, found, tensors, strict=True)
    )
    pairs = differences([walked.scores for walked in found], names_of([one.file for one in identities]), groups)
    return Drift(SCHEMA, reference, TextFacts.of(sample, texts, options.score or "all"), candidates, pairs, options)


def _with_findings(result: Drift, models: Sequence[Model]) -> Drift:
    pairs = zip(result.candidates, models[1:], strict=True)
    candidates = tuple(
        replace(one, findings=findings(one, diagnose(models[0].weights, model.weights, one.tensors)))
        for one, model in pairs
    )
    return replace(result, candidates=candidates)


def _domains(walked: Walked, sample: Sample) -> tuple[Domain, ...]:
    groups = sample.clusters
    found = []
    for name, mask in sample.domain_masks().items():
        part = figures(only(walked.scores, mask), groups.only(mask))
        found.append(Domain(name, part.tokens, part.kld, part.perplexity, part.top1_agreement, part.top1_ci95))
    return tuple(found)
