"""The verdict in words: faults first, then how large the loss is, ties as ties, and nothing surer than its interval."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.drift.files import PROSE, ROOT, TINY, converted

import quantkit
from quantkit.drift import Candidate, Drift, Figures, Finding, Interval
from quantkit.drift.loss import KLD_LIMITS, PHRASES, TOP1_LIMITS, WORDS, Loss, Word
from quantkit.drift.outcome import outcome


@pytest.fixture(scope="module")
def drift(tmp_path_factory: pytest.TempPathFactory) -> Drift:
    files = converted(tmp_path_factory.mktemp("outcome"), ["q8_0", "q4_k_m"])
    return quantkit.drift(TINY, files.values(), text=PROSE, context=64, tokens=2048, threads=2)


def figures(own: Candidate, kld: float, top1: float, ends: tuple[Interval, Interval] | None = None) -> Figures:
    assert own.kld is not None
    assert own.perplexity is not None
    assert own.top5_overlap is not None
    assert own.delta_p is not None
    assert own.flips is not None
    intervals = ends or (None, None)
    mean = replace(own.kld, mean=kld, ci95=intervals[0])
    return Figures(1000, mean, own.perplexity, top1, intervals[1], own.top5_overlap, own.delta_p, own.flips)


@pytest.mark.parametrize(
    ("kld", "top1", "word"),
    [
        # what llama.cpp publishes of Llama 3 8B and of Llama 2 7B
        (0.001355, 0.97674, "none"),  # q8_0
        (0.005452, 0.96031, "small"),  # q6_K
        (0.031273, 0.91901, "small"),  # q4_K_M
        (0.012686, 0.94665, "small"),
        (0.445132, 0.71138, "severe"),  # q2_K
        (0.108903, 0.85584, "clear"),
        # the worse of both counts
        (0.0001, 0.83, "clear"),
        (0.2, 0.999, "severe"),
        # limits belong to the worse word for KLD, and to the better one for agreement
        (0.003, 1, "small"),
        (0.05, 1, "clear"),
        (0.15, 1, "severe"),
        (0, 0.97, "none"),
        (0, 0.90, "small"),
        (0, 0.80, "clear"),
    ],
)
def test_words(kld: float, top1: float, word: Word, drift: Drift) -> None:
    assert Loss.of(figures(drift.candidates[0], kld, top1)) == Loss(word, None)


def test_an_interval_that_reaches_further_is_told(drift: Drift) -> None:
    own = drift.candidates[0]
    loss = Loss.of(figures(own, 0.01, 0.95, ((0.008, 0.06), (0.94, 0.96))))
    assert (loss, loss.doubt) == (Loss("small", "clear"), "perhaps clear")
    assert Loss.of(figures(own, 0.01, 0.91, ((0.008, 0.02), (0.89, 0.93)))).doubt == "perhaps clear"
    assert Loss.of(figures(own, 0.01, 0.95, ((0.008, 0.02), (0.94, 0.96)))).doubt == ""
    assert Loss.of(figures(own, 0.051, 0.95, ((0.03, 0.049), (0.94, 0.96)))) == Loss("clear", "clear")
    assert Loss.of(figures(own, 0.01, 0.95)).doubt == "too little text to be sure"


def test_the_document_has_these_limits() -> None:
    document = (ROOT / "docs" / "drift.md").read_text()
    for word, kld, top1 in zip(WORDS, (*KLD_LIMITS, None), (*TOP1_LIMITS, None), strict=True):
        limits = "more | less" if kld is None or top1 is None else f"below {kld:g} | {100 * top1:.0f} % and more"
        assert f"| `{word}`: {PHRASES[word]} | {limits} |" in document


def named(drift: Drift, *losses: Loss, told_apart: bool = True) -> Drift:
    pairs = zip(drift.candidates, losses, strict=True)
    candidates = tuple(replace(one, loss=loss, file=f"{'ab'[at]}.gguf") for at, (one, loss) in enumerate(pairs))
    apart = tuple(replace(one, told_apart=told_apart) for one in drift.differences)
    return replace(drift, candidates=candidates, differences=apart)


def test_several_files(drift: Drift) -> None:
    found = outcome(named(drift, Loss("none", "none"), Loss("severe", "severe")))
    assert (found.severity, found.title) == ("severe", "Up to a severe loss")
    assert found.sentences[:4] == (
        "No faults found: all 2 files are as their types explain.",
        "No loss that text would show: a.gguf.",
        "A severe loss: b.gguf.",
        "a.gguf is closest to the reference.",
    )
    assert found.sentences[4].startswith("a.gguf is the smallest without a clear loss: it predicts the same next")
    found = outcome(named(drift, Loss("small", "clear"), Loss("small", "small"), told_apart=False))
    assert (found.severity, found.title) == ("small", "Small loss")
    assert found.sentences[1:4] == (
        "A small loss, perhaps clear: a.gguf.",
        "A small loss: b.gguf.",
        "a.gguf and b.gguf cannot be told apart on this text: which is closest stays open.",
    )
    assert found.sentences[4].startswith("b.gguf is the smallest without a clear loss")
    assert len(outcome(named(drift, Loss("clear", "clear"), Loss("severe", None))).sentences) == 4


def test_faults_come_first(drift: Drift) -> None:
    """A faulty file is neither closest nor smallest, however little it seems to have lost."""
    fault = Finding("fault", "zero", "x", 0, (), "x is zero.", "Do not.")
    first, second = named(drift, Loss("none", "none"), Loss("clear", "clear")).candidates
    found = outcome(replace(drift, candidates=(replace(first, findings=(fault,)), second)))
    assert (found.severity, found.title) == ("fault", "Fault")
    assert found.sentences[0] == "a.gguf has faults: do not use it."
    assert found.sentences[1].startswith("b.gguf has a clear loss: it predicts")
    assert len(found.sentences) == 2
    warning = replace(fault, severity="warning")
    found = outcome(replace(drift, candidates=(replace(first, findings=(warning,)), second)))
    assert (found.severity, found.sentences[0][:15]) == ("warning", "Look at a.gguf:")


def test_what_was_not_compared_is_not_called_good(drift: Drift) -> None:
    alike = named(drift, Loss("none", "none"), Loss("none", "none"))
    assert outcome(alike).severity == "none"
    without = replace(alike, candidates=tuple(replace(one, tensors=()) for one in alike.candidates))
    assert outcome(without).severity == "unknown"
    assert outcome(without).sentences[0] == "Weights were not compared, so that faults in them do not show."
    alone = replace(drift, candidates=tuple(replace(one, loss=None, kld=None) for one in drift.candidates))
    assert (outcome(alone).severity, outcome(alone).title) == ("unknown", "Weights alone")
