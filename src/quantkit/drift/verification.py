"""Whether a GGUF is sound: its structure, keys, tensors and values, and that its weights are a checkpoint's."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from quantkit.checkpoint import open_checkpoint
from quantkit.drift.findings import Finding
from quantkit.drift.gate import Verdict
from quantkit.drift.payload import Payload, read_payload
from quantkit.drift.progress import Progress
from quantkit.drift.provenance import file_sha256
from quantkit.drift.result import plain
from quantkit.drift.run import drift
from quantkit.drift.vocabulary import gguf_vocabulary
from quantkit.errors import CheckpointError, QuantkitError, UsageError
from quantkit.gguf import GgufFile, open_gguf
from quantkit.llama4.forward import foreign, open_weights
from quantkit.llama4.forward.gguf_weights import ROPE, text_shapes
from quantkit.llama4.gguf_hyperparameters import gguf_hyperparameters

SCHEMA = 1  # of --json: raised when a key changes its meaning or goes away
FINGERPRINT = "quantkit.source_fingerprint"
_AGAIN = "Make or fetch the file again."
_ALIGNMENT = 32
_ROPE_ERROR = 1e-5  # of a factor: float32 and the order of its formula make 1e-7

Name = Literal["structure", "model", "values", "zeros", "weights"]
MEANINGS: dict[Name, str] = {
    "structure": "magic, version, counts, names, shapes, offsets and sizes of all splits",
    "model": "keys, tokenizer, names and shapes of the tensors that Llama 4 has",
    "values": "no scale or value is NaN or infinite",
    "zeros": "no tensor or expert is all zero",
    "weights": "the checkpoint's, within what each type leaves",
}


@dataclass(frozen=True)
class Fault:
    """Something wrong with a file.

    Args:
        check: that found it.
        severity: "fault": the file should not be used; "warning": look at it.
        tensor, experts: None and empty where it is not about one.
        statement: what is wrong.
        advice: the next step.
    """

    check: Name
    severity: Literal["fault", "warning"]
    tensor: str | None
    experts: tuple[int, ...]
    statement: str
    advice: str


@dataclass(frozen=True)
class Check:
    """Args: passed: None where it was not made, and `note` says why."""

    name: Name
    passed: bool | None
    note: str


@dataclass(frozen=True)
class TensorFacts:
    """Args: sha256: of its bytes, if asked for; relative_error: to the checkpoint's, if there is one."""

    name: str
    type: str
    shape: tuple[int, ...]
    bytes: int
    sha256: str | None
    relative_error: float | None


@dataclass(frozen=True)
class Verification:
    """What `verify` found.

    Args:
        file, against: as they were named; against is None without one.
        files: of all splits, with their SHA-256 if asked for.
        passed: there is no fault; warnings do not count.
        keys: what convert noted of the file's making (quantkit.*).
    """

    schema: int
    file: str
    against: str | None
    passed: bool
    checks: tuple[Check, ...]
    faults: tuple[Fault, ...]
    files: dict[str, str | None]
    keys: dict[str, Any]
    tensors: tuple[TensorFacts, ...]

    def to_json(self) -> dict[str, Any]:
        converted: dict[str, Any] = plain(self)
        return converted

    def verdicts(self) -> tuple[Verdict, ...]:
        """Each check that was made, or wanted and not possible, as a gate's verdict: its value is how many faults."""
        found = []
        for check in self.checks:
            own = [one for one in self.faults if one.check == check.name and one.severity == "fault"]
            if check.passed is not None or own:
                message = " ".join(f"{one.statement} {one.advice}" for one in own) or f"{check.name}: {check.note}"
                found.append(Verdict(check.name, self.file, float(len(own)), 0.0, not check.passed, message))
        return tuple(found)


def verify(
    file: str | os.PathLike[str],
    against: str | os.PathLike[str] | None = None,
    *,
    sha256: bool = False,
    threads: int = 0,
    progress: Callable[[Progress], None] | None = None,
) -> Verification:
    """Read a GGUF, all splits of it, some rows at a time, and say what is wrong with it.

    A file of another architecture, as that of a vision tower, is checked for structure and values alone.

    Args:
        file: any of its splits.
        against: the checkpoint folder, or a GGUF of floats, that it was made from: weights are compared with it.
        sha256: hash files and tensors, which reads the file once more.
        threads: 0 takes all processors. No number depends on it.

    Raises:
        UsageError: there is no such file; the reference is none.
        CheckpointError: the reference is malformed, or reading failed.
    """
    for path in (file, against):
        if path is not None and not Path(path).exists():
            raise UsageError(f"{path}: there is no such file or folder")
    state = _State(str(file), None if against is None else str(against))
    try:
        content = open_gguf(Path(file))
    except CheckpointError as error:
        state.fault("structure", error.what, error.hint or _AGAIN)
        return state.result()
    state.structure(content)
    state.model(content)

    def tell(name: str, done: int, total: int) -> None:
        if progress is not None:
            progress(Progress(name, 0, 0, done, total, 0.0))

    state.payload = list(read_payload(content, sha256=sha256, threads=threads, progress=tell))
    state.values()
    state.files = {str(path): file_sha256(path) if sha256 else None for path in content.files}
    state.keys = {key: field.value for key, field in content.fields.items() if key.startswith("quantkit.")}
    if against is not None:
        state.weights(content, Path(against), threads, progress)
    return state.result()


class _State:
    def __init__(self, file: str, against: str | None) -> None:
        self.file, self.against = file, against
        self.faults: list[Fault] = []
        self.notes: dict[Name, tuple[bool, str]] = {}  # (was made, note)
        self.payload: list[Payload] = []
        self.files: dict[str, str | None] = {}
        self.keys: dict[str, Any] = {}
        self.errors: dict[str, float] = {}

    def fault(
        self, check: Name, statement: str, advice: str = _AGAIN, tensor: str | None = None, *experts: int
    ) -> None:
        self.faults.append(Fault(check, "fault", tensor, experts, statement, advice))

    def warning(self, check: Name, statement: str, advice: str, tensor: str | None = None) -> None:
        self.faults.append(Fault(check, "warning", tensor, (), statement, advice))

    def failed(self, check: Name) -> bool:
        return any(one.check == check and one.severity == "fault" for one in self.faults)

    def result(self) -> Verification:
        checks = []
        for name in MEANINGS:
            if name in self.notes or self.failed(name):
                is_made, note = self.notes.get(name, (True, MEANINGS[name]))
                checks.append(Check(name, not self.failed(name) if is_made else None, note))
            else:
                wanted = name != "weights" or self.against is not None
                checks.append(Check(name, None, "the structure is broken" if wanted else "no --against"))
        return Verification(
            schema=SCHEMA,
            file=self.file,
            against=self.against,
            passed=not any(one.severity == "fault" for one in self.faults),
            checks=tuple(checks),
            faults=tuple(sorted(self.faults, key=lambda one: one.severity != "fault")),
            files=self.files,
            keys=self.keys,
            tensors=tuple(
                TensorFacts(
                    one.tensor.name,
                    one.tensor.type,
                    one.tensor.shape,
                    one.tensor.n_bytes,
                    one.sha256,
                    self.errors.get(one.tensor.name),
                )
                for one in self.payload
            ),
        )

    def structure(self, file: GgufFile) -> None:
        """What the reader of headers lets pass: bytes that belong to nothing."""
        self.notes["structure"] = (True, MEANINGS["structure"])
        field = file.fields.get("general.alignment")
        alignment = _ALIGNMENT if field is None else int(field.value)
        for path in file.files:
            ends = [one.offset_bytes + one.n_bytes for one in file.tensors if one.file == path]
            over = path.stat().st_size - max(ends, default=path.stat().st_size)
            if over >= alignment:
                self.fault("structure", f"{path}: {over:,} bytes after the last tensor belong to none")
        if not file.tensors:
            self.fault("structure", f"{file.files[0]}: holds no tensors")

    def model(self, file: GgufFile) -> None:
        field = file.fields.get("general.architecture")
        if field is not None and field.value != "llama4":
            self.notes["model"] = (False, f"general.architecture is {field.value!r}, of which only Llama 4 is known")
            return
        self.notes["model"] = (True, MEANINGS["model"])
        try:
            hp = gguf_hyperparameters(file)
            vocabulary = gguf_vocabulary(file)
        except QuantkitError as error:
            self.fault("model", error.what, error.hint or _AGAIN)
            return
        if len(vocabulary.tokens) != hp.vocab_size:
            self.fault("model", f"{len(vocabulary.tokens):,} tokens for a vocabulary of {hp.vocab_size:,}")
        wanted = text_shapes(hp)
        found = {one.name: one for one in file.tensors}
        for name, shape in wanted.items():
            if name not in found:
                self.fault("model", f"{name} {list(shape)} is missing", _AGAIN, name)
            elif found[name].shape != shape:
                have = list(found[name].shape)
                self.fault("model", f"{name} has shape {have}, and the keys make it {list(shape)}", _AGAIN, name)
        rope = found.get(ROPE)
        if rope is not None and rope.shape != (hp.head_dim // 2,):
            self.fault("model", f"{ROPE} has shape {list(rope.shape)}, not [{hp.head_dim // 2}]", _AGAIN, ROPE)
        for name in sorted(found.keys() - wanted.keys() - {ROPE}):
            self.fault("model", f"{name} is no tensor of Llama 4, and llama.cpp refuses such files", _AGAIN, name)

    def values(self) -> None:
        self.notes["values"] = (True, MEANINGS["values"])
        self.notes["zeros"] = (True, MEANINGS["zeros"])
        for one in self.payload:
            name, type = one.tensor.name, one.tensor.type
            if not one.is_decoded:
                self.warning(
                    "values", f"{name} is {type}, which nobody here decodes", "Look at it with llama.cpp.", name
                )
            for bad in one.bad:
                which = name if bad.expert is None else f"{name}, expert {bad.expert}"
                more = "" if bad.blocks == 1 else f", the first of {bad.blocks:,} such blocks"
                self.fault(
                    "values",
                    f"{which}: row {bad.row}, column {bad.col} is {bad.value:g} ({type} block at byte "
                    f"{bad.offset_bytes:,} of {one.tensor.file.name}{more})",
                    "The file is damaged, or was made from weights that are not finite: make it again from the "
                    "checkpoint.",
                    name,
                    *([] if bad.expert is None else [bad.expert]),
                )
            experts = tuple(expert for expert in one.zero if expert is not None)
            if one.zero:
                which = name + (f", {_numbers('expert', experts)}" if experts else "")
                advice = "A part of the file was never written, or was lost in a copy: make or fetch it again."
                self.fault("zeros", f"{which}: every value is zero", advice, name, *experts)

    def weights(self, file: GgufFile, against: Path, threads: int, progress: Callable[[Progress], None] | None) -> None:
        broken = [name for name in ("model", "values") if self.failed(name)]
        unknown = [one for one in file.tensors if not foreign.is_known(one.type) and not _is_ours(one.type)]
        made, note = self.notes["model"]
        if broken or unknown or not made:
            why = f"{broken[0]} failed" if broken else note
            if not broken and unknown:
                why = f"{unknown[0].name} is {unknown[0].type}, which nobody here decodes"
            self.notes["weights"] = (False, why)
            if not broken:  # what was asked for is not known to hold
                advice = "Leave out --against to check the file alone."
                self.fault("weights", f"weights could not be compared with {against}: {why}", advice)
            return
        self._source(against)
        (candidate,) = drift(against, [self.file], weights_only=True, threads=threads, progress=progress).candidates
        self.errors = {one.name: one.error.relative_error for one in candidate.tensors}
        self.faults += [_fault(one) for one in candidate.findings]
        self._beside(file, against)
        warned = sum(one.severity == "warning" and one.kind == "error" for one in candidate.findings)
        but = f"; {warned} off by up to three times as much, which is a warning" if warned else ""
        self.notes["weights"] = (True, MEANINGS["weights"] + but)

    def _beside(self, file: GgufFile, against: Path) -> None:
        """What `drift` does not compare: RoPE's factors, and an output matrix that only one side has."""
        with closing(open_weights(file.files[0])) as candidate, closing(open_weights(against)) as reference:
            names = [text_shapes(weights.hp).keys() for weights in (candidate, reference)]
            own, wanted = (weights.rope_divisors() for weights in (candidate, reference))
        for name in sorted(names[1] - names[0]):
            self.fault("weights", f"{name} is missing, and the reference has one", _AGAIN, name)
        for name in sorted(names[0] - names[1]):
            self.fault("weights", f"{name} could not be compared: the reference has none", _AGAIN, name)
        if own is None and wanted is None:
            return
        own, wanted = (np.ones(1, np.float32) if one is None else one for one in (own, wanted))
        apart = own.astype(np.float64) / wanted - 1
        if ROPE in {one.name for one in file.tensors}:
            self.errors[ROPE] = float(np.linalg.norm(own - wanted) / np.linalg.norm(np.broadcast_to(wanted, own.shape)))
        if np.abs(apart).max() > _ROPE_ERROR:
            worst = apart.reshape(-1)[np.abs(apart).argmax()]
            self.fault(
                "weights",
                f"{ROPE}: RoPE's factors are off by up to {worst:+.2%}: positions are turned otherwise than in the "
                "reference",
                _AGAIN,
                ROPE,
            )

    def _source(self, against: Path) -> None:
        if not against.is_dir() or FINGERPRINT not in self.keys:
            return
        with open_checkpoint(against) as cp:
            if cp.fingerprint != self.keys[FINGERPRINT]:
                self.warning(
                    "weights",
                    f"{FINGERPRINT} is not that of {against}: the file was made from another checkpoint, or from "
                    "one whose settings or README.md have changed since",
                    "Look whether this is the revision that was converted.",
                )


def _fault(finding: Finding) -> Fault:
    return Fault("weights", finding.severity, finding.tensor, finding.experts, finding.statement, finding.advice)


def _numbers(noun: str, numbers: tuple[int, ...]) -> str:
    return f"{noun}{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"


def _is_ours(type: str) -> bool:
    from quantkit.kernels import FORMATS

    return type in FORMATS


def describe(verification: Verification) -> Iterator[tuple[str, str]]:
    """(name, text) of facts for a terminal."""
    n = sum(math.prod(one.shape) for one in verification.tensors)
    yield "file", verification.file
    if verification.against is not None:
        yield "against", verification.against
    if n:
        yield "read", f"{len(verification.tensors):,} tensors, {n:,} values"
    for path, found in verification.files.items():
        if found is not None:
            yield "sha256", f"{found}  {Path(path).name}"
    for key, value in verification.keys.items():
        if isinstance(value, str):
            yield key, value
