"""The keys that depend on what was asked for, added to those that the checkpoint gives."""

from __future__ import annotations

import os
from collections.abc import Sequence

from gguf import GGUFValueType

from quantkit.checkpoint import Checkpoint
from quantkit.convert.importance import Statistics
from quantkit.convert.request import Wanted
from quantkit.gguf import Field
from quantkit.llama4 import provenance

QUANTIZATION_VERSION = 2  # of ggml's block formats
_MAX_NAME = 127  # what llama-quantize can hold of a file or data set


def finished_fields(
    source: Checkpoint,
    fields: Sequence[Field],
    wanted: Wanted,
    *,
    statistics: Statistics | None,
    pure: bool,
    overrides: Sequence[str],
    weighting: str | None,
    mismatches: Sequence[str],
) -> list[Field]:
    """All keys of one output: the family's, then types, imatrix, provenance.

    Args:
        overrides: "regex=type" as given.
        weighting: of the encoder, where the caller chose it.
        mismatches: reasons why the runtime computes this checkpoint otherwise, which the caller allowed.
    """
    string, u32 = GGUFValueType.STRING, GGUFValueType.UINT32
    added = [
        Field("general.quantization_version", QUANTIZATION_VERSION, u32),
        Field("general.file_type", wanted.recipe.ftype, u32),
    ]
    if statistics is not None:
        name = os.fsencode(statistics.path.name).decode(errors="replace")
        added.append(Field("quantize.imatrix.file", name[:_MAX_NAME], string))
        if statistics.datasets:
            added.append(Field("quantize.imatrix.dataset", statistics.datasets[0][:_MAX_NAME], string))
        added.append(Field("quantize.imatrix.entries_count", statistics.n_entries, u32))
        if statistics.chunk_count:
            added.append(Field("quantize.imatrix.chunks_count", statistics.chunk_count, u32))
    added += provenance(source, wanted.name + (" --pure" if pure else ""), mismatches)
    if overrides:
        added.append(Field("quantkit.tensor_types", list(overrides), GGUFValueType.ARRAY, string))
    if weighting is not None:
        added.append(Field("quantkit.weighting", weighting, string))
    if statistics is not None:
        added.append(Field("quantkit.imatrix_sha256", statistics.sha256, string))
    return [*fields, *added]
