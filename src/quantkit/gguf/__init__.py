"""Laying out, and reading, GGUF and imatrix files, on top of the `gguf` package."""

from quantkit.gguf.coverage import LayerCoverage, coverage
from quantkit.gguf.field import Field
from quantkit.gguf.header import GgufTensor
from quantkit.gguf.imatrix import Imatrix, ImatrixEntry
from quantkit.gguf.imatrix_merge import merge_imatrix
from quantkit.gguf.imatrix_reader import read_imatrix
from quantkit.gguf.imatrix_writer import write_imatrix
from quantkit.gguf.layout import FilePlan, lay_out, parse_split_size, split_name, tensor_bytes
from quantkit.gguf.reader import GgufFile, open_gguf
from quantkit.gguf.shrinkage import Shrunk, shrink
from quantkit.gguf.tensors import load_tensor, save_tensors

__all__ = [
    "Field",
    "FilePlan",
    "GgufFile",
    "GgufTensor",
    "Imatrix",
    "ImatrixEntry",
    "LayerCoverage",
    "Shrunk",
    "coverage",
    "lay_out",
    "load_tensor",
    "merge_imatrix",
    "open_gguf",
    "parse_split_size",
    "read_imatrix",
    "save_tensors",
    "shrink",
    "split_name",
    "tensor_bytes",
    "write_imatrix",
]
