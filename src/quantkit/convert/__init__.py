"""The corridor, the only room that knows the whole way: `plan(...)`, and `convert(...)`, which is `plan` plus the walk.

plan(checkpoint, out=None, types=["q4_k_m"], *, mmproj=None, mmproj_only=False, mmproj_type="f16", imatrix=None,
     pure=False, tensor_types=(), token_embedding_type=None, output_tensor_type=None, split_max_size=None,
     strict=False, allow_mismatch=False, allow_missing_imatrix=False, threads=0, force=False, weighting=None,
     contexts=(8192, 131072), bandwidth_gb_s=100.0) -> Plan
convert(checkpoint, out, types=["q4_k_m"], *, <as plan>, progress=None) -> ConvertResult
"""

from quantkit.convert.plan import DiskNeed, Fallback, FileSize, OutputPlan, Plan, RuntimeNeed, TensorPlan
from quantkit.convert.progress import ConvertResult, OutputResult, Progress

__all__ = [
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
]
