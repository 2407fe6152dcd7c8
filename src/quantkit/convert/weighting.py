"""Which weights `convert` hands to the encoders: the one place where that is decided."""

from __future__ import annotations

from typing import cast, get_args

from quantkit.errors import UsageError
from quantkit.kernels.codec import Weighting


def weighting(format: str) -> Weighting:
    """The encoder's weighting for a tensor of `format` ("q4_k" ...).

    Least squares shortens every block a little, by the same sign for every input, and over the layers of a model that
    adds up: without it the KLD on the trained checkpoints, on text on which nothing else was chosen, was up to 12 %
    smaller and in no format larger (docs/benchmarks/kld.md). In q8_0 there is nothing left to undo; in q4_1 it gained
    one per cent, and would have made the one encoder that is hardly faster than llama.cpp's slower. llama.cpp's
    weighting by magnitude was no better, but for q4_1 and q5_1 without importance: there it gained some per cent at
    four times the time.
    """
    return "plain" if format in ("f32", "f16", "bf16", "q8_0", "q4_1") else "unbiased"


def takes_importance(format: str) -> bool:
    """Whether an importance matrix reaches the encoder of `format`.

    Not that of q8_0: there it made the KLD no smaller (docs/benchmarks/kld.md), and llama.cpp leaves it out too.
    """
    return format != "q8_0"


def parse_weighting(name: str) -> Weighting:
    """A weighting by name; UsageError when the encoders know none of that name."""
    if name not in get_args(Weighting):
        raise UsageError(
            f"there is no weighting {name!r}", hint=f"The weightings are {', '.join(get_args(Weighting))}."
        )
    return cast(Weighting, name)
