"""quantkit: convert, quantize and measure Llama 4 checkpoints larger than memory.

Nothing heavy is imported before it is used: `quantkit.convert(...)`, `quantkit.plan(...)` and `quantkit.kernels`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quantkit.convert.preflight import plan as plan
    from quantkit.convert.run import convert as convert

__version__ = "0.1.0"
__all__ = ["__version__", "convert", "plan"]


def __getattr__(name: str) -> Any:
    if name == "plan":
        return importlib.import_module("quantkit.convert").plan
    if name in ("convert", "kernels"):
        return importlib.import_module(f"quantkit.{name}")  # the room `convert` can be called like the function
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
