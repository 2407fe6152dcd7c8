"""What must not change between a run and its resumption."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import Any

import quantkit
from quantkit.checkpoint import Checkpoint
from quantkit.convert.importance import Statistics
from quantkit.convert.options import Options
from quantkit.convert.request import Wanted
from quantkit.convert.work import OutputWork


def plan_fingerprint(
    source: Checkpoint,
    wanted: Sequence[Wanted],
    works: Sequence[OutputWork],
    options: Options,
    statistics: Statistics | None,
) -> dict[str, Any]:
    """What must not change between a run and its resumption, field by field, in words of the command line."""
    layout = hashlib.sha256()
    types: dict[str, str] = {}
    for output, work in zip(wanted, works, strict=True):
        per_tensor = "\n".join(f"{tensor.name} {format}" for tensor, format in work.tensors)
        types[f"{output.kind} {output.name}"] = hashlib.sha256(per_tensor.encode()).hexdigest()
        for file in work.files:
            layout.update(os.fsencode(file.path.name))
            layout.update(f" {file.n_bytes} {sorted(file.offsets.items())}".encode())
            layout.update(hashlib.sha256(file.header).digest())
    weightings = sorted({name for work in works for name in work.weighting.values()})
    return {
        "quantkit version": quantkit.__version__,
        **source.identity(),
        "types": [output.name for output in wanted if output.kind == "model"],
        "mmproj type": next((output.name for output in wanted if output.kind == "mmproj"), None),
        "outputs": [str(output.path.name) for output in wanted],
        "pure": options.pure,
        "tensor types": options.overrides(),
        "split max size": options.split_max_bytes,
        "imatrix sha256": None if statistics is None else statistics.sha256,
        "weighting": weightings,
        "types by tensor": types,
        "layout": layout.hexdigest(),
    }
