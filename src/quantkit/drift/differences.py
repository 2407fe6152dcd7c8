"""Whether two candidates can be told apart: the same tokens, paired."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from quantkit.drift.clusters import Clusters
from quantkit.drift.figures import Interval
from quantkit.drift.intervals import mean
from quantkit.drift.output import TokenScores

LEVEL = 0.05


@dataclass(frozen=True)
class Difference:
    """Mean KLD of `second` minus that of `first`, over the same tokens.

    Args:
        first, second: places among the candidates.
        kld, ci95: in nats, and its 95 % interval, of this pair by itself.
        p_value: two-sided, adjusted for the number of pairs (Holm 1979); None without an interval.
        told_apart: the adjusted p value is below 0.05. If not, the text does not say which file is better.
        statement: the same as a sentence.
    """

    first: int
    second: int
    kld: float
    ci95: Interval | None
    p_value: float | None
    told_apart: bool
    statement: str


def differences(scores: Sequence[TokenScores], names: Sequence[str], groups: Clusters) -> tuple[Difference, ...]:
    """Of all pairs of candidates, in order."""
    found = []
    for first, second in combinations(range(len(scores)), 2):
        pair = mean(scores[second].kld - scores[first].kld, groups)
        found.append(Difference(first, second, pair.value, pair.ci95, pair.p_value, False, ""))
    adjusted = holm([one.p_value for one in found])
    return tuple(_judged(one, p, names) for one, p in zip(found, adjusted, strict=True))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjusted so that among all true hypotheses any is rejected with the probability of the level at most."""
    known = sorted((p, at) for at, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    least = 0.0
    for rank, (p, at) in enumerate(known):
        least = max(least, min(1.0, p * (len(known) - rank)))
        adjusted[at] = least
    return adjusted


def _judged(one: Difference, p: float | None, names: Sequence[str]) -> Difference:
    first, second = names[one.first], names[one.second]
    apart = p is not None and p < LEVEL
    if p is None:
        statement = f"{first} and {second} cannot be told apart: there is too little text for an interval"
    elif apart:
        better, worse = (first, second) if one.kld > 0 else (second, first)
        statement = f"{worse} has drifted further than {better}, by {abs(one.kld):.3g} nats a token{_range(one)}"
    else:
        statement = f"{first} and {second} cannot be told apart on this text{_range(one)}"
    return replace(one, p_value=p, told_apart=apart, statement=statement)


def _range(one: Difference) -> str:
    if one.ci95 is None:
        return ""
    low, high = one.ci95
    return f" (mean KLD differs by {one.kld:+.3g}, 95 % interval {low:+.3g} to {high:+.3g})"
