"""`quantkit convert`: from a checkpoint to GGUF files."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import click

from quantkit.cli.calibrate import announce
from quantkit.cli.calibration import calibration_options
from quantkit.cli.help import Command, json_option
from quantkit.cli.options import checkpoint_argument, conversion_options, out_argument, settle_outputs
from quantkit.cli.plan import show_fallbacks
from quantkit.cli.units import bytes_text, seconds_text
from quantkit.errors import UsageError

if TYPE_CHECKING:
    from quantkit.convert import ConvertResult


@click.command(
    cls=Command,
    examples=(
        "quantkit convert Llama-4-Scout-17B-16E-Instruct scout-q4_k_m.gguf --type q4_k_m",
        "quantkit convert Llama-4-Scout-17B-16E-Instruct scout-{type}.gguf --type q4_k_m --type iq4_xs "
        "--imatrix scout.imatrix",
        "quantkit convert Llama-4-Scout-17B-16E-Instruct scout-iq4_xs.gguf --type iq4_xs --calibrate --text prose.txt",
        "quantkit convert Llama-4-Scout-17B-16E-Instruct scout-q8_0.gguf --type q8_0 --mmproj mmproj-scout.gguf",
        "quantkit convert Llama-4-Maverick-17B-128E-Instruct maverick.gguf --type q4_k_m --split-max-size 50G",
    ),
)
@checkpoint_argument
@out_argument
@conversion_options
@calibration_options
@json_option
def command(
    checkpoint: str,
    out: str | None,
    as_json: bool,
    calibrates: bool,
    text: tuple[str, ...],
    tokens: int | None,
    **options: Any,
) -> None:
    """Convert CHECKPOINT, a Hugging Face folder of a Llama 4 model, to the quantized GGUF file OUT.

    Reads each byte of the checkpoint once and needs about half a gigabyte of memory, whatever the size of the model.
    Everything that can fail is checked before anything is written. OUT appears under its name only when it is whole;
    when the command is interrupted or killed, the same command goes on from where it stopped.
    """
    from quantkit.cli import output
    from quantkit.convert import convert

    types = options.pop("types")
    out, options["mmproj"] = settle_outputs(
        out, types, options["mmproj"], mmproj_only=options["mmproj_only"], out_required=True
    )
    if not calibrates and (text or tokens is not None):
        raise UsageError("--text and --tokens are for --calibrate", hint="Add --calibrate, or leave them away.")
    with output.progress() as report:
        if calibrates:
            options["calibrate"] = {"text": text or None, "tokens": tokens, "announce": announce, "progress": report}
        result = convert(checkpoint, out, list(types), progress=report, **options)
    if result.statistics is not None:
        output.note(f"statistics are in {result.statistics}; `quantkit imatrix show` tells which experts they cover")
    if as_json:
        output.show_json(result.to_json())
        return
    show(result)


def show(result: ConvertResult) -> None:
    """Print what was written, what it cost, and what to do next."""
    from quantkit.cli import output

    for sentence in result.warnings:
        output.note(sentence, warning=True)
    for written in result.outputs:
        bits = f"{written.bits_per_weight:.3f} bits per weight"
        if written.fallbacks:
            bits += f" ({written.nominal_bits_per_weight:.3f} without its {len(written.fallbacks)} fallbacks)"
        label = written.recipe if written.kind == "model" else f"mmproj {written.recipe}"
        for number, path in enumerate(written.files):
            output.line(f"{label if number == 0 else '':<12} {path}")
        output.line(f"{'':<12} {bytes_text(written.n_bytes)}, {bits}")
        show_fallbacks(written.fallbacks, written.nominal_bits_per_weight, written.bits_per_weight)
    resumed = f", {result.resumed_slabs} of {result.n_slabs} slabs taken over" if result.resumed_slabs else ""
    output.line(
        f"read {bytes_text(result.read_bytes)} in {seconds_text(result.seconds)}{resumed}; "
        f"peak memory {bytes_text(result.peak_rss_bytes)}"
    )
    for step in next_steps(result):
        output.line(f"next: {step}")


def next_steps(result: ConvertResult) -> list[str]:
    """Command lines that run each written model; a split model is given by its first file."""
    mmproj = next((shlex.quote(str(written.files[0])) for written in result.outputs if written.kind == "mmproj"), None)
    steps = []
    for written in result.outputs:
        if written.kind == "model":
            model = shlex.quote(str(written.files[0]))
            steps.append(f"llama-cli -m {model}")
            if mmproj:
                steps.append(f"llama-mtmd-cli -m {model} --mmproj {mmproj} --image FILE -p PROMPT")
    return steps
