"""Peak memory of a calibration: `python peak.py '{"checkpoint": ..., "out": ..., ...}'`.

Takes arguments of quantkit.calibrate; prints, as JSON, what was announced, the process's peak bytes, and what it held
before it took anything for the tokens and when the cost was announced.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any


def resident_bytes(which: str) -> int:
    """VmRSS or VmHWM, its peak; getrusage would count what the parent held when it forked."""
    return int(Path("/proc/self/status").read_text().partition(f"{which}:")[2].split()[0]) * 1024


def main() -> None:
    import tokenizers  # noqa: F401

    import quantkit
    from quantkit.calibration import Cost
    from quantkit.kernels.blas import blas_identity

    blas_identity()
    found: dict[str, Any] = {"before_bytes": resident_bytes("VmRSS")}

    def announce(cost: Cost) -> None:
        found.update(asdict(cost), held_bytes=resident_bytes("VmRSS"))

    quantkit.calibrate(**json.loads(sys.argv[1]), announce=announce)
    sys.stdout.write(json.dumps(found | {"peak_bytes": resident_bytes("VmHWM")}) + "\n")


if __name__ == "__main__":
    main()
