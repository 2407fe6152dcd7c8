"""The command line: one command a file, loaded when it is called. The only room that prints."""

from __future__ import annotations

from quantkit.cli.app import app, main

__all__ = ["app", "main"]
