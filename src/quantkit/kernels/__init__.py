"""The door to the machine room: GGUF block formats in, numpy arrays out. Needs numpy alone."""

from quantkit.kernels.codec import dequantize, encode_into, quantize
from quantkit.kernels.deviation import Deviation
from quantkit.kernels.formats import FORMATS, Format, row_bytes
from quantkit.kernels.groups import dequantize_groups, quantize_groups
from quantkit.kernels.matmul import matmul, matmul_experts, matmul_groups
from quantkit.kernels.moments import Moments
from quantkit.kernels.repacked import RepackedTensor
from quantkit.kernels.tensor import QuantizedTensor
from quantkit.kernels.tier import build_info, current_tier

__all__ = [
    "FORMATS",
    "Deviation",
    "Format",
    "Moments",
    "QuantizedTensor",
    "RepackedTensor",
    "build_info",
    "current_tier",
    "dequantize",
    "dequantize_groups",
    "encode_into",
    "matmul",
    "matmul_experts",
    "matmul_groups",
    "quantize",
    "quantize_groups",
    "row_bytes",
]
