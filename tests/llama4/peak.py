"""Peak memory of a stream: `python peak.py '{"checkpoint": ..., "sequences": 4, "context": 512, ...}'`.

Prints the process's peak bytes, what was estimated, and the seconds of each layer, as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path


def high_water_bytes() -> int:
    """VmHWM; getrusage would count what the parent held when it forked."""
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024


def main() -> None:
    settings = json.loads(sys.argv[1])
    import numpy as np

    from quantkit.llama4.forward import Stream, open_weights

    weights = open_weights(settings.pop("checkpoint"))
    shape = (settings.pop("sequences"), settings.pop("context"))
    tokens = np.random.default_rng(0).integers(0, weights.hp.vocab_size, shape)
    blocks = settings.pop("logit_blocks", False)
    seconds = []
    with Stream(weights, tokens, **settings) as stream:
        for _ in range(weights.hp.n_layers):
            start = time.perf_counter()
            stream.advance()
            seconds.append(time.perf_counter() - start)
        if blocks:
            start = time.perf_counter()
            for _ in stream.logit_blocks():
                pass
            seconds.append(time.perf_counter() - start)
    memory = stream.memory
    report = {"peak_bytes": high_water_bytes(), "states": memory.states, "working": memory.working, "seconds": seconds}
    sys.stdout.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main()
