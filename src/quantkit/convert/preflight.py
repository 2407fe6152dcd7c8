"""`plan`: everything that can fail before the first payload byte fails here, from headers alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quantkit.checkpoint import Checkpoint, open_checkpoint
from quantkit.convert import room
from quantkit.convert.fingerprint import plan_fingerprint
from quantkit.convert.importance import Statistics, read_statistics
from quantkit.convert.journal import Standing, standing
from quantkit.convert.options import Options
from quantkit.convert.output import plan_output, refuse_fallbacks
from quantkit.convert.part import part_path
from quantkit.convert.plan import DiskNeed, OutputPlan, Plan
from quantkit.convert.request import PathLike, Wanted, refuse_with_mmproj_only, settle
from quantkit.convert.tuning import MiB, Tuning
from quantkit.convert.weighting import parse_weighting
from quantkit.convert.work import OutputWork, Work
from quantkit.errors import UnsupportedModelError, UsageError
from quantkit.gguf import parse_split_size
from quantkit.kernels import build_info
from quantkit.llama4 import Hyperparameters, Model, mismatches, text_model, vision_mismatches, vision_model

_FIXED_RAM_BYTES = 64 * MiB  # modules, header strings, thread stacks
_THREADS_PER_PROCESSOR = 4  # more only wait for each other
_RAM_BYTES_PER_THREAD = 4 * MiB  # the encoder's tile of source rows

CONTEXTS = (8 << 10, 32 << 10, 128 << 10)  # tokens; what memory is stated for unless others are asked for


def plan(
    checkpoint: PathLike,
    out: PathLike | None = None,
    types: Sequence[str] | str | None = None,
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
    contexts: Sequence[int] = CONTEXTS,
    bandwidth_gb_s: float = 100.0,
    tuning: Tuning | None = None,
) -> Plan:
    """Say what `convert` with these arguments will do, or refuse as it would. Reads headers and an imatrix, no weights.

    Args:
        checkpoint: folder of a Llama 4 checkpoint.
        out: the GGUF; holds `{type}` when there are several types. None plans for
            the current folder, and refuses nothing for its sake.
        types: recipes ("q4_k_m" ...); all are written from one read of the source. None is q4_k_m.
        mmproj: also write vision tower and projector there, its matrices in the format `mmproj_type`.
        mmproj_only: write nothing else; options that only the model has are refused then.
        imatrix: file of llama-imatrix, GGUF or legacy.
        pure, tensor_types, token_embedding_type, output_tensor_type: as in llama-quantize; pairs (regex, type).
        split_max_size: bytes, or text such as "50G".
        strict: refuse fallbacks to other types.
        allow_mismatch: convert what the runtime computes otherwise, with a warning in the metadata.
        allow_missing_imatrix: quantize tensors without an entry as if there were no imatrix.
        threads: of the encoder; 0 takes all processors. At most four times as many as there are.
        force: overwrite outputs. Nothing else.
        weighting: of the encoder; None takes what measurements found best.
        contexts, bandwidth_gb_s: for the numbers on running the result.

    Raises:
        UsageError, CheckpointError, UnsupportedModelError, PlanRefusedError, ResumeError
    """
    tuning = tuning or Tuning()
    wanted = settle(checkpoint, out, types, mmproj=mmproj, mmproj_only=mmproj_only, mmproj_type=mmproj_type)
    options = Options(
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
    if mmproj_only:
        model_only = {
            "--imatrix": imatrix is not None,
            "--pure": pure,
            "--tensor-type": bool(tensor_types),
            "--token-embedding-type": token_embedding_type is not None,
            "--output-tensor-type": output_tensor_type is not None,
            "--split-max-size": split_max_size is not None,
        }
        for option in (name for name, given in model_only.items() if given):
            refuse_with_mmproj_only(option)
    if not (math.isfinite(bandwidth_gb_s) and bandwidth_gb_s > 0):
        raise UsageError(f"the bandwidth is {bandwidth_gb_s} GB/s; give a number above 0")
    threads, warnings = _settled_threads(threads)
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

    planned, works = [], []
    warnings += reasons
    for output in wanted:
        result, work, missing = plan_output(
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
        if output.kind == "model" and options.split_max_bytes:
            warnings += _oversized(result, options.split_max_bytes)
    if strict:
        refuse_fallbacks(planned)

    slabs = tuple(slab for kind in models for slab in models[kind].slabs)
    peak = _peak_ram_bytes(slabs, works, statistics, threads, tuning)
    available = room.available_ram_bytes()
    fingerprint = plan_fingerprint(source, wanted, works, options, statistics)
    left = Standing()
    journal = None
    sizes = {file.path: file.n_bytes for work in works for file in work.files}
    if out is None and (mmproj is None or not mmproj_only):
        disk = _here(sizes)
        warnings += [f"{need.folder}: not enough room: {need.text}" for need in disk if not need.fits]
    else:
        journal = wanted[0].path.with_name(wanted[0].path.name + ".part.journal")
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
        threads=threads,
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


def _peak_ram_bytes(
    slabs: Sequence[Any], works: Sequence[OutputWork], statistics: Statistics | None, threads: int, tuning: Tuning
) -> int:
    slab_bytes = max((slab.n_bytes for slab in slabs), default=0) * tuning.slab_buffers
    chunk_bytes = tuning.chunk_bytes * tuning.chunk_buffers
    header_bytes = sum(len(file.header) for work in works for file in work.files)
    importance_bytes = statistics.n_bytes if statistics else 0
    scratch_bytes = threads * _RAM_BYTES_PER_THREAD
    return slab_bytes + chunk_bytes + header_bytes + importance_bytes + scratch_bytes + _FIXED_RAM_BYTES


def _settled_threads(threads: int) -> tuple[int, list[str]]:
    """The number of threads, and what there is to say about it."""
    if threads < 0:
        raise UsageError(f"threads is {threads}; give 0 for all processors or a positive number")
    processors: int = build_info()["threads"]  # also refuses a tier that this processor lacks
    most = _THREADS_PER_PROCESSOR * processors
    if threads > most:
        return most, [f"{threads:,} threads were asked for; {most} are used, as there are {processors} processors"]
    return threads or processors, []


def _here(sizes: dict[Path, int]) -> tuple[DiskNeed, ...]:
    """Room in the current folder, which may be gone or closed to us: nothing is to be written there yet."""
    try:
        return room.disk_needs(list(sizes.items()))
    except OSError:
        return ()


def _oversized(planned: OutputPlan, split_max_bytes: int) -> list[str]:
    larger = [tensor for tensor in planned.tensors if tensor.n_bytes > split_max_bytes]
    if not larger:
        return []
    first = max(larger, key=lambda tensor: tensor.n_bytes)
    return [
        f"{planned.recipe}: {len(larger)} tensors are larger than the split size of {split_max_bytes:,} bytes, and "
        f"each gets a file of its own; {first.name} takes {first.n_bytes:,}"
    ]
