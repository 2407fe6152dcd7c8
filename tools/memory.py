"""Peak memory and time of converting one whole layer with experts, of Scout's or Maverick's true shape.

    python tools/memory.py --folder FOLDER [--model maverick] [--experts 128] [--type q4_k_m]...

The checkpoint is a sparse file of zeros and takes no room; the output does (about 9 GB of q4_k_m for Maverick's 128
experts). tests/convert/test_memory.py does the same with three experts.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.llama4.checkpoints import MAVERICK, SCOUT, build  # noqa: E402

SHAPES = {"scout": SCOUT | {"layers": 1}, "maverick": MAVERICK | {"layers": 2}}  # Maverick's first layer is dense


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the output has room")
    parser.add_argument("--model", choices=list(SHAPES), default="scout")
    parser.add_argument("--experts", type=int, help="all of the model's by default")
    parser.add_argument("--type", dest="types", action="append", help="may be repeated; q4_k_m by default")
    parser.add_argument("--threads", type=int, default=0)
    arguments = parser.parse_args()
    shape = SHAPES[arguments.model] | {"vocab": 1024}
    if arguments.experts:
        shape["experts"] = arguments.experts
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        settings = {
            "checkpoint": str(build(folder / "model", **shape, zeros=True)),
            "out": str(folder / "{type}.gguf"),
            "types": arguments.types or ["q4_k_m"],
            "threads": arguments.threads,
            "allow_mismatch": True,
        }
        peak = ROOT / "tests" / "convert" / "peak.py"
        run = subprocess.run([sys.executable, peak, json.dumps(settings)], capture_output=True, text=True, check=True)
    report = json.loads(run.stdout)
    print(f"{arguments.model}, {shape['experts']} experts, {', '.join(settings['types'])}")
    print(
        f"peak above the interpreter  {report['peak_bytes'] / 1e6:8.0f} MB (plan: {report['estimate_bytes'] / 1e6:.0f})"
    )
    print(f"time                        {report['seconds']:8.1f} s")


if __name__ == "__main__":
    main()
