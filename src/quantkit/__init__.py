"""quantkit: convert, quantize and measure Llama 4 checkpoints larger than memory.

Nothing heavy is imported before it is used: `quantkit.convert(...)`, `quantkit.plan(...)`,
`quantkit.calibrate(...)`, `quantkit.drift(...)`, `quantkit.compare(...)`, `quantkit.verify(...)`,
`quantkit.QuantizedTensor`, `quantkit.kernels` and `quantkit.errors`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quantkit.calibration.run import calibrate as calibrate
    from quantkit.convert.preflight import plan as plan
    from quantkit.convert.run import convert as convert
    from quantkit.drift.comparison import compare as compare
    from quantkit.drift.run import drift as drift
    from quantkit.drift.verification import verify as verify
    from quantkit.kernels.tensor import QuantizedTensor as QuantizedTensor

__version__ = "0.1.0"
__all__ = ["QuantizedTensor", "__version__", "calibrate", "compare", "convert", "drift", "plan", "verify"]


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name == "calibrate":
        return import_module("quantkit.calibration").calibrate
    if name == "plan":
        return import_module("quantkit.convert").plan
    if name == "compare":
        return import_module("quantkit.drift.comparison").compare
    if name == "verify":
        return import_module("quantkit.drift.verification").verify
    if name == "QuantizedTensor":
        return import_module("quantkit.kernels").QuantizedTensor
    if name in ("convert", "drift", "errors", "kernels"):
        return import_module(f"quantkit.{name}")  # the rooms `convert` and `drift` can be called like functions
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    own = (name for name in globals() if name.startswith("__") and name.endswith("__"))
    return sorted({*own, *__all__, "errors", "kernels"})
