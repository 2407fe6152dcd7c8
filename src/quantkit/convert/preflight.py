"""`plan`: everything that can fail before the first payload byte fails here, from headers alone."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import quantkit
from quantkit.checkpoint import Checkpoint, open_checkpoint
from quantkit.convert import room
from quantkit.convert.finish import finished_fields
from quantkit.convert.importance import Statistics, check_coverage, read_statistics
from quantkit.convert.journal import Standing, standing
from quantkit.convert.part import part_path
from quantkit.convert.plan import DiskNeed, Fallback, FileSize, OutputPlan, Plan, RuntimeNeed, TensorPlan
from quantkit.convert.request import PathLike, Wanted, settle
from quantkit.convert.tuning import MiB, Tuning
from quantkit.convert.weighting import parse_weighting
from quantkit.convert.weighting import weighting as default_weighting
from quantkit.convert.work import OutputWork, Work
from quantkit.errors import PlanRefusedError, UnsupportedModelError, UsageError
from quantkit.gguf import lay_out, parse_split_size, tensor_bytes
from quantkit.kernels.codec import Weighting
from quantkit.llama4 import Hyperparameters, Model, mismatches, text_model, vision_mismatches, vision_model
from quantkit.recipes import (
    Choice,
    ModelShape,
    active_bytes_per_token,
    bits_per_weight,
    choose,
    kv_cache_bytes,
    tokens_per_second_bound,
)

_UNQUANTIZED = ("f32", "f16", "bf16")
_FIXED_RAM_BYTES = 64 * MiB  # modules, header strings, thread stacks
_RAM_BYTES_PER_THREAD = 4 * MiB  # the encoder's tile of source rows


@dataclass(frozen=True)
class _Options:
    """Those arguments of `plan` that shape every output alike."""

    pure: bool
    tensor_types: tuple[tuple[str, str], ...]
    token_embedding_type: str | None
    output_tensor_type: str | None
    split_max_bytes: int | None
    allow_missing_imatrix: bool
    weighting: Weighting | None
    contexts: tuple[int, ...]
    bandwidth_gb_s: float

    def overrides(self) -> list[str]:
        """As text, for provenance and the journal."""
        texts = [f"{pattern}={name}" for pattern, name in self.tensor_types]
        texts += [f"token_embd={self.token_embedding_type}"] if self.token_embedding_type else []
        return texts + ([f"output={self.output_tensor_type}"] if self.output_tensor_type else [])


def plan(
    checkpoint: PathLike,
    out: PathLike | None = None,
    types: Sequence[str] | str = ("q4_k_m",),
    *,
    mmproj: PathLike | None = None,
    mmproj_only: bool = False,
    mmproj_type: str = "f16",
    imatrix: PathLike | None = None,
    pure: bool = False,
    tensor_types: Sequence[tuple[str, str]] = (),
    token_embedding_type: str | None = None,
    output_tensor_type: str | None = None,
    split_max_size: int | str | None = None,
    strict: bool = False,
    allow_mismatch: bool = False,
    allow_missing_imatrix: bool = False,
    threads: int = 0,
    force: bool = False,
    weighting: str | None = None,
    contexts: Sequence[int] = (8192, 131072),
    bandwidth_gb_s: float = 100.0,
    tuning: Tuning | None = None,
) -> Plan:
    """Say what `convert` with these arguments will do, or refuse as it would. Reads headers and an imatrix, no weights.

    Args:
        checkpoint: folder of a Llama 4 checkpoint.
        out: the GGUF; holds `{type}` when there are several types. None plans without looking at disk and folder.
        types: recipes ("q4_k_m" ...); all are written from one read of the source.
        mmproj: also write vision tower and projector there, its matrices in the format `mmproj_type`.
        mmproj_only: write nothing else.
        imatrix: file of llama-imatrix, GGUF or legacy.
        pure, tensor_types, token_embedding_type, output_tensor_type: as in llama-quantize; pairs (regex, type).
        split_max_size: bytes, or text such as "50G".
        strict: refuse fallbacks to other types.
        allow_mismatch: convert what the runtime computes otherwise, with a warning in the metadata.
        allow_missing_imatrix: quantize tensors without an entry as if there were no imatrix.
        threads: of the encoder; 0 takes all processors.
        force: overwrite outputs. Nothing else.
        weighting: of the encoder; None takes what measurements found best.
        contexts, bandwidth_gb_s: for the numbers on running the result.

    Raises:
        UsageError, CheckpointError, UnsupportedModelError, PlanRefusedError, ResumeError
    """
    tuning = tuning or Tuning()
    wanted = settle(checkpoint, out, types, mmproj=mmproj, mmproj_only=mmproj_only, mmproj_type=mmproj_type)
    options = _Options(
        pure,
        tuple((pattern, name) for pattern, name in tensor_types),
        token_embedding_type,
        output_tensor_type,
        parse_split_size(split_max_size) if isinstance(split_max_size, str) else split_max_size,
        allow_missing_imatrix,
        None if weighting is None else parse_weighting(weighting),
        tuple(contexts),
        bandwidth_gb_s,
    )
    if threads < 0:
        raise UsageError(f"threads is {threads}; give 0 for all processors or a positive number")
    source = open_checkpoint(checkpoint)
    hp = Hyperparameters.from_checkpoint(source)
    reasons = _mismatches(hp, wanted)
    if reasons and not allow_mismatch:
        raise UnsupportedModelError(
            f"{source.root}: llama.cpp would compute this model wrongly: {'; '.join(reasons)}",
            hint="Pass --allow-mismatch to convert it all the same, with a warning in the file.",
        )
    models = _models(source, hp, wanted, tuning)
    statistics = read_statistics(Path(imatrix), models["model"].outputs) if imatrix and "model" in models else None

    planned, works, warnings = [], [], list(reasons)
    for output in wanted:
        result, work, missing = _output(
            source,
            output,
            models[output.kind],
            hp,
            options,
            statistics if output.kind == "model" else None,
            reasons=reasons,
        )
        planned.append(result)
        works.append(work)
        if missing:
            warnings.append(f"{output.name}: quantized without importance: {', '.join(missing)}")
    if strict:
        _refuse_fallbacks(planned)

    slabs = tuple(slab for kind in models for slab in models[kind].slabs)
    peak = _peak_ram_bytes(slabs, works, statistics, threads, tuning)
    available = room.available_ram_bytes()
    fingerprint = _fingerprint(source, wanted, works, options, statistics)
    left = Standing()
    disk: tuple[DiskNeed, ...] = ()
    journal = None
    if out is not None or (mmproj is not None and mmproj_only):
        journal = wanted[0].path.with_name(wanted[0].path.name + ".part.journal")
        sizes = {file.path: file.n_bytes for work in works for file in work.files}
        room.check_folders(list(sizes))
        left = standing(journal, fingerprint, {part_path(path): size for path, size in sizes.items()})
        room.check_existing(list(sizes), force=force, renames_left=left.complete)
        disk = room.disk_needs([] if left.complete else list(sizes.items()))
        room.check_disk(disk)
    room.check_ram(peak, available)
    return Plan(
        checkpoint=source.root,
        source_fingerprint=source.fingerprint,
        source_bytes=sum(slab.n_bytes for slab in slabs),
        n_slabs=len(slabs),
        threads=threads or _processors(),
        outputs=tuple(planned),
        disk=disk,
        peak_ram_bytes=peak,
        available_ram_bytes=available,
        imatrix=None if statistics is None else str(statistics.path),
        imatrix_sha256=None if statistics is None else statistics.sha256,
        warnings=tuple(warnings),
        allowed_mismatches=tuple(reasons),
        work=Work(source, slabs, tuple(works), journal, fingerprint, left),
    )


def _mismatches(hp: Hyperparameters, wanted: Sequence[Wanted]) -> list[str]:
    kinds = {output.kind for output in wanted}
    found = mismatches(hp) if "model" in kinds else []
    return found + (vision_mismatches(hp.vision) if "mmproj" in kinds and hp.vision else [])


def _models(source: Checkpoint, hp: Hyperparameters, wanted: Sequence[Wanted], tuning: Tuning) -> dict[str, Model]:
    limit = {} if tuning.slab_bytes is None else {"max_slab_bytes": tuning.slab_bytes}
    models = {}
    for output in wanted:
        if output.kind == "mmproj":
            models["mmproj"] = vision_model(source, hp, type=output.name, **limit)
        elif "model" not in models:
            models["model"] = text_model(source, hp, **limit)
    return models


def _output(
    source: Checkpoint,
    wanted: Wanted,
    model: Model,
    hp: Hyperparameters,
    options: _Options,
    statistics: Statistics | None,
    *,
    reasons: Sequence[str],
) -> tuple[OutputPlan, OutputWork, list[str]]:
    choices = _choices(wanted, model, hp, options, has_imatrix=statistics is not None)
    formats = {tensor.name: tensor.keep or choices[tensor.name].type for tensor in model.outputs}
    quantized = [name for name, format in formats.items() if format not in _UNQUANTIZED]
    missing: list[str] = []
    importance = {}
    if statistics is not None:
        missing = check_coverage(statistics, quantized, allow_missing=options.allow_missing_imatrix)
        importance = {name: statistics.importance[name] for name in quantized if name in statistics.importance}
    fields = finished_fields(
        source,
        model.metadata,
        wanted,
        statistics=statistics,
        n_weighted=len(importance),
        pure=options.pure and wanted.kind == "model",
        overrides=options.overrides() if wanted.kind == "model" else (),
        mismatches=reasons,
    )
    files = lay_out(
        fields,
        [(tensor.name, tensor.shape, formats[tensor.name]) for tensor in model.outputs],
        path=wanted.path,
        split_max_bytes=options.split_max_bytes if wanted.kind == "model" else None,
    )
    tensors = tuple(
        TensorPlan(
            tensor.name,
            tuple(tensor.shape),
            formats[tensor.name],
            tensor_bytes(tensor.shape, formats[tensor.name]),
            "imatrix" if tensor.name in importance else "missing" if tensor.name in missing else "",
        )
        for tensor in model.outputs
    )
    fallbacks = tuple(
        _fallback(choices[tensor.name], tensor)
        for tensor in tensors
        if tensor.name in choices and choices[tensor.name].type != choices[tensor.name].wanted
    )
    n_weights = sum(prod(tensor.shape) for tensor in tensors)
    n_payload = sum(tensor.n_bytes for tensor in tensors)
    n_extra = sum(fallback.extra_bytes for fallback in fallbacks)
    result = OutputPlan(
        kind=wanted.kind,
        recipe=wanted.name,
        path=wanted.path,
        files=tuple(FileSize(file.path, file.n_bytes, len(file.offsets)) for file in files),
        tensors=tensors,
        fallbacks=fallbacks,
        n_bytes=sum(file.n_bytes for file in files),
        tensor_bytes=n_payload,
        n_weights=n_weights,
        bits_per_weight=n_payload * 8 / n_weights,
        nominal_bits_per_weight=(n_payload - n_extra) * 8 / n_weights,
        runtime=_runtime(hp, tensors, options) if wanted.kind == "model" else (),
    )
    weights = {
        name: options.weighting or default_weighting(format, name in importance) for name, format in formats.items()
    }
    work = OutputWork(
        tuple(files), tuple((tensor, formats[tensor.name]) for tensor in model.outputs), importance, weights
    )
    return result, work, missing


def _choices(
    wanted: Wanted, model: Model, hp: Hyperparameters, options: _Options, *, has_imatrix: bool
) -> dict[str, Choice]:
    tensors = [(tensor.name, tensor.shape) for tensor in model.outputs]
    shape = ModelShape(hp.n_layers, hp.n_heads, hp.n_kv_heads, hp.n_experts)
    if wanted.kind == "mmproj":
        chosen = choose(wanted.recipe.name, shape, tensors, has_imatrix=False, pure=True)
    else:
        chosen = choose(
            wanted.recipe.name,
            shape,
            tensors,
            has_imatrix=has_imatrix,
            pure=options.pure,
            tensor_types=options.tensor_types,
            token_embedding_type=options.token_embedding_type,
            output_tensor_type=options.output_tensor_type,
        )
    kept = {tensor.name for tensor in model.outputs if tensor.keep}
    return {choice.name: choice for choice in chosen if choice.name not in kept}


def _fallback(choice: Choice, tensor: TensorPlan) -> Fallback:
    extra_bits = bits_per_weight(choice.type) - bits_per_weight(choice.wanted)
    extra_bytes = round(prod(tensor.shape) * extra_bits / 8)
    return Fallback(choice.name, choice.wanted, choice.type, extra_bytes, choice.reason)


def _refuse_fallbacks(planned: Sequence[OutputPlan]) -> None:
    found = [(output, fallback) for output in planned for fallback in output.fallbacks]
    if found:
        names = "; ".join(f"{item.tensor}: {item.wanted} -> {item.type}" for _, item in found[:8])
        more = f" and {len(found) - 8} more" if len(found) > 8 else ""
        cost = sum(item.extra_bytes for _, item in found)
        raise PlanRefusedError(
            f"{len(found)} tensors cannot have the type that was asked for ({cost:+,} bytes): {names}{more}",
            hint="Drop --strict to take these types, or choose a recipe with blocks of 32 (q8_0, q5_0, q4_0, iq4_nl).",
        )


def _runtime(hp: Hyperparameters, tensors: Sequence[TensorPlan], options: _Options) -> tuple[RuntimeNeed, ...]:
    active = active_bytes_per_token(
        [(tensor.name, tensor.shape, tensor.type) for tensor in tensors], n_experts_used=hp.n_experts_used
    )
    needs = {}
    for asked in options.contexts:
        context = min(asked, hp.context_length)
        cache = kv_cache_bytes(context, n_layers=hp.n_layers, n_kv_heads=hp.n_kv_heads, head_dim=hp.head_dim)
        touched = active + cache
        bound = tokens_per_second_bound(touched, options.bandwidth_gb_s)
        needs[context] = RuntimeNeed(context, sum(tensor.n_bytes for tensor in tensors), cache, touched, bound)
    return tuple(needs.values())


def _peak_ram_bytes(
    slabs: Sequence[Any], works: Sequence[OutputWork], statistics: Statistics | None, threads: int, tuning: Tuning
) -> int:
    slab_bytes = max((slab.n_bytes for slab in slabs), default=0) * tuning.slab_buffers
    chunk_bytes = tuning.chunk_bytes * tuning.chunk_buffers
    header_bytes = sum(len(file.header) for work in works for file in work.files)
    importance_bytes = statistics.n_bytes if statistics else 0
    scratch_bytes = (threads or _processors()) * _RAM_BYTES_PER_THREAD
    return slab_bytes + chunk_bytes + header_bytes + importance_bytes + scratch_bytes + _FIXED_RAM_BYTES


def _fingerprint(
    source: Checkpoint,
    wanted: Sequence[Wanted],
    works: Sequence[OutputWork],
    options: _Options,
    statistics: Statistics | None,
) -> dict[str, Any]:
    """What must not change between a run and its resumption, field by field, in words of the command line."""
    layout = hashlib.sha256()
    types: dict[str, str] = {}
    for output, work in zip(wanted, works, strict=True):
        per_tensor = "\n".join(f"{tensor.name} {format}" for tensor, format in work.tensors)
        types[f"{output.kind} {output.name}"] = hashlib.sha256(per_tensor.encode()).hexdigest()
        for file in work.files:
            layout.update(f"{file.path.name} {file.n_bytes} {sorted(file.offsets.items())}".encode())
            layout.update(hashlib.sha256(file.header).digest())
    weightings = sorted({name for work in works for name in work.weighting.values()})
    return {
        "quantkit version": quantkit.__version__,
        **{f"shard {file.name}": _stamp(file) for file in source.files},
        "source fingerprint": source.fingerprint,
        "types": [output.name for output in wanted if output.kind == "model"],
        "mmproj type": next((output.name for output in wanted if output.kind == "mmproj"), None),
        "outputs": [str(output.path.name) for output in wanted],
        "pure": options.pure,
        "tensor types": options.overrides(),
        "split max size": options.split_max_bytes,
        "imatrix sha256": None if statistics is None else statistics.sha256,
        "weighting": weightings,
        "types by tensor": types,
        "layout": layout.hexdigest(),
    }


def _stamp(file: Path) -> str:
    status = file.stat()
    return f"{status.st_size} bytes, modified {status.st_mtime_ns} ns"


def _processors() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
