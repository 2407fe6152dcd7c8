"""What `drift` returns. The names of all fields are also the keys of report.json; docs/drift.md explains each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

from quantkit.drift.base_walk import KlBaseFacts
from quantkit.drift.differences import Difference
from quantkit.drift.figures import DeltaP, Figures, Flips, Interval, Kld, Perplexity
from quantkit.drift.findings import Finding
from quantkit.drift.loss import Loss
from quantkit.drift.models import Identity
from quantkit.drift.output import TokenScores
from quantkit.drift.provenance import Machine, Options, Statistics, versions
from quantkit.drift.routing import LayerRouting
from quantkit.drift.sample import Sample
from quantkit.drift.states import StateError
from quantkit.drift.watch import LayerDrift

SCHEMA = 1  # of report.json: raised when a key changes its meaning or goes away, not when one comes
_IN_PYTHON_ONLY = {"json": False}


@dataclass(frozen=True)
class TextFacts:
    """What drift was measured on.

    Args:
        files: as they were named.
        sha256: of the tokens as little-endian int32.
        tokens, context: in chunks of so many.
        score: "all", or "second-half" of each chunk.
        scored_tokens: whose logits count.
        documents: with scored tokens.
        intervals_over: "documents", or "chunks" where there are fewer than forty documents.
        clusters: how many documents, or blocks of chunks, intervals rest on.
        chunks_per_block: None for documents.
    """

    files: tuple[str, ...]
    sha256: str
    tokens: int
    context: int
    score: str
    scored_tokens: int
    documents: int
    intervals_over: Literal["documents", "chunks"]
    clusters: int
    chunks_per_block: int | None

    @classmethod
    def of(cls, sample: Sample, files: Sequence[Path], score: str) -> TextFacts:
        groups = sample.clusters
        return cls(
            files=tuple(map(str, files)),
            sha256=sample.sha256,
            tokens=sample.chunks.size,
            context=sample.context,
            score=score,
            scored_tokens=len(sample.scored),
            documents=groups.documents,
            intervals_over=groups.kind,
            clusters=groups.count,
            chunks_per_block=groups.chunks_per_block,
        )

    @property
    def basis(self) -> str:
        """What intervals rest on, in words."""
        if self.intervals_over == "documents":
            return f"{self.clusters:,} documents"
        length = "a chunk each" if self.chunks_per_block == 1 else f"{self.chunks_per_block} chunks each"
        return f"{self.clusters:,} blocks of {length}, since of documents there are only {self.documents}"


@dataclass(frozen=True)
class Routing:
    """By layer with experts, in the order of `layers`; see LayerRouting and RouterDrift.

    Args:
        agreement, kl, weighted_flips, load_shift: the candidate's router on its own hidden states.
        agreement_local, kl_local, weighted_flips_local: on the reference's.
        load, load_reference: share of tokens by expert.
    """

    layers: tuple[int, ...]
    agreement: tuple[float, ...]
    agreement_local: tuple[float, ...]
    kl: tuple[float, ...]
    kl_local: tuple[float, ...]
    weighted_flips: tuple[float, ...]
    weighted_flips_local: tuple[float, ...]
    load_shift: tuple[float, ...]
    load: tuple[tuple[float, ...], ...]
    load_reference: tuple[tuple[float, ...], ...]

    @classmethod
    def of(cls, layers: Sequence[LayerRouting]) -> Routing:
        own, local = [one.cumulative for one in layers], [one.local for one in layers]
        return cls(
            layers=tuple(one.layer for one in layers),
            agreement=tuple(one.agreement for one in own),
            agreement_local=tuple(one.agreement for one in local),
            kl=tuple(one.kl for one in own),
            kl_local=tuple(one.kl for one in local),
            weighted_flips=tuple(one.weighted_flips for one in own),
            weighted_flips_local=tuple(one.weighted_flips for one in local),
            load_shift=tuple(one.load_shift for one in own),
            load=tuple(one.load for one in own),
            load_reference=tuple(one.load for one in layers),
        )


@dataclass(frozen=True)
class Domain:
    """The documents of one domain, as a .jsonl names it."""

    domain: str
    tokens: int
    kld: Kld
    perplexity: Perplexity
    top1_agreement: float
    top1_ci95: Interval | None


@dataclass(frozen=True)
class WeightError:
    """The error e = candidate - reference of some weights.

    Args:
        rmse: root of the mean of e².
        relative_error: root of (sum of e² / sum of reference²).
        sqnr_db: -20 log10(relative_error); None in JSON where there is no error.
        cosine: of the angle between both.
        gain: sum of candidate * reference / sum of reference²: 1 where the candidate is as long along the reference.
        max_abs: the largest |e|.
        rounded_to_zero: share of the reference's weights that are not 0 and became 0.
        importance_weighted: as relative_error, each column weighted by its importance; None without an imatrix.
    """

    rmse: float
    relative_error: float
    sqnr_db: float
    cosine: float
    gain: float
    max_abs: float
    rounded_to_zero: float
    importance_weighted: float | None


@dataclass(frozen=True)
class TensorDrift:
    """One tensor.

    Args:
        name: GGUF's.
        layer: None outside the layers.
        type, reference_type: "q4_k", "bf16"; of a checkpoint, its own.
        shape: numpy order.
        bytes: of the candidate's.
        error: of the whole tensor.
        experts: of each expert; empty where there are none.
    """

    name: str
    layer: int | None
    type: str
    reference_type: str
    shape: tuple[int, ...]
    bytes: int
    error: WeightError
    experts: tuple[WeightError, ...]


@dataclass(frozen=True)
class Candidate:
    """One file. What was not measured is None, or empty: output, routing and layers need text.

    Args:
        file, bytes, types, fingerprint: see Identity.
        loss: how large it is, in a word.
        kld, perplexity, top1_agreement, top1_ci95, top5_overlap, delta_p, flips: see Figures.
        routing: None for a model without experts in any layer.
        embedding: the error of the hidden states that go into the first layer.
        layers: hidden states after each layer.
        domains: one for each that documents name.
        tensors: errors of weights, in file order.
        findings: what its types do not explain, faults first.
        scores: of each scored token; not in JSON.
    """

    file: str
    bytes: int
    types: dict[str, int]
    fingerprint: str
    loss: Loss | None = None
    kld: Kld | None = None
    perplexity: Perplexity | None = None
    top1_agreement: float | None = None
    top1_ci95: Interval | None = None
    top5_overlap: float | None = None
    delta_p: DeltaP | None = None
    flips: Flips | None = None
    routing: Routing | None = None
    embedding: StateError | None = None
    layers: tuple[LayerDrift, ...] = ()
    domains: tuple[Domain, ...] = ()
    tensors: tuple[TensorDrift, ...] = ()
    findings: tuple[Finding, ...] = ()
    scores: TokenScores | None = field(default=None, repr=False, compare=False, metadata=_IN_PYTHON_ONLY)

    @classmethod
    def of(cls, identity: Identity, found: Figures | None, **others: Any) -> Candidate:
        output = {} if found is None else {one.name: getattr(found, one.name) for one in fields(found)}
        output.pop("tokens", None)
        loss = None if found is None else Loss.of(found)
        return cls(identity.file, identity.bytes, identity.types, identity.fingerprint, loss, **output, **others)


@dataclass(frozen=True)
class Drift:
    """What `quantkit.drift` found.

    Args:
        schema: of report.json.
        reference: what candidates are compared with.
        text: None where only weights were compared.
        candidates: in the order in which they were named.
        differences: of all pairs of candidates.
        options: that numbers depend on.
        imatrix: that errors of weights were weighted by; None without.
        kl_base: None where the reference is a model, and not a file of its log-probabilities.
        command: that made it, as it was given; None from Python.
        versions: of quantkit, and of packages that numbers depend on.
        machine: that computed.
    """

    schema: int
    reference: Identity
    text: TextFacts | None
    candidates: tuple[Candidate, ...]
    differences: tuple[Difference, ...]
    options: Options
    imatrix: Statistics | None = None
    kl_base: KlBaseFacts | None = None
    command: str | None = None
    versions: dict[str, str] = field(default_factory=versions)
    machine: Machine = field(default_factory=Machine.here)

    def to_json(self) -> dict[str, Any]:
        """report.json: only dicts, lists, texts, numbers, booleans and None, which also stands for infinite numbers."""
        converted: dict[str, Any] = plain(self)
        return converted


def plain(value: Any) -> Any:
    """Dataclasses, and what they hold, as JSON can hold it."""
    if is_dataclass(value):
        kept = [one for one in fields(value) if one.metadata.get("json", True)]
        return {one.name: plain(getattr(value, one.name)) for one in kept}
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
