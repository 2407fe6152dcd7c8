"""What the terminal shows of a drift: a line for each file, which of them differ, and where the worst of it lies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from quantkit.cli import output
from quantkit.cli.units import bytes_text

if TYPE_CHECKING:
    from quantkit.drift import Candidate, Drift

WORST = 5  # layers and tensors of each file
FINDINGS = 10  # of each file


def show(result: Drift) -> None:
    """All of it, the verdict first."""
    from quantkit.drift.outcome import outcome

    found = outcome(result)
    output.heading(found.title)
    for sentence in found.sentences:
        output.line(sentence)
    output.heading("What was compared")
    show_output(result)
    names = _names(result)
    if result.text is not None:
        for one in result.differences:
            output.line(one.statement)
        _show_layers(result, names)
    _show_tensors(result, names)


def show_output(result: Drift) -> None:
    """Without layers and tensors."""
    names = _names(result)
    _show_facts(result)
    _show_findings(result, names)
    if result.text is not None:
        _show_output(result, names)


def _names(result: Drift) -> list[str]:
    """Of candidates: without folders where that is enough."""
    names = [Path(one.file).name for one in result.candidates]
    return names if len(set(names)) == len(names) else [one.file for one in result.candidates]


def _show_facts(result: Drift) -> None:
    rows: list[tuple[str, object]] = [
        (
            "reference",
            f"{result.reference.file}, {bytes_text(result.reference.bytes)}, {_types(result.reference.types)}",
        )
    ]
    if result.kl_base is not None:
        rows = [("reference", f"{result.reference.file}, {bytes_text(result.reference.bytes)} of log-probabilities")]
    if result.text is not None:
        text = result.text
        rows += [
            ("text", ", ".join(text.files)),
            ("tokens", f"{text.tokens:,} in chunks of {text.context:,}, {text.scored_tokens:,} scored"),
            ("intervals", f"95 %, over {text.basis}"),
        ]
    output.facts(rows)


def _show_findings(result: Drift, names: list[str]) -> None:
    """What its types do not explain."""
    rows = [
        (name, found.severity, f"{found.statement} {found.advice}")
        for name, one in zip(names, result.candidates, strict=True)
        for found in one.findings[:FINDINGS]
    ]
    more = sum(max(0, len(one.findings) - FINDINGS) for one in result.candidates)
    if rows:
        output.table(("file", "", "what is wrong, and what to do"), rows, title="Findings")
    if more:
        output.line(f"and {more} more, which --json lists")


def _types(types: dict[str, int]) -> str:
    return " ".join(list(types)[:3])


def _show_output(result: Drift, names: list[str]) -> None:
    divergences, agreements, perplexities = [], [], []  # none wider than a terminal of 80 columns, with short names
    for name, one in zip(names, result.candidates, strict=True):
        assert one.loss is not None
        assert one.kld is not None
        assert one.perplexity is not None
        assert one.delta_p is not None
        assert one.top1_agreement is not None
        assert one.top5_overlap is not None
        kld, perplexity = one.kld, one.perplexity
        divergences.append(
            (
                name,
                bytes_text(one.bytes),
                one.loss.word,
                f"{kld.mean:.4g}",
                _interval(kld.ci95),
                f"{kld.effective_tokens:,.0f}",
            )
        )
        agreements.append(
            (
                name,
                f"{one.top1_agreement:.2%}",
                _interval(one.top1_ci95, ".2%"),
                f"{one.top5_overlap:.1%}",
                f"{one.delta_p.rms:.2%}",
                "" if one.routing is None else f"{_mean(one.routing.agreement):.2%}",
                f"{kld.p99:.3g}",
            )
        )
        perplexities.append(
            (
                name,
                f"{perplexity.candidate:.4g}",
                f"{perplexity.ln_ratio:+.4f}",
                _interval(perplexity.ci95, "+.4f"),
                f"{perplexity.effective_tokens:,.0f}",
            )
        )
    for title, columns, rows in (
        ("Next-token probabilities", ("size", "loss", "mean KLD", "95 %", "effective\ntokens"), divergences),
        (
            "Same likeliest tokens, same expert; KLD that 99 % of tokens stay below",
            ("top-1", "95 %", "top-5", "RMS Δp", "routing", "KLD of\n99 %"),
            agreements,
        ),
        ("Perplexity", ("perplexity", "ln ratio", "95 %", "effective\ntokens"), perplexities),
    ):
        output.table(("file", *columns), rows, title=title, right=columns)
    assert result.text is not None
    output.line(
        f"Effective: that many independent tokens would tell as much as the {result.text.scored_tokens:,} scored."
    )
    first = result.candidates[0].perplexity
    assert first is not None
    if result.kl_base is not None:
        output.line(f"{result.kl_base.statement}.")
    output.line(f"The reference's perplexity is {first.reference:.4g}.")


def _interval(ends: tuple[float, float] | None, form: str = ".3g") -> str:
    return "too little text" if ends is None else f"{ends[0]:{form}} to {ends[1]:{form}}"


def _mean(values: tuple[float, ...]) -> float:
    return sum(values) / len(values)


def _show_layers(result: Drift, names: list[str]) -> None:
    """Those with the largest error of their own."""
    rows = []
    for name, one in zip(names, result.candidates, strict=True):
        known = [layer for layer in one.layers if layer.local is not None]
        worst = sorted(known, key=lambda layer: layer.local.relative_error if layer.local else 0.0, reverse=True)
        for layer in worst[:WORST]:
            errors = (layer.local, layer.attention, layer.feed_forward, layer.error)
            agreements = ("", "")
            if one.routing is not None and layer.layer in one.routing.layers:
                at = one.routing.layers.index(layer.layer)
                agreements = (f"{one.routing.agreement_local[at]:.2%}", f"{one.routing.agreement[at]:.2%}")
            figures = ("" if error is None else f"{error.relative_error:.3%}" for error in errors)
            rows.append((name, str(layer.layer), *figures, *agreements))
    if rows:
        columns = (
            "file", "layer", "own error", "of attention", "of experts", "with inherited", "own routing", "inherited",
        )  # fmt: skip
        title = "Layers with the largest error of their own, relative to hidden states"
        output.table(columns, rows, title=title, right=columns[1:])


def _show_tensors(result: Drift, names: list[str]) -> None:
    rows = [row for name, one in zip(names, result.candidates, strict=True) for row in _worst_tensors(name, one)]
    if rows:
        columns = ("file", "tensor", "type", "relative error", "cosine", "gain", "to zero", "worst expert")
        title = "Tensors with the largest error, relative to their weights"
        output.table(columns, rows, title=title, right=columns[3:7])


def _worst_tensors(name: str, candidate: Candidate) -> list[tuple[str, ...]]:
    worst = sorted(candidate.tensors, key=lambda tensor: tensor.error.relative_error, reverse=True)
    rows: list[tuple[str, ...]] = []
    for tensor in worst[:WORST]:
        error, expert = tensor.error, ""
        if tensor.experts:
            errors = [one.relative_error for one in tensor.experts]
            at = max(range(len(errors)), key=errors.__getitem__)
            expert = f"{at}: {errors[at]:.2%}"
        figures = (
            f"{error.relative_error:.2%}",
            f"{error.cosine:.5f}",
            f"{error.gain:.4f}",
            f"{error.rounded_to_zero:.2%}",
        )
        rows.append((name, tensor.name, tensor.type, *figures, expert))
    return rows
