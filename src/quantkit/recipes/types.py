"""Tensor types by name: block sizes, and what a row that is not a whole number of blocks falls back to."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from quantkit.errors import UsageError
from quantkit.kernels import FORMATS

TYPES = tuple(FORMATS)  # every format that the machine room encodes can be a tensor's type
UNQUANTIZED = frozenset(("f32", "f16", "bf16"))

# llama-quantize's choice: as many bits or more, in blocks of 32. Types of 32 have nothing smaller, and become f16.
_FALLBACK = {"iq4_xs": "iq4_nl", "q2_k": "q4_0", "q3_k": "q4_0", "q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0"}


def bits_per_weight(type_name: str) -> float:
    """Bits that one value takes, scales included."""
    return FORMATS[type_name].bits_per_weight


def fitting_type(wanted: str, cols: int) -> str:
    """`wanted`, or the nearest type whose blocks divide a row of `cols` values."""
    for candidate in (wanted, _FALLBACK.get(wanted, wanted)):
        if cols % FORMATS[candidate].block_size == 0:
            return candidate
    return "f16"


def parse_type(text: str) -> str:
    """Our spelling of a type that was given in any case ("Q4_K"); UsageError with the choices otherwise."""
    name = text.strip().lower()
    if name not in TYPES:
        raise unknown("type", text, TYPES)
    return name


def unknown(noun: str, text: str, choices: Iterable[str]) -> UsageError:
    """The error for a name that is not one of `choices`: the nearest one, and all of them."""
    choices = list(choices)
    name = text.strip().lower()
    # the middle one of a family is the usual choice
    close = [f"{name}_m"] if f"{name}_m" in choices else difflib.get_close_matches(name, choices, n=1)
    question = f"Did you mean {close[0]}? " if close else ""
    return UsageError(f"there is no {noun} {text!r}", hint=f"{question}The {noun}s are {', '.join(choices)}.")
