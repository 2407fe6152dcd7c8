"""Keys and tensors of an imatrix in GGUF. llama.cpp's reader takes SUMS and COUNTS and passes over other tensors."""

from __future__ import annotations

GENERAL_TYPE = "general.type"
IMATRIX = "imatrix"
DATASETS = "imatrix.datasets"
CHUNK_COUNT = "imatrix.chunk_count"
CHUNK_SIZE = "imatrix.chunk_size"
SHRUNK = "quantkit.imatrix.shrunk"

SUMS = ".in_sum2"  # f32 (experts, cols), Σx²
COUNTS = ".counts"  # f32 (experts, 1)
INPUTS = ".in_sum"  # f32 (experts, cols), Σx; newer versions of llama-imatrix write it too
ROUTER_SUMS = ".router_sum"  # f32 (experts, 1), Σw; this and the next are ours
ROUTER_SQUARES = ".router_square_sum"  # f32 (experts, 1), Σw²; a name that does not end like one of llama.cpp's
SUFFIXES = (SUMS, COUNTS, INPUTS, ROUTER_SUMS, ROUTER_SQUARES)
