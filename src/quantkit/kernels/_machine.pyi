"""
The machine room of quantkit. Use quantkit.kernels, which checks and explains what goes in.
"""

from typing import Annotated

import numpy
from numpy.typing import NDArray


def formats() -> list:
    """
    Rows (name, ggml type, elements per block, bytes per block, largest magnitude).
    """

def encode(tier: str, format: str, source: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)], scalar: str, offset: int, rows: int, cols: int, row_stride: int, col_stride: int, row_scale: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)] | None, importance: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)] | None, weighting: str, out: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu')], threads: int) -> tuple[int, int, float] | None:
    """
    None, or (row, column, value) of the first element that cannot be encoded.
    """

def decode(tier: str, format: str, packed: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)], out: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu')], threads: int) -> None: ...

def build_info() -> dict:
    """
    Compiler, tiers built, tiers this processor supports, whether it has AVX512_VNNI, threads.
    """

def from_dlpack(capsule: Annotated[NDArray, dict(writable=False)]) -> tuple[Annotated[NDArray, dict(writable=False)] | None, str, int]:
    """
    (array, dtype, device type) of a DLPack capsule, without a copy. bfloat16 arrives as its bits in uint16; the array is None when it lies on another device or numpy lacks its type.
    """

DOT_ROWS: int = 8

def matmul_few(tier: str, format: str, x: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], packed: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)], cols: int, out: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')], threads: int) -> None:
    """
    out (n, rows) = x (n, cols) times the decoded rows of packed, n <= DOT_ROWS. The columns of x are padded with zeros to a multiple of 32.
    """

def matmul_panels(tier: str, format: str, x: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], packed: Annotated[NDArray[numpy.uint8], dict(shape=(None, None), device='cpu', writable=False)], out: Annotated[NDArray[numpy.float32], dict(shape=(None, None), device='cpu')], threads: int, input_major: bool = False) -> bool | None:
    """
    out (n, rows) = x (n, cols) times the decoded rows of packed (rows, row_bytes), in floats. Rows of packed and out may lie apart. With input_major, which f32, f16 and bf16 may be, packed has a row for each column of x. Whether out is finite; None, and nothing done: the tier leaves it to BLAS.
    """

def matmul_tiers() -> list[str]:
    """
    What matmul_fast takes as tier here: the supported tiers, and their variants.
    """

def matmul_fast(tier: str, format: str, x: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], packed: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)], rows: int, cols: int, out: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu')], threads: int, repacked: bool = False) -> bool:
    """
    out (n, rows) = x (n, cols) times the rows of packed, with x quantized to int8. False: not all of it is finite.
    """

def matmul_direct(tier: str, format: str, x: Annotated[NDArray[numpy.float32], dict(order='C', device='cpu', writable=False)], packed: Annotated[NDArray[numpy.uint8], dict(order='C', device='cpu', writable=False)], out: Annotated[NDArray[numpy.float32], dict(order='C', device='cpu')], threads: int, repacked_rows: int | None = None) -> bool:
    """
    matmul_fast with arrays in their own shapes; ValueError or TypeError, and nothing done, if they do not fit.
    """

def matmul_fast_groups(tier: str, bits: int, group_size: int, x: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], words: Annotated[NDArray[numpy.uint32], dict(shape=(None,), order='C', device='cpu', writable=False)], scales: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], biases: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], rows: int, cols: int, out: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu')], threads: int) -> bool:
    """The same for affine groups, w = scale * code + bias."""

def matmul_fast_experts(tier: str, format: str, x: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], packed: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)], n_experts: int, rows: int, cols: int, order: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], starts: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], out: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu')], threads: int, repacked: bool = False) -> bool:
    """
    The same for stacked experts: rows order[starts[e]:starts[e + 1]] of x belong to expert e.
    """

def repack(tier: str, format: str, source: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)], n_experts: int, rows: int, cols: int, out: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu')], back: bool, threads: int) -> None:
    """
    Rows of each expert to sixteen side by side, the last filled up with zeros: what the products take as repacked. Or back.
    """

def group_limit(scale_type: str) -> float:
    """The largest magnitude of a weight with scales of that type."""

def encode_groups(tier: str, source: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)], scalar: str, rows: int, cols: int, row_stride: int, col_stride: int, importance: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)] | None, bits: int, group_size: int, symmetric: bool, scale_type: str, codes: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu')], scales: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu')], biases: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu')], threads: int) -> tuple[int, int, float] | None:
    """
    None, or (row, column, value) of the first element that cannot be encoded.
    """

def decode_groups(tier: str, codes: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)], scales: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)], biases: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)], scale_type: str, rows: int, cols: int, group_size: int, bits: int, out: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu')], threads: int) -> None: ...
