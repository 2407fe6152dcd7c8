"""`quantkit formats`: what can be written, at what size, and when to choose it."""

from __future__ import annotations

from typing import Any, NamedTuple

import click

from quantkit.cli.help import Command, json_option


class Prose(NamedTuple):
    """What the list of formats in the machine room does not say."""

    scales: str
    use: str


PROSE = {
    "f32": Prose("none", "norms and routers; reference output"),
    "f16": Prose("none", "16-bit where bf16 is slow; weights above 65504 are refused"),
    "bf16": Prose("none", "same values as the checkpoint; input of other quantizers"),
    "q8_0": Prose("f16 d per 32", "no visible loss; half of bf16"),
    "q6_k": Prose("f16 d per 256, 8-bit scale per 16", "close to lossless; output and embeddings"),
    "q5_k": Prose("f16 d and min per 256, 6-bit scale and min per 32", "little loss at two thirds of q8_0"),
    "q5_1": Prose("f16 d and min per 32", "rows that 256 does not divide"),
    "q5_0": Prose("f16 d per 32", "fallback of q4_k for rows that 256 does not divide"),
    "q4_k": Prose("f16 d and min per 256, 6-bit scale and min per 32", "the usual choice"),
    "q4_1": Prose("f16 d and min per 32", "older runtimes"),
    "q4_0": Prose("f16 d per 32", "fastest in some runtimes; a little worse than q4_k"),
    "iq4_nl": Prose("f16 d per 32, uneven levels", "4-bit for rows that 256 does not divide; wants an imatrix"),
    "iq4_xs": Prose(
        "f16 d per 256, 6-bit scale per 32, uneven levels", "smaller than q4_k, nearly as good; wants an imatrix"
    ),
    "mxfp4": Prose("power of two per 32, e2m1 codes", "experts on hardware with native MXFP4"),
    "q3_k": Prose("f16 d per 256, 6-bit scale per 16", "when 4 bits do not fit; wants an imatrix"),
    "q2_k": Prose("f16 d and min per 256, 4-bit scale and min per 16", "last resort; visible loss; wants an imatrix"),
}


def report() -> dict[str, Any]:
    """All formats, widest first, and all recipes, as JSON-ready values."""
    from quantkit.kernels import FORMATS
    from quantkit.recipes import RECIPES

    formats = [
        {
            "name": name,
            "ggml_type": int(form.ggml_type),
            "block_size": int(form.block_size),
            "block_bytes": int(form.block_bytes),
            "bits_per_weight": form.block_bytes * 8 / form.block_size,
            "scales": PROSE[name].scales,
            "use": PROSE[name].use,
        }
        for name, form in sorted(FORMATS.items(), key=lambda item: -item[1].block_bytes / item[1].block_size)
    ]
    recipes = [
        {
            "name": name,
            "file_type": int(recipe.ftype),
            "default_type": recipe.default_type,
            "description": recipe.description,
        }
        for name, recipe in RECIPES.items()
    ]
    return {"schema": 1, "formats": formats, "recipes": recipes}


@click.command(
    cls=Command,
    examples=("quantkit formats", "quantkit formats --json | jq '.formats[] | [.name, .bits_per_weight]'"),
)
@json_option
def command(as_json: bool) -> None:
    """List the formats of tensors and the recipes that choose among them.

    A format is how one tensor is stored; a recipe, given to --type, picks a format for every tensor of the model,
    the same as llama-quantize's type of that name.
    """
    from quantkit.cli import output

    content = report()
    if as_json:
        output.show_json(content)
        return
    output.table(
        ("format", "bpw", "block", "bytes", "scales", "when to use"),
        [
            (
                row["name"],
                f"{row['bits_per_weight']:.4g}",
                row["block_size"],
                row["block_bytes"],
                row["scales"],
                row["use"],
            )
            for row in content["formats"]
        ],
        title="Formats (of one tensor)",
        right=("bpw", "block", "bytes"),
    )
    output.table(
        ("recipe", "mostly", "what it is"),
        [(row["name"], row["default_type"], row["description"]) for row in content["recipes"]],
        title="Recipes (--type, of a whole model)",
    )
