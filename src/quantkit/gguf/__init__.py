"""Laying out, and reading, GGUF and imatrix files, on top of the `gguf` package."""

from quantkit.gguf.field import Field
from quantkit.gguf.layout import FilePlan, lay_out, parse_split_size, split_name, tensor_bytes

__all__ = ["Field", "FilePlan", "lay_out", "parse_split_size", "split_name", "tensor_bytes"]
