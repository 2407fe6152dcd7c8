"""The group: help, lazy loading, exit codes, and the one way in which errors are told."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from quantkit.cli import app
from quantkit.cli.app import COMMANDS

HEAVY = {"numpy", "gguf", "rich", "quantkit.kernels", "quantkit.convert", "quantkit.checkpoint", "torch"}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "quantkit", *arguments], capture_output=True, text=True, timeout=120)


def loaded_modules(*arguments: str) -> set[str]:
    script = f"""
import sys
from quantkit.cli import app
try:
    app.main({list(arguments)!r}, prog_name="quantkit")
except SystemExit as end:
    assert end.code == 0, end.code
print("\\nMODULES", *sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    return set(done.stdout.rsplit("MODULES", 1)[1].split())


def test_help_names_every_command_with_its_sentence() -> None:
    result = CliRunner().invoke(app, ["--help"], terminal_width=200)
    assert result.exit_code == 0
    for name, sentence in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(sentence)}$", result.output, re.MULTILINE)


def test_help_of_the_group_loads_no_command_and_nothing_heavy() -> None:
    loaded = loaded_modules("--help")
    assert not loaded & HEAVY
    assert not loaded & {f"quantkit.cli.{name}" for name in (*COMMANDS, "output")}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_loads_nothing_heavy(name: str) -> None:
    assert not loaded_modules(name, "--help") & HEAVY


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_has_examples_that_parse(name: str) -> None:
    result = CliRunner().invoke(app, [name, "--help"], terminal_width=100)
    assert result.exit_code == 0
    assert "--json" in result.output
    _, _, examples = result.output.partition("\nExamples:\n")
    lines = [line for line in examples.splitlines() if line.startswith("  $ ")]
    assert lines
    for line in lines:
        words = line.split("|")[0].split()
        arguments = words[words.index("quantkit") + 1 :]
        assert arguments[0] == name
        command = app.get_command(click.Context(app), name)
        assert command is not None
        command.make_context(name, arguments[1:])  # raises for an option that does not exist


@pytest.mark.parametrize("name", COMMANDS)
def test_help_states_the_default_of_every_option_that_has_one(name: str) -> None:
    command = app.get_command(click.Context(app), name)
    assert command is not None
    output = CliRunner().invoke(app, [name, "--help"], terminal_width=300).output
    for parameter in command.params:
        if not isinstance(parameter, click.Option) or parameter.is_flag or parameter.default in (None, "", ()):
            continue
        if isinstance(parameter.default, (str, int, float, tuple)):  # not click's sentinel for none
            _, _, entry = output.partition(f"  {parameter.opts[0]} ")
            assert "[default:" in entry.split("\n  -")[0], parameter.name


def test_without_a_command_help_goes_to_stderr_and_the_code_is_usage() -> None:
    done = run()
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Commands:" in done.stderr


def test_version_is_that_of_the_project() -> None:
    done = run("--version")
    assert done.returncode == 0
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    match = re.search(r'^version = "(.+)"$', project, re.MULTILINE)
    assert match is not None
    assert done.stdout == f"quantkit {match[1]}\n"


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["nonsense"], "nonsense"),
        (["plan"], "CHECKPOINT"),
        (["plan", "x", "--no-such-option"], "--no-such-option"),
        (["plan", "x"], "--type"),
        (["convert", "x", "out.gguf"], "--type"),
        (["convert", "x", "--type", "q4_k_m"], "OUT"),
        (["convert", "x", "--mmproj-only"], "--mmproj"),
        (["convert", "x", "out.gguf", "--type", "q4_k_huge"], "q4_k_m"),
        (["convert", "x", "out.gguf", "--type", "q4_k_m", "--tensor-type", "ffn_down"], "REGEX=TYPE"),
        (["convert", "x", "out.gguf", "--type", "q4_k_m", "--tensor-type", "ffn_down=q4_k_m"], "q4_k"),
        (["convert", "x", "out.gguf", "--type", "q4_k_m", "--split-max-size", "big"], "50G"),
        (["plan", "x", "--type", "q4_k_m", "--context", "0"], "128k"),
        *(
            (["plan", "x", "--type", "q4_k_m", "--bandwidth", value], "bandwidth")
            for value in ("0", "-1", "nan", "inf")
        ),
        (["inspect"], "FILE"),
    ],
)
def test_wrong_usage_is_told_in_words_and_in_json(arguments: list[str], word: str) -> None:
    plain = CliRunner().invoke(app, arguments)
    assert plain.exit_code == 2
    assert plain.stdout == ""
    assert plain.stderr.startswith("error: ")
    assert word in plain.stderr

    as_json = CliRunner().invoke(app, [*arguments, "--json"])
    assert as_json.exit_code == 2
    error = json.loads(as_json.stdout)["error"]
    assert error["exit_code"] == 2
    assert error["type"] == "UsageError"
    assert word in error["message"] + error["hint"]


@pytest.mark.parametrize("command", ["plan", "convert"])
def test_a_missing_checkpoint_is_named_with_a_next_step(command: str, tmp_path: Path) -> None:
    missing, out = tmp_path / "nowhere", tmp_path / "out.gguf"
    done = run(command, str(missing), str(out), "--type", "q4_k_m")
    assert done.returncode == 3
    assert done.stdout == ""
    assert str(missing) in done.stderr
    assert len(done.stderr.splitlines()) >= 2, "no hint"
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []

    as_json = run(command, str(missing), str(out), "--type", "q4_k_m", "--json")
    assert as_json.returncode == 3
    error = json.loads(as_json.stdout)["error"]
    assert str(missing) in error["message"]
    assert error["hint"]


def test_lines_to_copy_begin_with_what_was_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def tried(*command: str) -> str:
        done = subprocess.run([*command, "plan"], capture_output=True, text=True, timeout=120)
        assert done.returncode == 2
        return done.stderr

    script = tmp_path / "my bin" / "quantkit"
    script.parent.mkdir()
    assert f"Try: {sys.executable} -m quantkit plan --help" in tried(sys.executable, "-m", "quantkit")
    script.write_text(f"#!{sys.executable}\nfrom quantkit.cli import main\nmain()\n")
    script.chmod(0o755)
    assert f"Try: '{script}' plan --help" in tried(str(script))
    monkeypatch.setenv("PATH", str(script.parent), prepend=os.pathsep)
    assert "Try: quantkit plan --help" in tried("quantkit")


def test_tracebacks_appear_only_when_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("plan", str(tmp_path / "nowhere"), "--type", "q4_k_m")
    monkeypatch.setenv("QUANTKIT_DEBUG", "1")
    done = run(*arguments)
    assert done.returncode == 3
    assert "Traceback" in done.stderr
    monkeypatch.setenv("QUANTKIT_DEBUG", "0")
    assert "Traceback" not in run(*arguments).stderr


def test_a_closed_pipe_is_no_error_message() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run(
        [sys.executable, "-m", "quantkit", "formats"], stdout=write_end, stderr=subprocess.PIPE, text=True, timeout=120
    )
    os.close(write_end)
    assert done.returncode == 0
    assert done.stderr == ""


def test_a_terminal_without_unicode_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    done = run("formats")
    assert done.returncode == 0, done.stderr
    assert "q4_k" in done.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_with_130_and_says_how_to_go_on(number: signal.Signals) -> None:
    script = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
import quantkit.convert
def slow(*arguments, **options):
    print("started", flush=True)
    time.sleep(60)
quantkit.convert.convert = slow
from quantkit.cli import app
app.main(["convert", "check point", "out.gguf", "--type", "q8_0"], prog_name="quantkit")
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    started = time.monotonic()
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert time.monotonic() - started < 30
    assert "quantkit convert 'check point' out.gguf --type q8_0" in stderr
    assert "Traceback" not in stderr
