"""From a weight's place in one encoder call to its place in the checkpoint."""

from __future__ import annotations

from math import prod

from quantkit.errors import NonFiniteError
from quantkit.llama4.model import Slab, Target


def located(error: NonFiniteError, slab: Slab, target: Target, first: int) -> NonFiniteError:
    """The same error with file, HF tensor, expert and full index.

    Args:
        error: from `encode_into`, with `row`, `col` and `value` of that call.
        slab, target: what was being encoded.
        first: row of the target with which the call began.
    """
    row, col = int(getattr(error, "row", 0)) + first, int(getattr(error, "col", 0))
    entry = slab.entry
    item_bytes = entry.n_bytes // prod(entry.shape)
    flat = slab.offset_bytes // item_bytes + target.offset_elements
    flat += row * target.row_stride + col * target.col_stride
    index = []
    for extent in reversed(entry.shape):
        flat, place = divmod(flat, extent)
        index.append(place)
    place_text = ", ".join(str(place) for place in reversed(index))
    expert = f" (expert {target.expert})" if "_exps" in target.tensor else ""
    # The encoder's sentence ends in the reason, after the place in its call.
    reason = error.what.partition(f"column {getattr(error, 'col', '')} ")[2] or "cannot be encoded"
    fault = NonFiniteError(
        f"{entry.file}: {entry.name}[{place_text}]{expert}: weight {getattr(error, 'value', '')} {reason}",
        hint=error.hint or "The file is damaged or the training diverged; download it again or ask its publisher.",
    )
    fault.__dict__.update(file=entry.file, tensor=entry.name, index=tuple(reversed(index)))
    return fault
