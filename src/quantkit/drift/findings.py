"""What is wrong with a candidate, in words: faults that no type explains, named by tensor and expert."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from quantkit.drift.expectation import expected_error, largest_error
from quantkit.kernels import FORMATS

if TYPE_CHECKING:
    from quantkit.drift.result import Candidate, TensorDrift, WeightError

Kind = Literal["order", "scale", "zero", "error", "router", "routing", "keys"]
Piece = tuple[str, int | None]  # a tensor's name and, of experts, which

ROUTER = "ffn_gate_inp.weight"
_FLOATS = ("f32", "f16", "bf16")
_FAULT = 3.0  # times the error that a type has: beyond it a file is broken, below it badly made
_MOVED = 0.15  # share of tokens that went to other experts
_STARVED = 0.02  # share of tokens of an expert that has none left
_LITTLE = 1e-3  # relative error that is none
_AGAIN = "Make the file again from the checkpoint, and compare it once more."


@dataclass(frozen=True)
class Finding:
    """Something about a file that its types do not explain.

    Args:
        severity: "fault": the file should not be used; "warning": look at it.
        kind: "order" of weights (permuted, transposed, of another tensor or expert), "scale" (all weights too large or
            too small), "zero", "error" (far more than the type has), "router" (not what it was), "routing" (tokens
            go elsewhere), "keys" (hidden states differ though weights do not).
        tensor: GGUF's name; None if it is not about one.
        layer: None outside the layers.
        experts: at fault; empty where a tensor has none, or where all are.
        statement: what is wrong, with the numbers that show it.
        advice: the next step.
    """

    severity: Literal["fault", "warning"]
    kind: Kind
    tensor: str | None
    layer: int | None
    experts: tuple[int, ...]
    statement: str
    advice: str


def suspects(tensor: TensorDrift) -> Iterator[int | None]:
    """Experts, or None for a whole matrix, whose weights are not what they should be and not those times a number."""
    for expert, error in _pieces(tensor):
        if _kind(tensor, error) == "error":
            yield expert


def findings(candidate: Candidate, causes: Mapping[Piece, str] | None = None) -> tuple[Finding, ...]:
    """Of one file, faults first.

    Args:
        causes: what `diagnose` found about suspects.
    """
    found = [
        one for tensor in candidate.tensors for one in (*_router(candidate, tensor), *_weights(tensor, causes or {}))
    ]
    found += [*_routing(candidate), *_keys(candidate)]
    return tuple(sorted(found, key=lambda one: one.severity != "fault"))


def is_router(name: str) -> bool:
    return name.endswith(ROUTER)


def is_lost(error: WeightError) -> bool:
    """The weights have nothing to do with the reference's."""
    return abs(error.cosine) < 0.5 and error.relative_error > 0.9


def _pieces(tensor: TensorDrift) -> Iterator[tuple[int | None, WeightError]]:
    if tensor.experts:
        yield from enumerate(tensor.experts)
    else:
        yield None, tensor.error


def _kind(tensor: TensorDrift, error: WeightError) -> Kind | None:
    limit = largest_error(tensor.type, 8 * tensor.bytes / math.prod(tensor.shape))
    if error.rounded_to_zero > 0.999 and error.relative_error > limit:
        return "zero"
    expected = expected_error(tensor.type)
    shrinking = (limit if expected is None else 1.5 * expected) ** 2  # least squares leaves weights so much shorter
    if math.isfinite(error.gain) and abs(error.gain - 1) > max(0.1, shrinking) and _is_parallel(error, limit):
        return "scale"
    return "error" if error.relative_error > limit else None


def _is_parallel(error: WeightError, limit: float) -> bool:
    """All of the error is in the length, but for what the type explains."""
    return abs(error.cosine) >= math.sqrt(max(0.0, 1 - limit * limit))


def _weights(tensor: TensorDrift, causes: Mapping[Piece, str]) -> Iterator[Finding]:
    """Of all pieces with the same fault, one finding."""
    if is_router(tensor.name):
        return
    groups: dict[tuple[Kind, str], list[tuple[int | None, WeightError]]] = {}
    for expert, error in _pieces(tensor):
        kind = _kind(tensor, error)
        if kind is not None:
            cause = causes.get((tensor.name, expert), "") if kind == "error" else ""
            groups.setdefault((kind, cause), []).append((expert, error))
    for (kind, cause), members in groups.items():
        yield _finding(tensor, kind, cause, members)


def _finding(tensor: TensorDrift, kind: Kind, cause: str, members: list[tuple[int | None, WeightError]]) -> Finding:
    experts = tuple(expert for expert, _ in members if expert is not None)
    what = tensor.name + _experts_text(experts, len(tensor.experts))
    worst = max((error for _, error in members), key=lambda error: error.relative_error)
    expected = expected_error(tensor.type)
    severity: Literal["fault", "warning"] = "fault"
    advice = _AGAIN
    usual = "" if expected is None else f", where {tensor.type} has about {expected:.2g}"
    if kind == "zero":
        statement = f"{what}: every weight is zero"
        advice = "A part of the file was never written, or was lost in a copy: make or fetch it again."
    elif kind == "scale":
        low, high = (pick(error.gain for _, error in members) for pick in (min, max))
        times = f"{low:.3g}" if f"{low:.3g}" == f"{high:.3g}" else f"{low:.3g} to {high:.3g}"
        statement = f"{what}: weights are {times} times the reference's, and else the same: scales are off"
        advice = f"Look for a scale that is applied twice, or not at all. {_AGAIN}"
    elif cause:
        kind = "order"
        statement = f"{what}: {cause} (cosine {worst.cosine:.2f}, relative error {worst.relative_error:.2g}{usual})"
    elif is_lost(worst):
        kind = "order"
        statement = (
            f"{what}: weights have nothing to do with the reference's (cosine {worst.cosine:.2f}): permuted in a way "
            "that was not recognized, or of another tensor or model"
        )
    else:
        ratio = worst.relative_error / expected if expected else math.inf
        severity = "fault" if ratio > _FAULT else "warning"
        statement = f"{what}: relative error {worst.relative_error:.2g}{usual}"
        if worst.rounded_to_zero > 0.1 and ratio > _FAULT:
            statement += f"; {100 * worst.rounded_to_zero:.0f} % of the weights are zero"
        like = _like(tensor.type, worst)
        if like:
            statement += f"; that is what {like} has"
            advice = f"Make the file from the checkpoint: this one seems to come from a file of {like}."
    return Finding(severity, kind, tensor.name, tensor.layer, _some(experts, tensor), statement + ".", advice)


def _some(experts: tuple[int, ...], tensor: TensorDrift) -> tuple[int, ...]:
    return experts if len(experts) < len(tensor.experts) else ()


def _experts_text(experts: tuple[int, ...], n_experts: int) -> str:
    if not experts:
        return ""
    if len(experts) == n_experts:
        return f", all {n_experts} experts"
    if len(experts) == 1:
        return f", expert {experts[0]}"
    return f", experts {', '.join(map(str, experts))}"


def _like(type: str, error: WeightError) -> str:
    """Another type with just this error."""
    for name in FORMATS:
        expected = expected_error(name)
        if name not in (type, *_FLOATS) and expected and 0.93 < error.relative_error / expected < 1.07:
            return name
    return ""


def _router(candidate: Candidate, tensor: TensorDrift) -> Iterator[Finding]:
    limit = largest_error(tensor.type, 8 * tensor.bytes / math.prod(tensor.shape))
    if not is_router(tensor.name) or (tensor.type in _FLOATS and tensor.error.relative_error <= limit):
        return
    error = tensor.error.relative_error
    how = f"is quantized to {tensor.type}" if tensor.type not in _FLOATS else "is not the reference's"
    statement = f"{tensor.name}: the router of layer {tensor.layer} {how} (relative error {error:.2g})"
    routing = candidate.routing
    if routing is not None and tensor.layer in routing.layers:
        flipped = 1 - routing.agreement_local[routing.layers.index(tensor.layer)]
        statement += f"; that alone sends {100 * flipped:.2f} % of tokens to another expert"
    advice = "Keep ffn_gate_inp in f32, as quantkit convert and llama-quantize do: it is small, and decides everything."
    yield Finding("fault", "router", tensor.name, tensor.layer, (), statement + ".", advice)


def _routing(candidate: Candidate) -> Iterator[Finding]:
    routing = candidate.routing
    if routing is None:
        return
    for at, layer in enumerate(routing.layers):
        pairs = zip(routing.load_reference[at], routing.load[at], strict=True)
        starved = tuple(expert for expert, (before, now) in enumerate(pairs) if now == 0 and before > _STARVED)
        advice = "Look at the first layer whose own error stands out: what changes there is inherited here."
        if starved:
            statement = f"Layer {layer}{_experts_text(starved, 0)}: no token goes there any more."
            yield Finding("warning", "routing", None, layer, starved, statement, advice)
        elif routing.load_shift[at] > _MOVED:
            statement = (
                f"Layer {layer}: the load of experts has shifted by {100 * routing.load_shift[at]:.0f} % of tokens."
            )
            yield Finding("warning", "routing", None, layer, (), statement, advice)


def _keys(candidate: Candidate) -> Iterator[Finding]:
    """Hidden states that change though the weights are the same."""
    errors: dict[int, float] = {}
    for tensor in candidate.tensors:
        if tensor.layer is not None:
            errors[tensor.layer] = max(errors.get(tensor.layer, 0.0), tensor.error.relative_error)
    for layer in candidate.layers:
        if layer.local is None or layer.layer not in errors:
            continue
        if errors[layer.layer] < _LITTLE and layer.local.relative_error > 10 * _LITTLE:
            yield Finding(
                "fault",
                "keys",
                None,
                layer.layer,
                (),
                f"Layer {layer.layer}: hidden states are off by {100 * layer.local.relative_error:.2f} % though the "
                "weights are the reference's.",
                "Compare the files' keys (quantkit inspect): RoPE's base and scaling, the norm's epsilon, the "
                "temperature of attention.",
            )
