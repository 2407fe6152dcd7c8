"""Laying out, and reading, GGUF and imatrix files, on top of the `gguf` package."""

from quantkit.gguf.field import Field

__all__ = ["Field"]
