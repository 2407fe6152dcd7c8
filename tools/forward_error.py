"""How far the stream is from transformers in float32: the table of docs/calibration.md.

PYTHONPATH=src:. python tools/forward_error.py [CHECKPOINT ...]

Prints the largest error of a hidden state after any layer, and of the logits, by the norm of that state or those
logits: for the random configurations of tests/oracle, the trained checkpoint of the tests, and each CHECKPOINT.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
from tests.oracle.test_forward import CHUNK, CONFIGURATIONS, TINY, TRAINED, build, errors, text_tokens, trained


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for configuration in CONFIGURATIONS:
            found = []
            for context in (CHUNK - 5, CHUNK, 3 * CHUNK + 5):
                tokens = np.random.default_rng(context).integers(0, 1000, (2, context))
                found.append(errors(build(folder / f"{configuration}-{context}", configuration, seed=context), tokens))
            _print(
                configuration, f"{CHUNK - 5} to {3 * CHUNK + 5}", f"chunk {CHUNK}", *map(max, zip(*found, strict=True))
            )
        for number, checkpoint in enumerate([TINY, *map(Path, sys.argv[1:])]):
            for context, constants in TRAINED:
                copy = trained(
                    folder / f"{number}-{context}-{constants['floor_scale']}", checkpoint.absolute(), **constants
                )
                chunk = f"chunk {constants['attention_chunk_size']}"
                _print(checkpoint.name, str(context), chunk, *errors(copy, text_tokens(copy, context)))


def _print(name: str, context: str, chunk: str, states: float, logits: float) -> None:
    sys.stdout.write(f"| {name} | {context} | {chunk} | {states:.1e} | {logits:.1e} |\n")


if __name__ == "__main__":
    main()
