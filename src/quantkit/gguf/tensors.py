"""Quantized tensors from a GGUF and to one."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from gguf import GGUFValueType

from quantkit.errors import CheckpointError, UsageError
from quantkit.gguf.field import Field
from quantkit.gguf.layout import lay_out
from quantkit.gguf.reader import GgufFile, open_gguf
from quantkit.kernels import FORMATS, QuantizedTensor, row_bytes
from quantkit.kernels.atomic_file import atomic_file, write_array

_FIELDS = (Field("general.architecture", "unknown", GGUFValueType.STRING),)


def load_tensor(file: str | Path | GgufFile, name: str) -> QuantizedTensor:
    """One tensor of a GGUF. The file is mapped: of a tensor of experts, what is not looked at is not read.

    Args:
        file: path (of any split), or what `open_gguf` returned, which saves reading the header again.
        name: as GGUF has it, such as "blk.0.ffn_gate_exps.weight".

    Raises:
        UsageError: no tensor of that name, or a type that quantkit does not decode.
        CheckpointError: the file is missing or malformed.
    """
    content = file if isinstance(file, GgufFile) else open_gguf(file)
    found = {tensor.name: tensor for tensor in content.tensors}
    if name not in found:
        near = difflib.get_close_matches(name, found, 3)
        hint = f"Did you mean {' or '.join(near)}?" if near else "`quantkit inspect` lists the tensors."
        raise UsageError(f"{content.files[0]}: there is no tensor {name!r}", hint=hint)
    tensor = found[name]
    if tensor.type not in FORMATS:
        raise UsageError(
            f"{tensor.file}: {name} is of type {tensor.type}, which quantkit does not decode",
            hint=f"Known: {', '.join(FORMATS)}.",
        )
    shape = (*tensor.shape[:-1], row_bytes(tensor.type, tensor.shape[-1]))
    try:
        packed = np.memmap(tensor.file, np.uint8, "r", offset=tensor.offset_bytes, shape=shape)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{tensor.file}: {name} cannot be read: {error}") from error
    return QuantizedTensor(packed, tensor.type)


def save_tensors(path: str | Path, tensors: Mapping[str, QuantizedTensor], fields: Sequence[Field] = _FIELDS) -> None:
    """Write a GGUF, whole or not at all; a file of that name is replaced.

    Args:
        tensors: name -> tensor in file order, in block formats ("int4_g64" and its like are none of GGUF's).
        fields: the key-value pairs; `general.architecture` is the one that every GGUF has.

    Raises:
        UsageError: a format that GGUF does not have.
        PlanRefusedError: names, shapes or fields that GGUF cannot hold.
        OutputError: writing failed.
    """
    path = Path(path)
    for name, tensor in tensors.items():
        if tensor.format not in FORMATS:
            raise UsageError(f"{name} is in {tensor.format}, which GGUF does not have", hint="Save it by itself.")
    (plan,) = lay_out(fields, [(name, qt.shape, qt.format) for name, qt in tensors.items()], path=path)
    with atomic_file(path) as file:
        file.write(plan.header)
        for name, tensor in tensors.items():
            file.write(bytes(plan.offsets[name] - file.tell()))
            write_array(file, tensor.packed)
        file.write(bytes(plan.n_bytes - file.tell()))
