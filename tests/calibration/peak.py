"""Peak memory of a calibration: `python peak.py '{"checkpoint": ..., "out": ..., ...}'`.

Takes arguments of quantkit.calibrate; prints, as JSON, the process's peak bytes and what was announced.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path


def high_water_bytes() -> int:
    """VmHWM; getrusage would count what the parent held when it forked."""
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024


def main() -> None:
    import quantkit
    from quantkit.calibration import Cost

    costs: list[Cost] = []
    quantkit.calibrate(**json.loads(sys.argv[1]), announce=costs.append)
    sys.stdout.write(json.dumps(asdict(costs[0]) | {"peak_bytes": high_water_bytes()}) + "\n")


if __name__ == "__main__":
    main()
