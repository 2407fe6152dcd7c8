"""`quantkit doctor`: what a bug report needs to say about an installation."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from typing import Any

import click

from quantkit import __version__
from quantkit.cli.help import Command, json_option

PACKAGES = ("numpy", "gguf", "click", "rich", "nanobind-backend")


def package_versions() -> dict[str, str | None]:
    """Installed version of each package that quantkit runs on; None for one that is missing."""
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def blas() -> dict[str, Any]:
    """Name and version of numpy's BLAS, as numpy was built."""
    import numpy as np

    config: Any = np.show_config(mode="dicts")
    library = config.get("Build Dependencies", {}).get("blas", {})
    return {"name": library.get("name"), "version": library.get("version")}


def report() -> dict[str, Any]:
    """All that is known about this installation, as JSON-ready values."""
    from quantkit.kernels import build_info

    return {
        "schema": 1,
        "version": __version__,
        **build_info(),
        "cpus": os.cpu_count(),
        "tier_override": os.environ.get("QUANTKIT_TIER"),
        "blas": blas(),
        "python": sys.version.split()[0],
        "python_implementation": platform.python_implementation(),
        "platform": platform.platform(),
        "packages": package_versions(),
    }


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {text}" for name, text in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return "-" if value is None else str(value)


@click.command(cls=Command, examples=("quantkit doctor", "QUANTKIT_TIER=scalar quantkit doctor --json"))
@json_option
def command(as_json: bool) -> None:
    """Report version, compiler, instruction sets built and in use, threads, BLAS and Python.

    Put this output into a bug report.
    """
    from quantkit.cli import output

    content = report()
    if as_json:
        output.show_json(content)
        return
    output.facts([(name.replace("_", " "), _text(value)) for name, value in content.items() if name != "schema"])
