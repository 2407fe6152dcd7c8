"""A file system that fills up in the midst of a conversion: `python small_disk.py CHECKPOINT FOLDER`.

Mounts a tmpfs at FOLDER, which needs a mount namespace of one's own (`unshare`). `whole.gguf` beside FOLDER is what
must come out. An assertion fails, or it ends with 0.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.convert.process import result_of, run, start, wait_for_lines

SIZE = "7m"  # the output takes about 5 MB of it
SMALL = {"slab_bytes": 20_000, "chunk_bytes": 8_000, "sync_bytes": 30_000, "sync_seconds": 0.02}


def fill(ballast: Path) -> None:
    """Take all that is left."""
    with ballast.open("wb") as file:
        try:
            while True:
                file.write(bytes(1 << 16))
                file.flush()
        except OSError:
            pass


def main(checkpoint: Path, folder: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)], check=True)
    out, ballast = folder / "out.gguf", folder / "ballast"
    settings = {"checkpoint": checkpoint, "out": out, "types": ["q8_0"], "tuning": SMALL, "without_preallocation": True}
    # The plan sees room; another program takes it meanwhile.
    process = start(**settings, write_seconds=0.01)
    wait_for_lines(folder / "out.gguf.part.journal", 3)
    fill(ballast)
    said, err = process.communicate(timeout=60)
    assert process.returncode == 6, err
    assert "no space left" in json.loads(said.splitlines()[-1])["text"], said
    assert not out.exists()
    code, said = run(**settings)  # refused by the plan while the disk is full
    assert (code, json.loads(said.splitlines()[-1])["error"]) == (5, "PlanRefusedError"), said
    ballast.unlink()
    code, said = run(**settings)
    assert code == 0, said
    assert result_of(said)["resumed_slabs"] > 0
    assert out.read_bytes() == folder.with_name("whole.gguf").read_bytes()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
