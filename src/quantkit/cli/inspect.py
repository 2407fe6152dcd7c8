"""`quantkit inspect`: what a GGUF says about itself."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from quantkit.cli.help import Command, Option, json_option
from quantkit.cli.units import bytes_text

if TYPE_CHECKING:
    from quantkit.gguf import Field, GgufFile

FIRST_ITEMS = 8  # of an array, unless --full
FIRST_CHARACTERS = 80  # of a text in the table, unless --full


@click.command(
    cls=Command,
    examples=(
        "quantkit inspect scout-q4_k_m.gguf",
        "quantkit inspect maverick-00001-of-00005.gguf --json | jq '.types'",
        "quantkit inspect scout-q4_k_m.gguf --json --full | jq '.keys.\"tokenizer.ggml.tokens\".value'",
    ),
)
@click.argument("file", type=click.Path(), help="A GGUF, or any of its splits: all of them are read together.")
@click.option(
    "--full", is_flag=True, cls=Option, group="What to show", help="Show arrays and texts in full, not their beginning."
)
@json_option
def command(file: str, full: bool, as_json: bool) -> None:
    """Show keys, types, bits per weight and tensors of the GGUF FILE, from its headers.

    Any GGUF can be inspected, whoever wrote it. A file that is cut off or malformed is refused with the byte offset.
    """
    from quantkit.cli import output
    from quantkit.gguf import open_gguf

    content = report(open_gguf(file), full=full)
    if as_json:
        output.show_json(content)
        return
    show(content, full=full)


def report(gguf: GgufFile, *, full: bool) -> dict[str, Any]:
    """The headers as JSON-ready values; arrays hold their first items unless `full`."""
    weights, sizes, tensors = Counter[str](), Counter[str](), Counter[str]()
    for tensor in gguf.tensors:
        weights[tensor.type] += math.prod(tensor.shape)
        sizes[tensor.type] += tensor.n_bytes
        tensors[tensor.type] += 1
    return {
        "schema": 1,
        "files": [str(path) for path in gguf.files],
        "n_bytes": gguf.n_bytes,
        "n_weights": weights.total(),
        "tensor_bytes": sizes.total(),
        "bits_per_weight": sizes.total() * 8 / weights.total() if weights.total() else None,
        "types": {
            name: {
                "tensors": tensors[name],
                "weights": weights[name],
                "bytes": n_bytes,
                "bits_per_weight": n_bytes * 8 / weights[name],
            }
            for name, n_bytes in sizes.most_common()
        },
        "keys": {key: _value(field, full=full) for key, field in gguf.fields.items()},
        "tensors": [
            {
                "name": tensor.name,
                "type": tensor.type,
                "shape": list(tensor.shape),
                "n_bytes": tensor.n_bytes,
                "offset_bytes": tensor.offset_bytes,
                "file": tensor.file.name,
            }
            for tensor in gguf.tensors
        ],
    }


def _value(field: Field, *, full: bool) -> dict[str, Any]:
    kind = field.type.name.lower()
    if field.sub_type is None:
        return {"type": kind, "value": _plain(field.value)}
    items = field.value if full else field.value[:FIRST_ITEMS]
    return {
        "type": kind,
        "item_type": field.sub_type.name.lower(),
        "count": len(field.value),
        "value": [_plain(item) for item in items],
    }


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become text."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _number_text(value: Any) -> str:
    """Seven digits are all that a float32 holds; the rest would be noise of its conversion."""
    return f"{value:.7g}" if isinstance(value, float) else str(value)


def show(content: dict[str, Any], *, full: bool) -> None:
    """Print a report as tables."""
    from quantkit.cli import output

    bits = content["bits_per_weight"]
    output.facts(
        [
            ("file" if len(content["files"]) == 1 else "files", "\n".join(content["files"])),
            ("size", f"{bytes_text(content['n_bytes'])} ({content['n_bytes']:,} bytes)"),
            ("weights", f"{content['n_weights']:,}" + (f", {bits:.3f} bits each" if bits else "")),
            ("keys", len(content["keys"])),
            ("tensors", len(content["tensors"])),
        ]
    )
    output.table(
        ("key", "type", "value"),
        [(key, _type_text(entry), _value_text(entry, full=full)) for key, entry in content["keys"].items()],
        title="Keys",
    )
    output.table(
        ("type", "tensors", "weights", "bytes", "bpw"),
        [
            (name, row["tensors"], f"{row['weights']:,}", bytes_text(row["bytes"]), f"{row['bits_per_weight']:.3f}")
            for name, row in content["types"].items()
        ],
        title="Types",
        right=("tensors", "weights", "bytes", "bpw"),
    )
    output.table(
        ("tensor", "type", "shape", "bytes", "offset"),
        [
            (
                tensor["name"],
                tensor["type"],
                " × ".join(map(str, tensor["shape"])),
                f"{tensor['n_bytes']:,}",
                f"{tensor['offset_bytes']:,}",
            )
            for tensor in content["tensors"]
        ],
        title="Tensors",
        right=("bytes", "offset"),
    )


def _type_text(entry: dict[str, Any]) -> str:
    return f"{entry['item_type']}[{entry['count']}]" if "count" in entry else str(entry["type"])


def _value_text(entry: dict[str, Any], *, full: bool) -> str:
    if "count" in entry:
        items = ", ".join(map(repr, entry["value"]))
        return f"[{items}]" if len(entry["value"]) == entry["count"] else f"[{items}, …]"
    text = _number_text(entry["value"])
    if full:
        return text
    line = text.replace("\n", "⏎")
    return line if len(line) <= FIRST_CHARACTERS else f"{line[:FIRST_CHARACTERS]}… ({len(text)} characters)"
