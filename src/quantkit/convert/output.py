"""The plan of one output: types, fallbacks, layout, sizes."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from quantkit.checkpoint import Checkpoint
from quantkit.convert.finish import finished_fields
from quantkit.convert.importance import Statistics, check_coverage
from quantkit.convert.options import Options
from quantkit.convert.overrides import refuse_idle
from quantkit.convert.plan import Fallback, FileSize, OutputPlan, RuntimeNeed, TensorPlan
from quantkit.convert.request import Wanted
from quantkit.convert.weighting import takes_importance
from quantkit.convert.weighting import weighting as default_weighting
from quantkit.convert.work import OutputWork
from quantkit.errors import PlanRefusedError
from quantkit.gguf import lay_out, tensor_bytes
from quantkit.llama4 import Hyperparameters, Model
from quantkit.recipes import (
    Choice,
    ModelShape,
    active_bytes_per_token,
    bits_per_weight,
    choose,
    kv_cache_bytes,
    tokens_per_second_bound,
)

_UNQUANTIZED = ("f32", "f16", "bf16")


def plan_output(
    source: Checkpoint,
    wanted: Wanted,
    model: Model,
    hp: Hyperparameters,
    options: Options,
    statistics: Statistics | None,
    *,
    reasons: Sequence[str],
) -> tuple[OutputPlan, OutputWork, list[str]]:
    """Plan one output.

    Args:
        reasons: allowed mismatches, for the metadata.

    Returns:
        What is shown, what the walk needs, and the names of tensors that lack importance (allowed).

    Raises:
        PlanRefusedError: the imatrix lacks entries, or GGUF cannot hold what it is given.
    """
    if wanted.kind == "model":
        refuse_idle(wanted.recipe, model.outputs, options)
    choices = _choices(wanted, model, hp, options, has_imatrix=statistics is not None)
    formats = {tensor.name: tensor.keep or choices[tensor.name].type for tensor in model.outputs}
    quantized = [name for name, format in formats.items() if format not in _UNQUANTIZED]
    missing: list[str] = []
    importance = {}
    if statistics is not None:
        missing = check_coverage(statistics, quantized, allow_missing=options.allow_missing_imatrix)
        importance = {
            name: statistics.importance[name]
            for name in quantized
            if name in statistics.importance and takes_importance(formats[name])
        }
    fields = finished_fields(
        source,
        model.metadata,
        wanted,
        statistics=statistics,
        pure=options.pure and wanted.kind == "model",
        overrides=options.overrides() if wanted.kind == "model" else (),
        weighting=options.weighting,
        mismatches=reasons,
    )
    files = lay_out(
        fields,
        [(tensor.name, tensor.shape, formats[tensor.name]) for tensor in model.outputs],
        path=wanted.path,
        split_max_bytes=options.split_max_bytes if wanted.kind == "model" else None,
    )
    tensors = tuple(
        TensorPlan(
            tensor.name,
            tuple(tensor.shape),
            formats[tensor.name],
            tensor_bytes(tensor.shape, formats[tensor.name]),
            "imatrix" if tensor.name in importance else "missing" if tensor.name in missing else "",
        )
        for tensor in model.outputs
    )
    fallbacks = tuple(
        _fallback(choices[tensor.name], tensor)
        for tensor in tensors
        if tensor.name in choices and choices[tensor.name].type != choices[tensor.name].wanted
    )
    n_weights = sum(prod(tensor.shape) for tensor in tensors)
    n_payload = sum(tensor.n_bytes for tensor in tensors)
    n_extra = sum(fallback.extra_bytes for fallback in fallbacks)
    result = OutputPlan(
        kind=wanted.kind,
        recipe=wanted.name,
        path=wanted.path,
        files=tuple(FileSize(file.path, file.n_bytes, len(file.offsets)) for file in files),
        tensors=tensors,
        fallbacks=fallbacks,
        n_bytes=sum(file.n_bytes for file in files),
        tensor_bytes=n_payload,
        n_weights=n_weights,
        bits_per_weight=n_payload * 8 / n_weights,
        nominal_bits_per_weight=(n_payload - n_extra) * 8 / n_weights,
        runtime=_runtime(hp, tensors, options) if wanted.kind == "model" else (),
    )
    weights = {name: options.weighting or default_weighting(format) for name, format in formats.items()}
    work = OutputWork(
        tuple(files), tuple((tensor, formats[tensor.name]) for tensor in model.outputs), importance, weights
    )
    return result, work, missing


def _choices(
    wanted: Wanted, model: Model, hp: Hyperparameters, options: Options, *, has_imatrix: bool
) -> dict[str, Choice]:
    tensors = [(tensor.name, tensor.shape) for tensor in model.outputs]
    shape = ModelShape(hp.n_layers, hp.n_heads, hp.n_kv_heads, hp.n_experts)
    if wanted.kind == "mmproj":
        chosen = choose(wanted.recipe.name, shape, tensors, has_imatrix=False, pure=True)
    else:
        chosen = choose(
            wanted.recipe.name,
            shape,
            tensors,
            has_imatrix=has_imatrix,
            pure=options.pure,
            tensor_types=options.tensor_types,
            token_embedding_type=options.token_embedding_type,
            output_tensor_type=options.output_tensor_type,
        )
    kept = {tensor.name for tensor in model.outputs if tensor.keep}
    return {choice.name: choice for choice in chosen if choice.name not in kept}


def _fallback(choice: Choice, tensor: TensorPlan) -> Fallback:
    extra_bits = bits_per_weight(choice.type) - bits_per_weight(choice.wanted)
    extra_bytes = round(prod(tensor.shape) * extra_bits / 8)
    return Fallback(choice.name, choice.wanted, choice.type, extra_bytes, choice.reason)


def refuse_fallbacks(planned: Sequence[OutputPlan]) -> None:
    """PlanRefusedError when any tensor of any output falls back."""
    found = [(output, fallback) for output in planned for fallback in output.fallbacks]
    if found:
        names = "; ".join(f"{item.tensor}: {item.wanted} -> {item.type}" for _, item in found[:8])
        more = f" and {len(found) - 8} more" if len(found) > 8 else ""
        cost = sum(item.extra_bytes for _, item in found)
        raise PlanRefusedError(
            f"{len(found)} tensors cannot have the type that was asked for ({cost:+,} bytes): {names}{more}",
            hint="Drop --strict to take these types, or choose a recipe with blocks of 32 (q8_0, q5_0, q4_0, iq4_nl).",
        )


def _runtime(hp: Hyperparameters, tensors: Sequence[TensorPlan], options: Options) -> tuple[RuntimeNeed, ...]:
    active = active_bytes_per_token(
        [(tensor.name, tensor.shape, tensor.type) for tensor in tensors], n_experts_used=hp.n_experts_used
    )
    needs = {}
    for asked in options.contexts:
        context = min(asked, hp.context_length)
        cache = kv_cache_bytes(context, n_layers=hp.n_layers, n_kv_heads=hp.n_kv_heads, head_dim=hp.head_dim)
        touched = active + cache
        bound = tokens_per_second_bound(touched, options.bandwidth_gb_s)
        needs[context] = RuntimeNeed(context, sum(tensor.n_bytes for tensor in tensors), cache, touched, bound)
    return tuple(needs.values())
