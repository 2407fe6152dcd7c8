"""docs/drift.md explains every number, and its workflow is YAML whose commands run, pass and fail as it says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints
from xml.etree import ElementTree

import pytest
import yaml
from tests.drift.files import PROSE, ROOT, TINY, converted

from quantkit.drift import Drift
from quantkit.drift.gate import MEASURES

DOCUMENT = (ROOT / "docs" / "drift.md").read_text()
NAMED = set(re.findall(r"`([\w.]+)`", DOCUMENT))


def json_names(kind: Any, prefix: str = "") -> set[str]:
    """Names of all numbers and texts in a dataclass and in those that it holds, with the name of what holds them."""
    found: set[str] = set()
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        for field in fields(kind):
            if field.metadata.get("json", True):
                held = json_names(hints[field.name], f"{field.name}.")
                found |= held or {prefix + field.name}
    else:
        for part in get_args(kind):
            found |= json_names(part, prefix)
    return found


def test_every_number_of_the_report_is_explained() -> None:
    names = json_names(Drift)
    assert {"kld.mean", "routing.kl_local", "error.gain", "differences.told_apart", "text.sha256"} <= names
    missing = {name for name in names if not {name, name.partition(".")[2] or name} & NAMED}
    assert not missing


def test_every_measure_is_listed_with_its_meaning() -> None:
    gate = DOCUMENT.partition("## A gate for CI")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([\w.]+)` \| ([^|]+) \|$", gate, re.MULTILINE)
    assert dict(rows) == {name: measure.meaning for name, measure in MEASURES.items()}


@pytest.fixture(scope="module")
def workflow() -> dict[str, Any]:
    block = re.search(r"```yaml\n(.*?)```", DOCUMENT, re.DOTALL)
    assert block is not None
    found: dict[str, Any] = yaml.safe_load(block[1])
    return found


def test_the_workflow_passes_and_fails(workflow: dict[str, Any], tmp_path: Path) -> None:
    """Its own step, run by bash as GitHub does, with the models that its variables name."""
    (job,) = workflow["jobs"].values()
    (step,) = (step for step in job["steps"] if step.get("name") == "Drift")
    (artifact,) = (step for step in job["steps"] if "upload-artifact" in step.get("uses", ""))
    command = tmp_path / "bin" / "quantkit"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m quantkit "$@"\n')
    command.chmod(0o755)
    models = tmp_path / "models"
    models.mkdir()
    (tmp_path / job["env"]["REFERENCE"]).symlink_to(TINY)
    (tmp_path / "evaluation.txt").write_text("".join(path.read_text() for path in PROSE))
    files = converted(tmp_path, ["q5_k_m", "q2_k"])
    environment = os.environ | job["env"]
    environment |= {
        "PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    for type, code in (("q5_k_m", 0), ("q2_k", 1)):
        quantized = tmp_path / job["env"]["QUANTIZED"]
        quantized.unlink(missing_ok=True)
        quantized.symlink_to(files[type])
        done = subprocess.run(
            ["bash", "-e", "-c", step["run"]],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == code, done.stderr
        report, xml = (tmp_path / name for name in artifact["with"]["path"].split())
        gate = json.loads(report.read_text())["gate"]
        assert len(gate) == 3
        assert any(one["failed"] for one in gate) == bool(code)
        assert ElementTree.parse(xml).getroot().get("failures") == str(sum(one["failed"] for one in gate))
        report.unlink()
        xml.unlink()
