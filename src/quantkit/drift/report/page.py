"""The page: what is said, in what order. How it looks is in page.html and style.css."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.drift.expectation import expected_error, improvement
from quantkit.drift.findings import Finding
from quantkit.drift.models import Identity, names_of
from quantkit.drift.outcome import TITLES, outcome
from quantkit.drift.report.predictions import predictions
from quantkit.drift.report.words import interval, number, percent, percents, size
from quantkit.drift.result import Candidate, Drift, TensorDrift
from quantkit.errors import MissingDependencyError
from quantkit.kernels.atomic_file import atomic_file

if TYPE_CHECKING:
    from quantkit.drift.gate import Verdict
    from quantkit.drift.report.svg import Picture

_NEEDS = ("jinja2", "matplotlib")
_WORST = 3  # tensors of each file, 8 of a single one
_FINDINGS = 20  # of each file


@dataclass(frozen=True)
class Worst:
    """A row of the table of worst tensors."""

    tensor: str
    type: str
    relative_error: float
    times: float | None  # what the type has of normally distributed weights
    expert: str
    wrong: bool  # there is a finding about it, which no other type mends
    better: str
    better_error: float | None
    better_bytes: str


@dataclass(frozen=True)
class Section:
    """What the page says of one file."""

    name: str
    candidate: Candidate
    found: tuple[Finding, ...]
    more: int
    worst: tuple[Worst, ...]
    pictures: tuple[Picture, ...]
    outside: str


def check_installed() -> None:
    """MissingDependencyError unless what the report is drawn with can be imported."""
    missing = []
    for name in _NEEDS:
        try:
            importlib.import_module(name)
        except ImportError:
            missing.append(name)
    if missing:
        raise MissingDependencyError(
            f"the report needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed",
            hint="In a clone of quantkit: pip install '.[report]'",
        )


def write_report(path: str | os.PathLike[str], drift: Drift, verdicts: Sequence[Verdict] = ()) -> None:
    """Write the page; see `render`. OutputError if that fails."""
    content = render(drift, verdicts).encode(errors="backslashreplace")
    with atomic_file(Path(path)) as file:
        file.write(content)


def render(drift: Drift, verdicts: Sequence[Verdict] = ()) -> str:
    """One HTML file, without scripts and without anything to be fetched; the same text for the same arguments.

    Args:
        verdicts: of a gate.

    Raises:
        MissingDependencyError: jinja2 or matplotlib is not installed.
    """
    check_installed()
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from quantkit.drift.report.heat_maps import heat_maps

    environment = Environment(
        loader=PackageLoader("quantkit.drift", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {one.__name__: one for one in (interval, number, percent, percents, size)}
    identities = [Identity(one.file, one.bytes, one.types, one.fingerprint) for one in drift.candidates]
    named = list(zip(names_of([one.file for one in identities]), drift.candidates, strict=True))
    maps = heat_maps(drift.candidates)
    sections = [_section(name, one, pictures) for (name, one), pictures in zip(named, maps, strict=True)]
    worst = max((one for one in sections if one.worst), key=lambda one: one.worst[0].relative_error, default=None)
    page: str = environment.get_template("page.html").render(
        drift=drift,
        named=named,
        reference=Path(drift.reference.file).name or drift.reference.file,
        sections=sections,
        outcome=outcome(drift),
        faulty=[one for one in sections if one.found],
        verdicts=verdicts,
        failed=sum(one.failed for one in verdicts),
        curves=_curves(named),
        layers=_layer_curves(named),
        domains=_domains(named),
        worst=worst,
        opened=(worst or sections[0]).name,
        n_worst=_WORST if len(sections) > 1 else 8,
        titles=TITLES,
        options={name: _option(value) for name, value in vars(drift.options).items()},
        effective=_effective(drift.candidates),
        predictions=predictions(drift.candidates),
    )
    return page


def _section(name: str, candidate: Candidate, pictures: Sequence[Picture]) -> Section:
    outside = [one for one in candidate.tensors if one.layer is None and len(one.shape) > 1]
    wrong = {one.tensor for one in candidate.findings}
    tensors = sorted(candidate.tensors, key=lambda one: one.error.relative_error, reverse=True)
    return Section(
        name=name,
        candidate=candidate,
        found=candidate.findings[:_FINDINGS],
        more=max(0, len(candidate.findings) - _FINDINGS),
        worst=tuple(_row(one, wrong=one.name in wrong) for one in tensors if one.error.relative_error > 0),
        pictures=tuple(pictures),
        outside=", ".join(f"{one.name} {percent(one.error.relative_error)} ({one.type})" for one in outside),
    )


def _row(tensor: TensorDrift, *, wrong: bool) -> Worst:
    better, expected = None if wrong else improvement(tensor), expected_error(tensor.type)
    expert = ""
    if tensor.experts:
        at = max(range(len(tensor.experts)), key=lambda one: tensor.experts[one].relative_error)
        expert = f"{at}: {percent(tensor.experts[at].relative_error)}"
    return Worst(
        tensor=tensor.name,
        type=tensor.type,
        relative_error=tensor.error.relative_error,
        times=tensor.error.relative_error / expected if expected else None,
        expert=expert,
        wrong=wrong,
        better="" if better is None else better.type,
        better_error=None if better is None else better.relative_error,
        better_bytes="" if better is None else f"{'−' if better.bytes < 0 else '+'}{size(abs(better.bytes))}",
    )


def _option(value: object) -> str:
    if value is None:
        return "not given"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _effective(candidates: Sequence[Candidate]) -> str:
    """How many independent tokens would tell as much about KLD, over all files."""
    counts = [round(one.kld.effective_tokens) for one in candidates if one.kld is not None]
    if not counts:
        return ""
    return f"{min(counts):,}" + (f" to {max(counts):,}" if max(counts) > min(counts) else "")


def _curves(named: Sequence[tuple[str, Candidate]]) -> list[Picture]:
    from quantkit.drift.report.curves import size_and_kld

    found = size_and_kld(named)
    return [] if found is None else [found]


def _layer_curves(named: Sequence[tuple[str, Candidate]]) -> dict[str, list[Picture]]:
    from quantkit.drift.report.curves import by_layer

    def routing(field: str) -> Any:
        def values(one: Candidate) -> list[tuple[int, float]]:
            found = one.routing
            return [] if found is None else list(zip(found.layers, getattr(found, field), strict=True))

        return values

    own = by_layer(
        "agreement",
        "Each model on its own hidden states (cumulative)",
        "tokens with the same expert",
        named,
        routing("agreement"),
        percent=True,
    )
    local = by_layer(
        "agreement-local",
        "The router alone, on the reference's hidden states (local)",
        "tokens with the same expert",
        named,
        routing("agreement_local"),
        percent=True,
    )
    inherited = by_layer(
        "states",
        "With what is inherited from the layers before",
        "relative error",
        named,
        lambda one: [(layer.layer, layer.error.relative_error) for layer in one.layers],
        log=True,
    )
    alone = by_layer(
        "states-local",
        "Each layer by itself, on the reference's hidden states (local)",
        "relative error",
        named,
        lambda one: [(layer.layer, layer.local.relative_error) for layer in one.layers if layer.local is not None],
        log=True,
    )
    return {
        "routing": [one for one in (own, local) if one is not None],
        "states": [one for one in (inherited, alone) if one is not None],
    }


def _domains(named: Sequence[tuple[str, Candidate]]) -> list[tuple[str, int, list[Any]]]:
    """(domain, tokens, each candidate's), the domain with the largest KLD first."""
    first = named[0][1].domains
    rows = [(one.domain, one.tokens, [candidate.domains[at] for _, candidate in named]) for at, one in enumerate(first)]
    return sorted(rows, key=lambda row: -max(one.kld.mean for one in row[2]))
