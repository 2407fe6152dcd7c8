"""Peak memory of a conversion above the interpreter's, modules included: `python peak.py '{"checkpoint": ..., ...}'`.

Prints peak bytes above the bare interpreter, the plan's estimate, and the seconds that it took, as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def high_water_bytes() -> int:
    """VmHWM; getrusage would count what the parent held when it forked."""
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024


def main() -> None:
    bare = high_water_bytes()
    from quantkit.convert import convert, plan

    settings = json.loads(sys.argv[1])
    estimate = plan(**settings).peak_ram_bytes
    result = convert(**settings)
    report = {"peak_bytes": high_water_bytes() - bare, "estimate_bytes": estimate, "seconds": result.seconds}
    sys.stdout.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main()
