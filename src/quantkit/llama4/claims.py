"""Matching a checkpoint's tensors against the expected ones: each is claimed exactly once, and nothing is left over."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from quantkit.checkpoint import Checkpoint, TensorEntry
from quantkit.errors import CheckpointError, UnsupportedModelError
from quantkit.llama4.model import ITEM_BYTES
from quantkit.llama4.sources import Source

FP8 = "F8_E4M3"
_SCALE_DTYPES = ("F32", "F16", "BF16")
# Scales of activations and of the KV cache: they serve runtimes that compute in fp8.
_ACTIVATION_SCALE = re.compile(r"(^|[._])(input_scale|[qkv]_scale|kv_scale)$")


@dataclass(frozen=True)
class Claim:
    """A source, the entry that is it, and its fp8 scale."""

    source: Source
    entry: TensorEntry
    scale: TensorEntry | None = None


def claim(cp: Checkpoint, wanted: Sequence[Source], unwanted: Iterable[Source] = ()) -> list[Claim]:
    """Find every wanted source; `unwanted` ones are known, and may be there or not.

    Raises:
        CheckpointError: a tensor is missing, unknown, or of another shape.
        UnsupportedModelError: a dtype, or a kind of scale, that is not read.
    """
    claimed: set[str] = set()
    claims = []
    missing = [source for source in wanted if source.name not in cp.tensors]
    if missing:
        _refuse_missing(cp, missing)
    for source in wanted:
        entry = cp.tensors[source.name]
        _check_shape(entry, source)
        claimed.add(source.name)
        scale = _scale(cp.tensors, source, entry)
        if scale is not None:
            claimed.add(scale.name)
        claims.append(Claim(source, entry, scale))
    known = [*wanted, *unwanted]
    _refuse_unknown(cp, claimed, known)
    return claims


def _check_shape(entry: TensorEntry, source: Source) -> None:
    if tuple(entry.shape) != source.shape:
        raise CheckpointError(
            f"{entry.file}: tensor {entry.name} has shape {list(entry.shape)}, "
            f"and config.json's values make it {list(source.shape)}",
            hint="config.json and the weights belong to different models, or the file was edited.",
        )
    if entry.dtype not in ITEM_BYTES or (entry.dtype == FP8 and len(source.shape) < 2):
        raise UnsupportedModelError(
            f"{entry.file}: tensor {entry.name} is {entry.dtype}, which is not read for it",
            hint="Weights may be BF16, F16 or F32, and matrices F8_E4M3 with a scale.",
        )


def scale_names(name: str) -> tuple[str, ...]:
    """What the scale of the fp8 tensor `name` may be called."""
    module = name.removesuffix(".weight")
    if module != name:
        return (f"{module}.weight_scale", f"{name}_scale")
    return (f"{name}_scale", f"{name}.weight_scale", f"{name}_weight_scale")


def _scale(tensors: Mapping[str, TensorEntry], source: Source, entry: TensorEntry) -> TensorEntry | None:
    if entry.dtype != FP8:
        return None
    found = [tensors[name] for name in dict.fromkeys(scale_names(entry.name)) if name in tensors]
    if len(found) > 1:
        raise CheckpointError(f"{entry.file}: tensor {entry.name} has two scales, {found[0].name} and {found[1].name}")
    if not found:
        inverse = f"{entry.name}_scale_inv"
        if inverse in tensors:
            raise _block_scales(tensors[inverse])
        raise CheckpointError(
            f"{entry.file}: tensor {entry.name} is F8_E4M3, and its scale {scale_names(entry.name)[0]} is missing",
            hint="Without the scale of the weights (input_scale is that of activations) fp8 numbers mean nothing.",
        )
    scale = found[0]
    if scale.dtype not in _SCALE_DTYPES:
        raise UnsupportedModelError(f"{scale.file}: scale {scale.name} is {scale.dtype}, expected F32, F16 or BF16")
    shape, rows = tuple(scale.shape), source.shape[0]
    if shape in ((), (1,)) or (len(source.shape) == 2 and shape in ((rows,), (rows, 1))):
        return scale
    raise _block_scales(scale)


def _block_scales(scale: TensorEntry) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{scale.file}: scale {scale.name} has shape {list(scale.shape)}: scales of blocks are not read",
        hint="Scales may be one per tensor or one per output row. Start from the unquantized checkpoint.",
    )


def _refuse_missing(cp: Checkpoint, missing: Sequence[Source]) -> None:
    more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
    raise CheckpointError(
        f"{cp.root}: tensor {missing[0].name} {list(missing[0].shape)} is in none of the {len(cp.files)} "
        f"safetensors files{more}",
        hint="config.json asks for it. Is the download complete, and are weights and config.json of one model?",
    )


def _refuse_unknown(cp: Checkpoint, claimed: set[str], known: Sequence[Source]) -> None:
    names = {source.name for source in known}
    unknown = [
        entry
        for entry in cp.tensors.values()
        if entry.name not in claimed and entry.name not in names and not _ACTIVATION_SCALE.search(entry.name)
    ]
    # the scales of known tensors that are not wanted
    unwanted = {scale for name in names - claimed for scale in scale_names(name)}
    unknown = [entry for entry in unknown if entry.name not in unwanted]
    if not unknown:
        return
    entry = unknown[0]
    more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
    raise CheckpointError(
        f"{entry.file}: tensor {entry.name} is not one of Llama 4's{more}",
        hint=f"The nearest that config.json allows for is {nearest(entry.name, names)}. "
        "Leaving tensors out would change the model.",
    )


def nearest(name: str, names: Iterable[str]) -> str:
    """The expected name most like `name`: by the words first, then by the numbers."""

    def words(text: str) -> str:
        return re.sub(r"\d+", "#", text)

    by_words: dict[str, list[str]] = {}
    for candidate in names:
        by_words.setdefault(words(candidate), []).append(candidate)
    best = difflib.get_close_matches(words(name), list(by_words), n=1, cutoff=0.0)
    numbers = [int(number) for number in re.findall(r"\d+", name)]
    return min(
        by_words[best[0]],
        key=lambda candidate: (
            sum(abs(a - int(b)) for a, b in zip(numbers, re.findall(r"\d+", candidate), strict=False)),
            candidate,
        ),
    )
