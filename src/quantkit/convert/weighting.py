"""Which weights `convert` hands to the encoders: the one place where that is decided."""

from __future__ import annotations

from typing import cast, get_args

from quantkit.errors import UsageError
from quantkit.kernels.codec import Weighting


def weighting(format: str, has_importance: bool) -> Weighting:
    """The encoder's weighting for a tensor of `format` ("q4_k" ...), with or without an importance matrix."""
    return "plain"


def parse_weighting(name: str) -> Weighting:
    """A weighting by name; UsageError when the encoders know none of that name."""
    if name not in get_args(Weighting):
        raise UsageError(
            f"there is no weighting {name!r}", hint=f"The weightings are {', '.join(get_args(Weighting))}."
        )
    return cast(Weighting, name)
