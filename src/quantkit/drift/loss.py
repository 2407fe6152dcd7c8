"""How large a candidate's loss is, in words: what docs/drift.md says that they stand for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from quantkit.drift.figures import Figures

Word = Literal["none", "small", "clear", "severe"]
WORDS: tuple[Word, ...] = ("none", "small", "clear", "severe")
# Each word holds below a mean KLD and from a top-1 agreement on; the worse of both counts. They lie between what
# llama.cpp's README publishes of Llama 2 7B and Llama 3 8B: q8_0 | q6_k to q4_k_m | q3_k_m | q2_k.
KLD_LIMITS = (0.003, 0.05, 0.15)
TOP1_LIMITS = (0.97, 0.90, 0.80)
PHRASES: dict[Word, str] = {
    "none": "no loss that text would show",
    "small": "a small loss",
    "clear": "a clear loss",
    "severe": "a severe loss",
}


@dataclass(frozen=True)
class Loss:
    """What mean KLD and top-1 agreement come to.

    Args:
        word: for the measured values.
        at_most: for the worse ends of their 95 % intervals; None where there is too little text for them.
    """

    word: Word
    at_most: Word | None

    @classmethod
    def of(cls, found: Figures) -> Loss:
        word, worst = _word(found.kld.mean, found.top1_agreement), None
        if found.kld.ci95 is not None and found.top1_ci95 is not None:
            # a bootstrapped interval need not hold the mean itself
            worst = max(word, _word(found.kld.ci95[1], found.top1_ci95[0]), key=WORDS.index)
        return cls(word, worst)

    @property
    def doubt(self) -> str:
        """What is not sure about the word, as the end of a sentence."""
        if self.at_most is None:
            return "too little text to be sure"
        return f"perhaps {self.at_most}" if self.at_most != self.word else ""


def _word(kld: float, top1: float) -> Word:
    by_kld = sum(kld >= limit for limit in KLD_LIMITS)
    by_top1 = sum(top1 < limit for limit in TOP1_LIMITS)
    return WORDS[max(by_kld, by_top1)]
