"""Which weights `convert` hands to the encoders: the one place where that is decided."""

from __future__ import annotations

from typing import cast, get_args

from quantkit.errors import UsageError
from quantkit.kernels.codec import Weighting

# (format, with an importance matrix): where favouring large weights, as ggml does everywhere, gave the smaller KLD on
# the trained checkpoints together, on text on which nothing else was chosen (docs/benchmarks/kld.md). Elsewhere plain
# squared error was better or made no difference, but for q4_1 and q5_1 without importance: there it gained 4 to 7 %, at
# four times the time, because plain weights take a quick search which is as fast as ggml's.
_MAGNITUDE = frozenset({("q2_k", False), ("q2_k", True)})


def weighting(format: str, has_importance: bool) -> Weighting:
    """The encoder's weighting for a tensor of `format` ("q4_k" ...), with or without an importance matrix."""
    return "magnitude" if (format, has_importance) in _MAGNITUDE else "plain"


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
