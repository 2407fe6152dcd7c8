"""quantkit: convert, quantize and measure Llama 4 checkpoints larger than memory.

Nothing heavy is imported before it is used: `quantkit.convert(...)`, `quantkit.plan(...)`,
`quantkit.calibrate(...)`, `quantkit.drift(...)`, `quantkit.compare(...)`, `quantkit.verify(...)`,
`quantkit.QuantizedTensor`, and the rooms: `quantkit.kernels`, `quantkit.testing`, `quantkit.gguf`,
`quantkit.errors` and their siblings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quantkit import calibration as calibration
    from quantkit import checkpoint as checkpoint
    from quantkit import errors as errors
    from quantkit import gguf as gguf
    from quantkit import kernels as kernels
    from quantkit import llama4 as llama4
    from quantkit import recipes as recipes
    from quantkit import testing as testing
    from quantkit.calibration.run import calibrate as calibrate
    from quantkit.convert.preflight import plan as plan
    from quantkit.convert.run import convert as convert
    from quantkit.drift.comparison import compare as compare
    from quantkit.drift.run import drift as drift
    from quantkit.drift.verification import verify as verify
    from quantkit.kernels.tensor import QuantizedTensor as QuantizedTensor

__version__ = "0.1.0"
__all__ = ["QuantizedTensor", "__version__", "calibrate", "compare", "convert", "drift", "plan", "verify"]

_HOMES = {
    "QuantizedTensor": "kernels",
    "calibrate": "calibration",
    "compare": "drift.comparison",
    "plan": "convert",
    "verify": "drift.verification",
}
# `convert` and `drift` can be called like functions
_ROOMS = (
    "calibration", "checkpoint", "convert", "drift", "errors", "gguf", "kernels", "llama4", "recipes", "testing",
)  # fmt: skip


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name in _HOMES:
        return getattr(import_module(f"quantkit.{_HOMES[name]}"), name)
    if name in _ROOMS:
        return import_module(f"quantkit.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    own = (name for name in globals() if name.startswith("__") and name.endswith("__"))
    return sorted({*own, *__all__, *_ROOMS})
