"""What a measurement was made on."""

from __future__ import annotations

import platform
from pathlib import Path


def cpu_model() -> str:
    """The processor's name as the system gives it, and on x86-64 its family and model: clouds give several one name."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        pairs = (line.partition(":") for line in reversed(info.read_text().splitlines()))
        found = {name.strip(): value.strip() for name, _, value in pairs}
        if "model name" in found:
            kind = f" (family {found['cpu family']}, model {found['model']})" if "cpu family" in found else ""
            return found["model name"] + kind
    return platform.processor() or platform.machine()
