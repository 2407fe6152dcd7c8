"""`convert`: the plan, then the walk, then files under their final names."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

from quantkit.calibration import forget, is_published
from quantkit.convert.calibration import Calibrating, collect, refuse_impossible, statistics_path
from quantkit.convert.interrupts import Interrupts
from quantkit.convert.journal import Journal, line_room, standing
from quantkit.convert.ledger import Ledger
from quantkit.convert.meter import Meter, peak_rss_bytes
from quantkit.convert.part import Part
from quantkit.convert.plan import Plan
from quantkit.convert.preflight import plan
from quantkit.convert.progress import ConvertResult, OutputResult, Progress
from quantkit.convert.request import PathLike
from quantkit.convert.tuning import Tuning
from quantkit.convert.verification import verify
from quantkit.convert.walk import Sink, Walk, slab_key
from quantkit.convert.work import Work
from quantkit.errors import NonFiniteError, UsageError
from quantkit.kernels import encode_into
from quantkit.kernels.atomic_file import sync_folder
from quantkit.llama4 import Slab


def convert(
    checkpoint: PathLike,
    out: PathLike | None,
    types: Sequence[str] | str | None = None,
    *,
    mmproj: PathLike | None = None,
    mmproj_only: bool = False,
    mmproj_type: str = "f16",
    imatrix: PathLike | None = None,
    calibrate: bool | Calibrating = False,
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
    tuning: Tuning | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> ConvertResult:
    """Convert a checkpoint to GGUF files. Each byte of it is read once; memory does not grow with the model.

    Takes the arguments of `plan`, and does what it says. Outputs appear under their names only when they are whole.
    Stopped at any moment (KeyboardInterrupt and kill -9 included), the same call goes on from OUT.part and its journal
    to identical bytes.

    Args:
        calibrate: collect the imatrix first, in OUT.imatrix.gguf (with `{type}`, "imatrix" takes its place), which is
            kept for other types. True reads the text that comes with quantkit; a dict has arguments of
            `quantkit.calibrate`, such as {"text": ["prose.txt"], "tokens": 131072}.
        progress: called from this thread, about ten times a second.

    Raises:
        As `plan` and `calibrate`; PlanRefusedError when there are such statistics already; NonFiniteError with file,
        tensor and index of a weight that no format can hold (nothing is left behind then); OutputError when the disk is
        full or fails (what was done is kept, and resumed); VerificationError when a header does not read back as it was
        written.
    """
    begun, cpu_begun = time.monotonic(), time.process_time()
    tuning = tuning or Tuning()
    planning = partial(
        plan,
        checkpoint,
        out,
        types,
        mmproj=mmproj,
        mmproj_only=mmproj_only,
        mmproj_type=mmproj_type,
        pure=pure,
        tensor_types=tensor_types,
        token_embedding_type=token_embedding_type,
        output_tensor_type=output_tensor_type,
        split_max_size=split_max_size,
        strict=strict,
        allow_mismatch=allow_mismatch,
        allow_missing_imatrix=allow_missing_imatrix,
        threads=threads,
        force=force,
        weighting=weighting,
        tuning=tuning,
    )
    statistics = None
    if calibrate is not False:
        statistics = statistics_path(checkpoint, out)
        refuse_impossible(statistics, imatrix=imatrix, mmproj_only=mmproj_only, force=force)
        # refuses what cannot be converted before an hour goes into statistics, which an interrupted run may have left
        planning(imatrix=statistics if is_published(statistics) else None).work.checkpoint.close()
        collect(checkpoint, statistics, {} if calibrate is True else calibrate, threads=threads, force=force)
    planned = planning(imatrix=imatrix if statistics is None else statistics)
    work: Work = planned.work
    if work.journal is None:
        raise UsageError("no output was named", hint="Say which file to write.")
    with Interrupts() as interrupts:
        journal = Journal.open(work.journal)
        try:
            done = _carry_out(planned, work, journal, Meter(planned.source_bytes, progress), tuning, interrupts)
        finally:
            journal.close()
            work.checkpoint.close()
    if statistics is not None:
        forget(statistics)
    return ConvertResult(
        outputs=tuple(
            OutputResult(
                output.kind,
                output.recipe,
                tuple(file.path for file in output.files),
                output.n_bytes,
                output.bits_per_weight,
                output.nominal_bits_per_weight,
                output.fallbacks,
            )
            for output in planned.outputs
        ),
        source_bytes=planned.source_bytes,
        read_bytes=sum(slab.n_bytes for slab in done),
        n_slabs=planned.n_slabs,
        resumed_slabs=planned.n_slabs - len(done),
        seconds=time.monotonic() - begun,
        cpu_seconds=time.process_time() - cpu_begun,
        peak_rss_bytes=peak_rss_bytes(),
        warnings=planned.warnings,
        statistics=statistics,
    )


def _carry_out(
    planned: Plan, work: Work, journal: Journal, meter: Meter, tuning: Tuning, interrupts: Interrupts
) -> list[Slab]:
    """Returns the slabs that this run had to do."""
    parts = [[Part(file.path, file.n_bytes) for file in output.files] for output in work.outputs]
    flat = [part for of_output in parts for part in of_output]
    # Looked at again under the lock: another run may have gone on since the plan was made.
    left = standing(journal.path, work.fingerprint, {part.part: part.n_bytes for part in flat})
    if left.complete:
        meter.start(planned.source_bytes)
        _publish(flat, journal)
        return []
    if left.resumes:
        journal.resume()
    else:
        journal.begin(work.fingerprint, line_room(slab_key(slab) for slab in work.slabs))
        sync_folder(journal.path.parent)
    todo = [slab for slab in work.slabs if slab_key(slab) not in left.finished]
    try:
        try:
            for part in flat:
                part.open()
                interrupts.check()
        except BaseException:
            if not left.resumes:  # nothing is lost, and the room that they took is given back
                _discard(flat, journal)
            raise
        try:
            _walk(planned, work, parts, journal, todo, meter, tuning, interrupts)
        except NonFiniteError:
            _discard(flat, journal)  # no later run could use it: the source has to change first
            raise
        for part in flat:
            part.sync()
            interrupts.check()
        for output in work.outputs:
            verify(output)
        interrupts.check()
        journal.note_complete()
        _publish(flat, journal)
    finally:
        for part in flat:
            part.close()
    return todo


def _walk(
    planned: Plan,
    work: Work,
    parts: Sequence[Sequence[Part]],
    journal: Journal,
    todo: Sequence[Slab],
    meter: Meter,
    tuning: Tuning,
    interrupts: Interrupts,
) -> None:
    sinks = _sinks(work, parts)
    for output, of_output in zip(work.outputs, parts, strict=True):
        for file, part in zip(output.files, of_output, strict=True):
            part.write(memoryview(file.header), 0)
    _write_computed(work, sinks)
    meter.start(sum(slab.n_bytes for slab in work.slabs) - sum(slab.n_bytes for slab in todo))
    ledger = Ledger(journal, sync_bytes=tuning.sync_bytes, sync_seconds=tuning.sync_seconds)
    try:
        walk = Walk(work.checkpoint, todo, sinks, ledger, threads=planned.threads, tuning=tuning, report=meter.report)
        with interrupts.stopping(walk.stop):
            walk.run()
    finally:
        ledger.close()
    meter.finish()


def _sinks(work: Work, parts: Sequence[Sequence[Part]]) -> dict[str, list[Sink]]:
    sinks: dict[str, list[Sink]] = {}
    for output, of_output in zip(work.outputs, parts, strict=True):
        places = {
            name: (part, offset)
            for file, part in zip(output.files, of_output, strict=True)
            for name, offset in file.offsets.items()
        }
        for tensor, format in output.tensors:
            part, offset = places[tensor.name]
            importance = output.importance.get(tensor.name)
            sink = Sink(part, offset, tuple(tensor.shape), format, importance, output.weighting[tensor.name])
            sinks.setdefault(tensor.name, []).append(sink)
    return sinks


def _write_computed(work: Work, sinks: dict[str, list[Sink]]) -> None:
    """Tensors that are computed, not read: rope_freqs."""
    import numpy as np

    for output in work.outputs:
        for tensor, _ in output.tensors:
            if tensor.values is None:
                continue
            values = np.ascontiguousarray(tensor.values, np.float32)
            for sink in sinks[tensor.name]:
                rows = values.size // sink.cols
                packed = np.empty((rows, sink.row_bytes), np.uint8)
                encode_into(
                    packed,
                    values.reshape(-1).view(np.uint8),
                    format=sink.format,
                    dtype="f32",
                    rows=rows,
                    cols=sink.cols,
                    offset_elements=0,
                    row_stride=sink.cols,
                    col_stride=1,
                )
                sink.part.write(packed.reshape(-1).data, sink.offset_bytes)


def _publish(parts: Sequence[Part], journal: Journal) -> None:
    """All renames, then the journal's deletion: a kill between any two leaves a journal that says how to go on."""
    for part in parts:
        part.publish()
    for folder in dict.fromkeys(part.path.parent for part in parts):
        sync_folder(folder)
    journal.remove()
    sync_folder(journal.path.parent)


def _discard(parts: Sequence[Part], journal: Journal) -> None:
    for part in parts:
        part.discard()
    journal.remove()
