"""`quantkit plan`: all that `convert` does up to the first payload byte, as tables."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from quantkit.cli.help import Command, Option, json_option
from quantkit.cli.options import checkpoint_argument, conversion_options, out_argument, settle_outputs
from quantkit.cli.units import Bandwidth, TokenCount, bytes_text, count_text

if TYPE_CHECKING:
    from quantkit.convert import Fallback, OutputPlan, Plan

RUN = "What it takes to run"


@click.command(
    cls=Command,
    examples=(
        "quantkit plan Llama-4-Scout-17B-16E-Instruct --type q4_k_m",
        "quantkit plan Llama-4-Scout-17B-16E-Instruct --type q4_k_m --type iq4_xs --context 32k --bandwidth 400",
        "quantkit plan Llama-4-Scout-17B-16E-Instruct --type q4_k_m --json | jq '.outputs[0].bits_per_weight'",
    ),
)
@checkpoint_argument
@out_argument
@conversion_options
@click.option(
    "--context",
    "contexts",
    cls=Option,
    group=RUN,
    type=TokenCount(),
    multiple=True,
    show_default="8k 32k 128k",  # those of quantkit.plan, which --help does not load
    metavar="TOKENS",
    help="Context length to state the memory for. Repeatable; longer ones than the model's are cut to it.",
)
@click.option(
    "--bandwidth",
    cls=Option,
    group=RUN,
    type=Bandwidth(),
    default=100.0,
    metavar="GB/s",
    help="Memory bandwidth of the machine that will run the model.",
)
@json_option
def command(checkpoint: str, out: str | None, bandwidth: float, as_json: bool, **options: Any) -> None:
    """Show what converting CHECKPOINT would write and need, from headers alone.

    Takes the arguments of `quantkit convert`. Prints tensors, bytes and bits per weight by type, fallbacks, peak
    memory and disk, and what it takes to run the result: weights and KV cache, bytes read per token, and the tokens
    per second that a memory bandwidth allows at most. Exits with the code with which `convert` would refuse; without
    OUT, disk space is stated for the current folder and refuses nothing.
    """
    from quantkit.cli import output
    from quantkit.convert import plan

    types = options.pop("types")
    out, options["mmproj"] = settle_outputs(
        out, types, options["mmproj"], mmproj_only=options["mmproj_only"], out_required=False
    )
    if not options["contexts"]:
        del options["contexts"]
    result = plan(checkpoint, out, list(types), bandwidth_gb_s=bandwidth, **options)
    if as_json:
        output.show_json(result.to_json())
        return
    show(result, bandwidth)


def show(plan: Plan, bandwidth_gb_s: float) -> None:
    """Print a plan as tables."""
    from quantkit.cli import output

    for planned in plan.outputs:
        _show_output(planned, bandwidth_gb_s)
    memory = bytes_text(plan.peak_ram_bytes)
    if plan.available_ram_bytes is not None:
        memory += f" of {bytes_text(plan.available_ram_bytes)} available"
    rows: list[tuple[str, object]] = [
        ("checkpoint", plan.checkpoint),
        ("read", f"{bytes_text(plan.source_bytes)}, once, in {plan.n_slabs} slabs"),
        ("peak RAM", memory),
    ]
    for need in plan.disk:
        text = f"{bytes_text(need.needed_bytes)} needed, {bytes_text(need.free_bytes)} free"
        if need.already_bytes:
            text += f", {bytes_text(need.already_bytes)} there already"
        rows.append((f"disk {need.folder}", text))
    if plan.imatrix:
        rows.append(("imatrix", plan.imatrix))
    output.facts(rows, title="To convert")
    for sentence in (*plan.warnings, *plan.allowed_mismatches):
        output.note(sentence, warning=True)


def _show_output(planned: OutputPlan, bandwidth_gb_s: float) -> None:
    from quantkit.cli import output

    rows = [
        (name, count, f"{weights:,}", bytes_text(n_bytes), f"{n_bytes * 8 / weights:.3f}")
        for name, (count, weights, n_bytes) in planned.by_type().items()
    ]
    total = (bytes_text(planned.tensor_bytes), f"{planned.bits_per_weight:.3f}")
    rows.append(("all", len(planned.tensors), f"{planned.n_weights:,}", *total))
    files = f"{planned.files[0].path}, {bytes_text(planned.n_bytes)}"
    if len(planned.files) > 1:
        files += f" in {len(planned.files)} files"
    output.table(
        ("type", "tensors", "weights", "bytes", "bpw"),
        rows,
        title=f"{planned.recipe} → {files}" if planned.kind == "model" else f"mmproj {planned.recipe} → {files}",
        right=("tensors", "weights", "bytes", "bpw"),
    )
    show_fallbacks(planned.fallbacks, planned.nominal_bits_per_weight, planned.bits_per_weight)
    if planned.runtime:
        output.table(
            ("context", "weights", "KV cache", "memory", "read per token", "tokens/s at most"),
            [
                (
                    count_text(need.context),
                    bytes_text(need.weight_bytes),
                    bytes_text(need.kv_cache_bytes),
                    bytes_text(need.weight_bytes + need.kv_cache_bytes),
                    bytes_text(need.bytes_per_token),
                    f"{need.tokens_per_second_bound:.1f}",
                )
                for need in planned.runtime
            ],
            title=f"To run {planned.recipe}, at {bandwidth_gb_s:g} GB/s of memory bandwidth",
            right=("context", "weights", "KV cache", "memory", "read per token", "tokens/s at most"),
        )


def show_fallbacks(fallbacks: Sequence[Fallback], nominal_bits: float, actual_bits: float) -> None:
    """Print the tensors that could not have the format of their recipe and what that costs, like layers in one row."""
    from quantkit.cli import output

    if not fallbacks:
        return
    alike: dict[tuple[str, str, str, str], list[int]] = {}
    for fallback in fallbacks:
        pattern = re.sub(r"\.\d+\.", ".N.", fallback.tensor)
        alike.setdefault((pattern, fallback.wanted, fallback.type, fallback.reason), []).append(fallback.extra_bytes)
    output.table(
        ("tensor", "tensors", "wanted", "got", "extra", "why"),
        [
            (pattern, len(costs), wanted, got, f"{sum(costs):+,}", reason)
            for (pattern, wanted, got, reason), costs in alike.items()
        ],
        title=f"Fallbacks: {len(fallbacks)} tensors, {sum(map(sum, alike.values())):+,} bytes, "
        f"{nominal_bits:.3f} → {actual_bits:.3f} bpw",
        right=("tensors", "extra"),
    )
