"""The `quantization_config` of a checkpoint: plain fp8 is read, everything else is refused by name."""

from __future__ import annotations

from quantkit.checkpoint import Checkpoint
from quantkit.errors import UnsupportedModelError
from quantkit.llama4.section import Section

_HINT = "Start from the unquantized checkpoint, or from one with fp8 weights and one scale per tensor or output row."


def refuse_quantization(cp: Checkpoint) -> None:
    """Raise UnsupportedModelError unless weights are plain, or fp8 with a scale per tensor or row."""
    config = Section(cp.root / "config.json", cp.config)
    text = config.section("text_config")
    section = config.section("quantization_config") or (text.section("quantization_config") if text else None)
    if section is None:
        return
    method = section.string("quant_method", default="none named").lower()
    if method == "compressed-tensors":
        _compressed_tensors(section)
    elif method == "modelopt":
        algorithm = section.string("quant_algo", default="none named")
        if algorithm.upper() != "FP8":
            raise _refused(section, f"modelopt's {algorithm}")
    elif method in ("fp8", "fbgemm_fp8"):
        if "weight_block_size" in section:
            raise _refused(section, f"{method} with scales of blocks")
    else:
        raise _refused(section, method)


def _compressed_tensors(section: Section) -> None:
    kind = section.string("format", default="float-quantized")
    if kind not in ("float-quantized", "naive-quantized", "dense"):
        raise _refused(section, f"compressed-tensors' {kind}")
    groups = section.section("config_groups")
    for name in groups.values if groups else ():
        group = groups.section(name) if groups else None
        weights = group.section("weights") if group else None
        if weights is None:
            continue
        bits, number = weights.integer("num_bits", default=8), weights.string("type", default="float")
        strategy = weights.string("strategy", default="channel")
        if bits != 8 or number != "float":
            raise _refused(section, f"compressed-tensors' {bits}-bit {number}")
        if strategy not in ("tensor", "channel"):
            raise _refused(section, f"compressed-tensors' fp8 with a scale per {strategy}")


def _refused(section: Section, what: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{section.file}: {section.path} says that the weights are quantized by {what}, which is not read", hint=_HINT
    )
