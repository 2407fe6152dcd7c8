"""The options that `plan` and `convert` share: one command line can be planned first and converted next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from quantkit.cli.help import Option
from quantkit.cli.units import ByteSize
from quantkit.errors import UsageError

WHAT = "What to write"
CODES = "Types and codes of single tensors"
CHECKS = "Checks"

Callback = TypeVar("Callback", bound=Callable[..., Any])


class RecipeName(click.ParamType[str]):
    """A recipe by name, upper or lower case. The list comes from the recipes room when it is needed, not before."""

    name = "recipe"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from quantkit.recipes import find_recipe

        return find_recipe(str(value)).name

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from quantkit.recipes import RECIPES

        return [CompletionItem(name) for name in RECIPES if name.startswith(incomplete.lower())]


class FormatName(click.ParamType[str]):
    """A format of one tensor by name, upper or lower case."""

    name = "format"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from quantkit.recipes import parse_type

        return parse_type(str(value))

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from quantkit.recipes import TYPES

        return [CompletionItem(name) for name in TYPES if name.startswith(incomplete.lower())]


class TensorType(click.ParamType[tuple[str, str]]):
    """`REGEX=TYPE` -> (regex, type). The last = divides, since a regex may hold one."""

    name = "regex=type"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        regex, equals, name = str(value).rpartition("=")
        if not equals or not regex:
            self.fail(f"{value!r} is not REGEX=TYPE, such as ffn_down_exps=q6_k.", param, ctx)
        return regex, FormatName().convert(name, param, ctx)


_SHARED: tuple[Callable[[Callback], Callback], ...] = (
    click.option(
        "--type",
        "types",
        cls=Option,
        group=WHAT,
        type=RecipeName(),
        multiple=True,
        metavar="RECIPE",
        help="Recipe, such as q4_k_m, q8_0 or bf16; `quantkit formats` lists all. Several --type share one read of "
        "the checkpoint, and OUT then holds {type}.",
    ),
    click.option(
        "--mmproj",
        cls=Option,
        group=WHAT,
        type=click.Path(dir_okay=False),
        metavar="OUT",
        help="Write the vision tower and projector to this GGUF as well.",
    ),
    click.option("--mmproj-only", is_flag=True, cls=Option, group=WHAT, help="Write nothing but the mmproj."),
    click.option(
        "--mmproj-type",
        cls=Option,
        group=WHAT,
        type=FormatName(),
        default="f16",
        metavar="FORMAT",
        help="Format of the mmproj's matrices.",
    ),
    click.option(
        "--imatrix",
        cls=Option,
        group=WHAT,
        type=click.Path(dir_okay=False),
        metavar="FILE",
        help="Importance per input column and expert, as llama-imatrix writes it (GGUF or .dat). Experts that saw few "
        "tokens lean on the layer's pooled statistics (`quantkit imatrix export --help`).",
    ),
    click.option(
        "--split-max-size",
        cls=Option,
        group=WHAT,
        type=ByteSize(),
        metavar="SIZE",
        help="Split the GGUF into files of at most this size, such as 50G.",
    ),
    click.option(
        "--pure",
        is_flag=True,
        cls=Option,
        group=CODES,
        help="Give every matrix the recipe's main format, with no better format for those that are sensitive.",
    ),
    click.option(
        "--tensor-type",
        "tensor_types",
        cls=Option,
        group=CODES,
        type=TensorType(),
        multiple=True,
        metavar="REGEX=TYPE",
        help="Format for tensors whose GGUF name matches; the first match wins. Repeatable.",
    ),
    click.option(
        "--token-embedding-type",
        cls=Option,
        group=CODES,
        type=FormatName(),
        metavar="FORMAT",
        help="Format of token_embd.weight.",
    ),
    click.option(
        "--output-tensor-type",
        cls=Option,
        group=CODES,
        type=FormatName(),
        metavar="FORMAT",
        help="Format of output.weight.",
    ),
    click.option(
        "--weighting",
        cls=Option,
        group=CODES,
        type=click.Choice(["plain", "magnitude", "unbiased"]),
        show_default="what was measured to be best",
        help="What the encoder minimises: the error under the importance as it is (plain), the same without shrinking "
        "the blocks (unbiased), or under importance times the weights' magnitude as in llama-quantize.",
    ),
    click.option(
        "--strict",
        is_flag=True,
        cls=Option,
        group=CHECKS,
        help="Refuse if any tensor falls back to another format than its recipe's.",
    ),
    click.option(
        "--allow-mismatch",
        is_flag=True,
        cls=Option,
        group=CHECKS,
        help="Convert a checkpoint whose constants differ from those that llama.cpp has built in, with a warning.",
    ),
    click.option(
        "--allow-missing-imatrix",
        is_flag=True,
        cls=Option,
        group=CHECKS,
        help="Quantize tensors that the imatrix does not cover without it.",
    ),
    click.option(
        "--force", is_flag=True, cls=Option, group=CHECKS, help="Overwrite existing output. Does nothing else."
    ),
    click.option(
        "--threads",
        cls=Option,
        type=click.IntRange(min=0),
        default=0,
        metavar="N",
        help="Threads that quantize, at most four per processor; 0 is one per processor.",
    ),
)


checkpoint_argument = click.argument(
    "checkpoint",
    type=click.Path(),
    help="Folder with config.json, tokenizer files and safetensors, as on Hugging Face.",
)
out_argument = click.argument(
    "out",
    type=click.Path(),
    required=False,
    help="GGUF file to write; with several --type, a name with {type} in it. Not needed with --mmproj-only.",
)


def conversion_options(command: Callback) -> Callback:
    """Give a command the options that say what is converted, and how."""
    for option in reversed(_SHARED):
        command = option(command)
    return command


def settle_outputs(
    out: str | None, types: Sequence[str], mmproj: str | None, *, mmproj_only: bool, out_required: bool
) -> tuple[str | None, str | None]:
    """Return (out, mmproj) as the corridor wants them.

    With --mmproj-only OUT may be left away, or name the mmproj. Otherwise a recipe is needed, and for `convert` OUT.

    Raises:
        UsageError: the arguments do not say what to write.
    """
    if mmproj_only:
        if mmproj is None and out is None and out_required:
            raise UsageError("--mmproj-only needs a file to write", hint="Add --mmproj OUT.gguf.")
        return None, mmproj or out
    if not types:
        raise UsageError("--type is missing", hint="Add for instance --type q4_k_m; `quantkit formats` lists all.")
    if out is None and out_required:
        raise UsageError("OUT is missing", hint="Say which file to write, for instance model-q4_k_m.gguf.")
    return out, mmproj
