"""Conditions under which a file is not good enough, such as `kld.mean>0.05`."""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from quantkit.drift.figures import Interval
from quantkit.drift.result import Candidate, Drift
from quantkit.errors import UsageError

_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}
_CONDITION = re.compile(r"\s*([A-Za-z0-9_.]+)\s*(>=|<=|>|<)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*")


Need = Literal["file", "weights", "text", "states", "local"]


@dataclass(frozen=True)
class Measure:
    """A number that conditions can name.

    Args:
        meaning: one line, for the documentation.
        value: of a candidate; None where it was not measured.
        needs: what must be compared for it: weights, text, hidden states of a reference that is a model, or what each
            layer does by itself.
        absent: why there may be none all the same.
    """

    meaning: str
    value: Callable[[Candidate], float | None]
    needs: Need = "text"
    absent: str = "it was not measured"


def _mean(values: Iterable[float]) -> float | None:
    known = list(values)
    return sum(known) / len(known) if known else None


def _routing(meaning: str, name: str, pick: Callable[[Sequence[float]], float | None]) -> Measure:
    return Measure(
        meaning,
        lambda one: None if one.routing is None else pick(getattr(one.routing, name)),
        "states",
        "no layer has experts, or none was compared",
    )


def _of(part: str, name: str) -> Callable[[Candidate], float | None]:
    def value(one: Candidate) -> float | None:
        found = getattr(one, part)
        return None if found is None else float(getattr(found, name))

    return value


def _end(meaning: str, interval: Callable[[Candidate], Interval | None], place: int) -> Measure:
    """An end of an interval."""

    def value(one: Candidate) -> float | None:
        ends = interval(one)
        return None if ends is None else ends[place]

    return Measure(meaning, value, absent="there is too little text for an interval")


def _layers(value: Callable[[Candidate], Iterable[float]]) -> Callable[[Candidate], float | None]:
    return lambda one: max(value(one), default=None)


MEASURES: dict[str, Measure] = {
    "kld.mean": Measure("mean KL divergence, nats a token", _of("kld", "mean")),
    "kld.ci95.high": _end("upper end of its 95 % interval", lambda one: one.kld.ci95 if one.kld else None, 1),
    "kld.median": Measure("median over tokens", _of("kld", "median")),
    "kld.p90": Measure("exceeded by one token in ten", _of("kld", "p90")),
    "kld.p95": Measure("exceeded by one token in twenty", _of("kld", "p95")),
    "kld.p99": Measure("exceeded by one token in a hundred", _of("kld", "p99")),
    "kld.p999": Measure("exceeded by one token in a thousand", _of("kld", "p999")),
    "kld.max": Measure("of the worst token", _of("kld", "max")),
    "perplexity.candidate": Measure("the candidate's perplexity", _of("perplexity", "candidate")),
    "perplexity.ln_ratio": Measure("ln(candidate's / reference's perplexity)", _of("perplexity", "ln_ratio")),
    "perplexity.ci95.high": _end(
        "upper end of that ratio's 95 % interval", lambda one: one.perplexity.ci95 if one.perplexity else None, 1
    ),
    "top1_agreement": Measure("share of tokens with the same likeliest next token", lambda one: one.top1_agreement),
    "top1_ci95.low": _end("lower end of its 95 % interval", lambda one: one.top1_ci95, 0),
    "top5_overlap": Measure("mean share of the five likeliest that both have", lambda one: one.top5_overlap),
    "delta_p.mean": Measure("mean change of the true token's probability", _of("delta_p", "mean")),
    "delta_p.rms": Measure("its root mean square", _of("delta_p", "rms")),
    "flips.correct_to_wrong": Measure("share of tokens no longer predicted", _of("flips", "correct_to_wrong")),
    "flips.wrong_to_correct": Measure("share of tokens predicted only now", _of("flips", "wrong_to_correct")),
    "routing.agreement": _routing("share of tokens with the same expert, mean over layers", "agreement", _mean),
    "routing.agreement.min": _routing("in the layer with the least", "agreement", min),
    "routing.agreement_local": _routing(
        "the same on the reference's hidden states, mean over layers", "agreement_local", _mean
    ),
    "routing.agreement_local.min": _routing("in the layer with the least", "agreement_local", min),
    "routing.kl": _routing("KL divergence of routers, mean over layers", "kl", _mean),
    "routing.weighted_flips": _routing(
        "flips weighted by the router's margin, mean over layers", "weighted_flips", _mean
    ),
    "routing.load_shift.max": _routing("share of tokens moved between experts, worst layer", "load_shift", max),
    "layers.relative_error": Measure(
        "error of hidden states after the last layer",
        lambda one: one.layers[-1].error.relative_error if one.layers else None,
        "states",
    ),
    "layers.local.max": Measure(
        "a layer's own error of hidden states, worst layer",
        _layers(lambda one: (layer.local.relative_error for layer in one.layers if layer.local is not None)),
        "local",
    ),
    "experts.relative_error.max": Measure(
        "error of what an expert adds, worst expert",
        _layers(
            lambda one: (e.error.relative_error for layer in one.layers for e in layer.experts if e.error is not None)
        ),
        "local",
        "no expert saw a sampled token in both models",
    ),
    "weights.relative_error.max": Measure(
        "relative error of weights, worst tensor",
        _layers(lambda one: (tensor.error.relative_error for tensor in one.tensors)),
        "weights",
    ),
    "weights.cosine.min": Measure(
        "cosine of weights, worst tensor or expert",
        lambda one: min((error.cosine for t in one.tensors for error in (t.error, *t.experts)), default=None),
        "weights",
    ),
    "bytes": Measure("size of the file", lambda one: float(one.bytes), "file"),
}


@dataclass(frozen=True)
class Condition:
    """`name comparison limit`: a candidate fails where it holds.

    Args:
        text: as it was written.
    """

    text: str
    name: str
    comparison: str
    limit: float


@dataclass(frozen=True)
class Verdict:
    """One condition on one candidate.

    Args:
        condition: as it was written.
        file: the candidate's.
        value, limit: what was found, and what the condition says. What was not measured (None), or is not a number,
            fails.
        failed: the condition holds, or cannot be judged.
        message: the same as a sentence.
    """

    condition: str
    file: str
    value: float | None
    limit: float
    failed: bool
    message: str


def parse_condition(text: str, *, without: Mapping[Need, str] | None = None) -> Condition:
    """`kld.mean>0.05`, with >, >=, < or <=.

    Args:
        without: what will not be compared, and the option or file that says so.

    Raises:
        UsageError: not of this form, or a name that is unknown or will not be measured; it lists all that will.
    """
    match = _CONDITION.fullmatch(text)
    if match is None:
        raise UsageError(
            f"{text!r} is not a condition", hint="Write NAME>NUMBER, such as kld.mean>0.05 (>=, < and <= too)."
        )
    name, without = match[1], without or {}
    known = [one for one, measure in MEASURES.items() if measure.needs not in without]
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        what = f" with {without[MEASURES[name].needs]}" if name in MEASURES else ""
        hint = (f"Did you mean {near[0]}? " if near else "") + f"Known: {', '.join(known)}."
        raise UsageError(f"{name} is not measured{what}", hint=hint)
    return Condition(text.strip(), name, match[2], float(match[3]))


def judge(drift: Drift, conditions: Sequence[Condition | str]) -> tuple[Verdict, ...]:
    """Every condition on every candidate. What cannot be judged fails, and says why.

    Raises:
        UsageError: a condition is malformed.
    """
    parsed = [parse_condition(one) if isinstance(one, str) else one for one in conditions]
    return tuple(_verdict(candidate, one) for candidate in drift.candidates for one in parsed)


def _verdict(candidate: Candidate, condition: Condition) -> Verdict:
    measure = MEASURES[condition.name]
    value = measure.value(candidate)
    rule = f"{condition.name} {condition.comparison} {condition.limit:g}"
    if value is None:
        message = f"{candidate.file} fails {rule}, which cannot be judged: {measure.absent}"
        return Verdict(condition.text, candidate.file, None, condition.limit, True, message)
    failed = value != value or _COMPARISONS[condition.comparison](value, condition.limit)
    message = f"{candidate.file} {'fails' if failed else 'passes'} {rule}: it is {value:.6g}"
    return Verdict(condition.text, candidate.file, value, condition.limit, failed, message)
