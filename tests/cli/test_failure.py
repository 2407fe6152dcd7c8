"""Each class of error has its exit code and its words."""

from __future__ import annotations

import errno
import json

import click
import pytest

from quantkit import errors
from quantkit.cli.failure import describe, reported

CODES = {
    errors.UsageError: 2,
    errors.MissingDependencyError: 2,
    errors.CheckpointError: 3,
    errors.NonFiniteError: 3,
    errors.UnsupportedModelError: 4,
    errors.PlanRefusedError: 5,
    errors.ResumeError: 5,
    errors.OutputError: 6,
    errors.VerificationError: 7,
}


def test_the_table_of_codes_is_whole() -> None:
    classes = {value for value in vars(errors).values() if isinstance(value, type)}
    assert classes - {errors.QuantkitError} == set(CODES)


@pytest.mark.parametrize("kind", CODES, ids=lambda kind: kind.__name__)
def test_every_leaf_is_told_with_hint_and_code(
    kind: type[errors.QuantkitError], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end, reported(["convert", "a", "b", "--json"]):
        raise kind("shard 3 ends early", hint="Download it again.")
    assert end.value.code == CODES[kind]
    captured = capsys.readouterr()
    assert captured.err == "error: shard 3 ends early\n  Download it again.\n"
    assert json.loads(captured.out) == {
        "error": {
            "type": kind.__name__,
            "message": "shard 3 ends early",
            "hint": "Download it again.",
            "exit_code": CODES[kind],
        }
    }


@pytest.mark.parametrize("debug", ["", "0"])
def test_without_json_stdout_stays_empty(
    debug: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUANTKIT_DEBUG", debug)
    with pytest.raises(SystemExit), reported(["plan"]):
        raise errors.CheckpointError("no config.json")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "error: no config.json\n"


@pytest.mark.parametrize(
    ("exception", "code", "word"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "out.gguf.part"), 6, "Free some space"),
        (OSError(errno.EIO, "Input/output error", "out.gguf.part"), 6, "out.gguf.part"),
        (MemoryError(), 5, "out of memory"),
        (click.FileError("x.gguf", "no such file"), 2, "x.gguf"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (click.Abort(), 130, "interrupted"),
        (ZeroDivisionError("division by zero"), 70, "QUANTKIT_DEBUG=1"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_what_others_raise_has_words_too(exception: BaseException, code: int, word: str) -> None:
    failure = describe(exception)
    assert failure.exit_code == code
    assert word in failure.text()


def test_the_command_to_go_on_with_is_quoted_for_the_shell() -> None:
    failure = describe(KeyboardInterrupt(), ["convert", "my model", "out-{type}.gguf", "--type", "q4_k_m"])
    assert failure.hint.splitlines()[-1] == "quantkit convert 'my model' 'out-{type}.gguf' --type q4_k_m"
    assert describe(KeyboardInterrupt(), ["plan", "my model"]).hint == ""
    failure = describe(KeyboardInterrupt(), ["convert", "my model"], "python -m quantkit")
    assert failure.hint.splitlines()[-1] == "python -m quantkit convert 'my model'"
