"""GGUF files of small checkpoints, and files with a fault planted in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np

import quantkit
from quantkit.calibration.text import DEFAULT_PATH
from quantkit.gguf import Field, load_tensor, open_gguf, save_tensors
from quantkit.kernels import QuantizedTensor

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "data" / "tiny-llama4"
# none that changes with every commit: what is measured on it would too
PROSE = [ROOT / "LICENSE", DEFAULT_PATH.with_name("README.md")]
BOS = 992


def converted(folder: Path, types: Sequence[str], checkpoint: Path = TINY, **options: Any) -> dict[str, Path]:
    """The checkpoint in each type, by type."""
    out = "{type}.gguf" if len(types) > 1 else f"{types[0]}.gguf"
    quantkit.convert(checkpoint, folder / out, types, threads=2, **options)
    return {type: folder / f"{type}.gguf" for type in types}


def changed(
    source: Path,
    out: Path,
    *,
    tensors: dict[str, Callable[[QuantizedTensor], QuantizedTensor]] | None = None,
    fields: dict[str, Any] | None = None,
) -> Path:
    """A copy of a GGUF with some tensors, or values of keys (None: without the key), replaced."""
    file = open_gguf(source)
    loaded = {one.name: load_tensor(file, one.name) for one in file.tensors}
    for name, change in (tensors or {}).items():
        loaded[name] = change(loaded[name])
    kept = []
    for field in file.fields.values():
        value = (fields or {}).get(field.key, field.value)
        if value is not None:
            kept.append(Field(field.key, value, field.type, field.sub_type))
    save_tensors(out, loaded, fields=kept)
    return out


def as_float(source: Path, out: Path) -> Path:
    """The same weights, decoded by the `gguf` package and stored as float32."""
    loaded = {}
    for tensor in gguf.GGUFReader(source).tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        values = np.ascontiguousarray(values.reshape([int(n) for n in reversed(tensor.shape)]))
        loaded[tensor.name] = QuantizedTensor(values.view(np.uint8), "f32")
    fields = [field for field in open_gguf(source).fields.values() if field.key != "general.file_type"]
    save_tensors(out, loaded, fields=fields)
    return out
