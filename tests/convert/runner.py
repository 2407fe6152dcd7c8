"""A conversion in a process of its own, to be killed: `python runner.py '{"checkpoint": ..., "out": ..., ...}'`.

Prints "walking" once the walk has begun, "done" and the result at the end, and an error's class and text otherwise.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

from quantkit.convert import Progress, Tuning, convert
from quantkit.errors import QuantkitError


def slow_disk(seconds: float) -> None:
    """Let every write take at least so long."""
    pwrite = os.pwrite

    def slow(fd: int, data: Any, offset: int) -> int:
        time.sleep(seconds)
        return pwrite(fd, data, offset)

    os.pwrite = slow


def dying_rename(count: int) -> None:
    """Die by SIGKILL instead of the call of Path.replace or Path.unlink number `count`."""
    left = [count]

    def counted(call: Any) -> Any:
        def dying(*arguments: Any, **options: Any) -> Any:
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            return call(*arguments, **options)

        return dying

    Path.replace = counted(Path.replace)
    Path.unlink = counted(Path.unlink)


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> int:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests in the background ignores it
    settings = json.loads(sys.argv[1])
    slow_disk(settings.pop("write_seconds", 0.0))
    if (count := settings.pop("die_at_rename", None)) is not None:
        dying_rename(count)
    if (limit := settings.pop("max_file_bytes", None)) is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    if settings.pop("without_preallocation", False):
        del os.posix_fallocate
    tuning = Tuning(**settings.pop("tuning", {}))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as the command line has it
    begun = False

    def report(progress: Progress) -> None:
        nonlocal begun
        if not begun:
            say("walking")
        begun = True

    try:
        result = convert(**settings, tuning=tuning, progress=report)
    except QuantkitError as error:
        say(json.dumps({"error": type(error).__name__, "text": str(error), "exit_code": error.exit_code}))
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    say("done " + json.dumps(result.to_json()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
