"""Laying out, and reading, GGUF and imatrix files, on top of the `gguf` package."""

from quantkit.gguf.field import Field
from quantkit.gguf.header import GgufTensor
from quantkit.gguf.imatrix import Imatrix, ImatrixEntry, read_imatrix
from quantkit.gguf.layout import FilePlan, lay_out, parse_split_size, split_name, tensor_bytes
from quantkit.gguf.reader import GgufFile, open_gguf
from quantkit.gguf.tensors import load_tensor, save_tensors

__all__ = [
    "Field",
    "FilePlan",
    "GgufFile",
    "GgufTensor",
    "Imatrix",
    "ImatrixEntry",
    "lay_out",
    "load_tensor",
    "open_gguf",
    "parse_split_size",
    "read_imatrix",
    "save_tensors",
    "split_name",
    "tensor_bytes",
]
