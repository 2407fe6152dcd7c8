"""Writers of importance matrices as llama-imatrix writes them: GGUF, and the .dat of before 2025."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np

Statistics = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""name -> (sums of squares (experts, cols), counts (experts,))"""


def write_imatrix_gguf(path: Path, entries: Statistics, *, chunk_size: int = 512, extra: bool = True) -> Path:
    """The current format; `extra` adds the sums and statistics that readers must skip."""
    writer = gguf.GGUFWriter(path, "")
    writer.kv_data = [{}]  # an imatrix has no architecture
    writer.add_string("general.type", "imatrix")
    writer.add_array("imatrix.datasets", ["wiki.txt", "code.txt"])
    writer.add_uint32("imatrix.chunk_count", 7)
    writer.add_uint32("imatrix.chunk_size", chunk_size)
    for name, (sums, counts) in sorted(entries.items()):
        writer.add_tensor(f"{name}.in_sum2", sums.astype(np.float32))
        writer.add_tensor(f"{name}.counts", counts.astype(np.float32).reshape(-1, 1))
        if extra:
            writer.add_tensor(f"{name}.in_sum", -sums.astype(np.float32))
            writer.add_tensor(f"{name}.stats", np.full(12, np.nan, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_imatrix_dat(path: Path, entries: Statistics, *, chunk_size: int = 512, trailer: bool = True) -> Path:
    """The older format: means times the number of chunks, ones for experts that saw nothing."""
    data = struct.pack("<i", len(entries))
    for name, (sums, counts) in entries.items():
        n_calls = int(-(-counts.max() // chunk_size))
        means = np.ones(sums.shape, np.float32)
        seen = counts > 0
        means[seen] = (sums[seen] / counts[seen, None]).astype(np.float32)
        values = means * np.float32(n_calls)
        data += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", n_calls, values.size)
        data += values.tobytes()
    if trailer:
        data += struct.pack("<ii", 7, 8) + b"wiki.txt"
    path.write_bytes(data)
    return path
