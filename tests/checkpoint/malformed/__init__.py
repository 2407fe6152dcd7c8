"""More than a hundred malformed checkpoints, each one fault away from tiny-llama4.

`KINDS[name].make(dst)` makes one and returns the path to open; `.stage`, `.error` and `.match` say where it must be
refused, with which class of `quantkit.errors`, and what the message must name.
"""

from tests.checkpoint.malformed import downloads, headers, settings, shards, tensors, tokenizer
from tests.checkpoint.malformed.kind import Kind, Stage

__all__ = ["KINDS", "Kind", "Stage"]

_ROOMS = (headers, shards, downloads, settings, tokenizer, tensors)
_LISTED = [kind for room in _ROOMS for kind in room.kinds()]
KINDS: dict[str, Kind] = {kind.name: kind for kind in _LISTED}
assert len(KINDS) == len(_LISTED), "two kinds of one name"
