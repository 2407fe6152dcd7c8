"""The verdict in plain words, for the page and the terminal: faults, then how large the loss is, then what to take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from quantkit.drift.loss import PHRASES, WORDS, Word
from quantkit.drift.models import names_of
from quantkit.drift.result import Candidate, Drift

Named = tuple[str, Candidate]
TITLES: dict[Word, str] = {
    "none": "No visible loss",
    "small": "Small loss",
    "clear": "Clear loss",
    "severe": "Severe loss",
}


@dataclass(frozen=True)
class Outcome:
    """What to know of a drift first.

    Args:
        severity: of the worst candidate: findings come before any loss. "unknown" where no text was read, or weights
            were not compared and nothing else is wrong.
        title: in a word or two.
        sentences: the verdict.
    """

    severity: Literal["fault", "warning", "unknown"] | Word
    title: str
    sentences: tuple[str, ...]


def outcome(drift: Drift) -> Outcome:
    """Of all candidates together."""
    named = list(zip(names_of([one.file for one in drift.candidates]), drift.candidates, strict=True))
    faulty = [name for name, one in named if any(found.severity == "fault" for found in one.findings)]
    suspicious = [name for name, one in named if one.findings and name not in faulty]
    sound = [(name, one) for name, one in named if name not in faulty and one.loss is not None]
    sentences = [_faults(named, faulty, suspicious)]
    if sound:
        sentences += _losses(sound)
        sentences += _closest(sound, drift)
    if faulty:
        return Outcome("fault", "Fault", tuple(sentences))
    if suspicious:
        return Outcome("warning", "Warning", tuple(sentences))
    if not sound:
        return Outcome("unknown", "Weights alone", tuple(sentences))
    words = {one.loss.word for _, one in sound if one.loss is not None}
    worst = max(words, key=WORDS.index)
    title = TITLES[worst] if len(words) == 1 else f"Up to {PHRASES[worst]}"
    compared = all(one.tensors for _, one in named)
    return Outcome(worst if compared or worst != "none" else "unknown", title, tuple(sentences))


def _faults(named: Sequence[Named], faulty: Sequence[str], suspicious: Sequence[str]) -> str:
    if faulty:
        have, them = ("has faults", "it") if len(faulty) == 1 else ("have faults", "them")
        return f"{listed(faulty)} {have}: do not use {them}."
    if suspicious:
        return f"Look at {listed(suspicious)}: something there is not as its types explain."
    if not all(one.tensors for _, one in named):
        return "Weights were not compared, so that faults in them do not show."
    files = "the file is as its" if len(named) == 1 else f"all {len(named)} files are as their"
    return f"No faults found: {files} types explain."


def _losses(sound: Sequence[Named]) -> list[str]:
    """How large the loss is: the smallest first."""
    if len(sound) == 1:
        ((name, one),) = sound
        assert one.loss is not None
        doubt = f" ({one.loss.doubt})" if one.loss.doubt else ""
        return [f"{name} has {_phrase(one)}{doubt}: {_figures(one)}."]
    groups: dict[str, list[str]] = {}
    for name, one in sorted(sound, key=lambda pair: _kld(pair[1])):
        assert one.loss is not None
        phrase = _phrase(one) + (f", {one.loss.doubt}" if one.loss.doubt else "")
        groups.setdefault(phrase, []).append(name)
    return [f"{phrase[0].upper()}{phrase[1:]}: {listed(names)}." for phrase, names in groups.items()]


def _closest(sound: Sequence[Named], drift: Drift) -> list[str]:
    """Which of several is closest, if that can be told, and which to take."""
    if len(sound) == 1:
        return []
    best, closest = min(sound, key=lambda pair: _kld(pair[1]))
    tied = [name for name, one in sound if one is not closest and not _told_apart(drift, closest, one)]
    if tied:
        sentences = [f"{best} and {listed(tied, 'or')} cannot be told apart on this text: which is closest stays open."]
    else:
        sentences = [f"{best} is closest to the reference."]
    good = [pair for pair in sound if (loss := pair[1].loss) and (loss.at_most or loss.word) in ("none", "small")]
    if good:
        name, one = min(good, key=lambda pair: pair[1].bytes)
        sentences.append(f"{name} is the smallest without a clear loss: {_figures(one)}.")
    return sentences


def _told_apart(drift: Drift, *pair: Candidate) -> bool:
    places = {at for at, one in enumerate(drift.candidates) if any(one is other for other in pair)}
    return any(one.told_apart for one in drift.differences if {one.first, one.second} == places)


def _phrase(one: Candidate) -> str:
    assert one.loss is not None
    same = one.kld is not None and one.kld.max == 0 and one.top1_agreement == 1
    return "no loss at all" if same else PHRASES[one.loss.word]


def _figures(one: Candidate) -> str:
    assert one.top1_agreement is not None
    return (
        f"it predicts the same next token as the reference in {100 * one.top1_agreement:.1f} % of cases, "
        f"with a mean KL divergence of {_kld(one):#.3g}"
    )


def _kld(one: Candidate) -> float:
    assert one.kld is not None
    return one.kld.mean


def listed(names: Sequence[str], last: str = "and") -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {last} {names[-1]}"
