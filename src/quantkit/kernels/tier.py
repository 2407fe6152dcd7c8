"""Which instruction set runs."""

from __future__ import annotations

import os
from typing import Any

from quantkit.errors import UsageError
from quantkit.kernels import _machine

_SUPPORTED: list[str] = _machine.build_info()["tiers_supported"]


def current_tier() -> str:
    """The tier in use: the widest that this processor supports, or the one that QUANTKIT_TIER names.

    Raises:
        UsageError: QUANTKIT_TIER names a tier that is not built or that this processor lacks.
    """
    wanted = os.environ.get("QUANTKIT_TIER")
    if not wanted:
        return _SUPPORTED[-1]
    if wanted not in _SUPPORTED:
        raise UsageError(
            f"QUANTKIT_TIER={wanted}: that tier is not built or this processor lacks it",
            hint=f"Unset it, or choose one of: {', '.join(_SUPPORTED)}.",
        )
    return wanted


def build_info() -> dict[str, Any]:
    """Compiler, tiers built and supported, tier in use, threads: what a bug report needs."""
    return {**_machine.build_info(), "tier": current_tier()}
