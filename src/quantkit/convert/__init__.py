"""The corridor, the only room that knows the whole way: `plan(...)`, and `convert(...)`, which is `plan` plus the walk.

The room itself can be called, so that both `quantkit.convert(...)` and `from quantkit.convert import convert` work.
"""

import sys
from types import ModuleType
from typing import Any

from quantkit.convert.calibration import Calibrating
from quantkit.convert.plan import DiskNeed, Fallback, FileSize, OutputPlan, Plan, RuntimeNeed, TensorPlan
from quantkit.convert.preflight import plan
from quantkit.convert.progress import ConvertResult, OutputResult, Progress
from quantkit.convert.run import convert
from quantkit.convert.tuning import Tuning

__all__ = [
    "Calibrating",
    "ConvertResult",
    "DiskNeed",
    "Fallback",
    "FileSize",
    "OutputPlan",
    "OutputResult",
    "Plan",
    "Progress",
    "RuntimeNeed",
    "TensorPlan",
    "Tuning",
    "convert",
    "plan",
]


class _Room(ModuleType):
    def __call__(self, *arguments: Any, **options: Any) -> ConvertResult:
        return convert(*arguments, **options)


sys.modules[__name__].__class__ = _Room
