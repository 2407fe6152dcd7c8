"""README's picture: run commands on a terminal of their own, and draw what they showed as SVG.

python tools/picture.py docs/convert.svg "quantkit plan CHECKPOINT out.gguf --type q4_k_m" "quantkit convert ..."

Each command is drawn with its final output; while it shows a progress bar, the frame nearest to the middle is kept too.
"""

from __future__ import annotations

import argparse
import os
import pty
import re
import subprocess
from pathlib import Path

from rich.console import Console
from rich.text import Text

COLUMNS = 108
FONTS = "'DejaVu Sans Mono', Menlo, Consolas, ui-monospace, monospace"
_ERASE = re.compile(r"\r?\x1b\[2K|\x1b\[1A|\x1b\[\?25[lh]|\r(?!\n)")
_PERCENT = re.compile(r"(\d+(?:\.\d+)?) [kMG]?B of (\d+(?:\.\d+)?) [kMG]?B")


def run(command: str) -> str:
    """Everything that a command wrote to its terminal, control sequences included."""
    leader, follower = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(COLUMNS), "LINES": "60", "TERM": "xterm-256color"}
    process = subprocess.Popen(command, shell=True, stdin=follower, stdout=follower, stderr=follower, env=environment)
    os.close(follower)
    written = b""
    while True:
        try:
            piece = os.read(leader, 1 << 16)
        except OSError:  # Linux says EIO when the last writer is gone
            piece = b""
        if not piece:
            break
        written += piece
    if process.wait() != 0:
        raise SystemExit(f"{command} ended with {process.returncode}\n{written.decode()}")
    return written.decode().replace("\r\n", "\n")


def frames(written: str) -> tuple[str, str]:
    """(bar nearest to half way or "", what remains on the screen in the end)."""
    bars, rest = [], []
    for piece in _ERASE.split(written):
        plain = re.sub(r"\x1b\[[0-9;]*m", "", piece)
        match = _PERCENT.search(plain)
        if match:
            bars.append((abs(float(match[1]) / float(match[2]) - 0.5), piece.rstrip("\n")))
        elif "reading headers" not in plain:
            rest.append(piece)
    return min(bars)[1] if bars else "", "".join(rest).strip("\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("svg", type=Path)
    parser.add_argument("commands", nargs="+")
    arguments = parser.parse_args()
    console = Console(record=True, width=COLUMNS, file=Path(os.devnull).open("w"), force_terminal=True)  # noqa: SIM115
    for command in arguments.commands:
        bar, result = frames(run(command))
        console.print(Text(f"$ {command}", style="bold green"))
        for shown in filter(None, (bar, result)):
            console.print(Text.from_ansi(shown), no_wrap=True)
        console.print()
    svg = console.export_svg(title="quantkit")
    # The picture loads nothing from elsewhere: the font is the reader's own.
    svg = re.sub(r"\s*@font-face \{.*?\}", "", svg, flags=re.DOTALL).replace("Fira Code, monospace", FONTS)
    arguments.svg.write_text("\n".join(line.rstrip() for line in svg.splitlines()) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
