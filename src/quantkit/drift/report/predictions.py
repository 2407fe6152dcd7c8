"""Every figure of predictions and routing, a row each: what the table of files has no room for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quantkit.drift.report.words import interval, number, percent, percents
from quantkit.drift.result import Candidate

_KLD = {"median": "median", "p90": "90 % below", "p95": "95 % below", "p99": "99 % below", "p999": "99.9 % below"}
_DELTA_P = {
    "min": "least", "p001": "0.1 % below", "p01": "1 % below", "p05": "5 % below", "p25": "25 % below",
    "median": "median", "p75": "75 % below", "p95": "95 % below", "p99": "99 % below", "p999": "99.9 % below",
    "max": "most",
}  # fmt: skip
_ROUTING = {
    "agreement": "same expert",
    "kl": "KL divergence of routers",
    "weighted_flips": "flips, weighted by the reference's margin",
}


@dataclass(frozen=True)
class Group:
    """Rows of one kind: what each is, and of every file a figure with what stands below it, smaller."""

    title: str
    rows: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]


def predictions(candidates: Sequence[Candidate]) -> list[Group]:
    """None where output was not measured."""
    columns = [_figures(one) for one in candidates if one.kld is not None]
    if not columns:
        return []
    return [
        Group(title, tuple((label, tuple(column[title].get(label, ("–", "")) for column in columns)) for label in rows))
        for title, rows in columns[0].items()
    ]


def _figures(one: Candidate) -> dict[str, dict[str, tuple[str, str]]]:
    """By group and row."""
    assert one.kld is not None
    assert one.perplexity is not None
    assert one.delta_p is not None
    assert one.flips is not None
    kld, perplexity, change, flips = one.kld, one.perplexity, one.delta_p, one.flips
    found: dict[str, dict[str, tuple[str, str]]] = {
        "KL divergence, nats a token": {
            "mean": (number(kld.mean), interval(kld.ci95)),
            "effective tokens, for the mean": (f"{kld.effective_tokens:,.0f}", ""),
            **{label: (number(getattr(kld, name)), "") for name, label in _KLD.items()},
            "largest": (number(kld.max), ""),
        },
        "Perplexity": {
            "reference's": (number(perplexity.reference, "#.4g"), ""),
            "the file's": (number(perplexity.candidate, "#.4g"), ""),
            "ln(the file's / reference's)": (f"{perplexity.ln_ratio:+.4f}", interval(perplexity.ci95, "+.4f")),
            "effective tokens, for that": (f"{perplexity.effective_tokens:,.0f}", ""),
        },
        "Likeliest tokens": {
            "same likeliest token": (percent(one.top1_agreement), percents(one.top1_ci95)),
            "shared of the five likeliest": (percent(one.top5_overlap), ""),
            "reference's likeliest is the text's": (percent(flips.reference_correct), ""),
            "the file's likeliest is the text's": (percent(flips.candidate_correct), ""),
            "flips from right to wrong": (percent(flips.correct_to_wrong), ""),
            "flips from wrong to right": (percent(flips.wrong_to_correct), ""),
        },
        "Δp: change of the probability of the text's token": {
            "mean": (_signed(change.mean), percents(change.ci95, "+.2f")),
            "root of the mean square": (percent(change.rms), ""),
            **{label: (_signed(getattr(change, name)), "") for name, label in _DELTA_P.items()},
        },
    }
    if one.routing is not None:
        for title, suffix in (("on its own hidden states", ""), ("on the reference's hidden states", "_local")):
            found[f"Routing {title}, mean over layers"] = {
                label: ((number if name == "kl" else percent)(_mean(getattr(one.routing, name + suffix))), "")
                for name, label in _ROUTING.items()
            }
    return found


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _signed(value: float) -> str:
    return f"{100 * value:+.2f} %"
