"""Verdicts as JUnit XML, which CI systems show as tests."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from quantkit.drift.gate import Verdict
from quantkit.kernels.atomic_file import atomic_file


def junit(verdicts: Sequence[Verdict], name: str = "quantkit drift") -> bytes:
    """One test case for each condition and candidate: the candidate is its class name, the condition its name."""
    counts = {"tests": str(len(verdicts)), "failures": str(sum(one.failed for one in verdicts)), "errors": "0"}
    root = ElementTree.Element("testsuites", counts)
    suite = ElementTree.SubElement(root, "testsuite", {"name": name, **counts})
    for one in verdicts:
        case = ElementTree.SubElement(suite, "testcase", {"classname": one.file, "name": one.condition})
        if one.failed:
            failure = ElementTree.SubElement(case, "failure", {"type": "gate", "message": one.message})
            failure.text = one.message
        else:
            ElementTree.SubElement(case, "system-out").text = one.message
    ElementTree.indent(root)
    written: bytes = ElementTree.tostring(root, "utf-8", xml_declaration=True)
    return written + b"\n"


def write_junit(path: str | os.PathLike[str], verdicts: Sequence[Verdict], name: str = "quantkit drift") -> None:
    """Replace the file, whole. OutputError where it cannot be written."""
    with atomic_file(Path(path)) as file:
        file.write(junit(verdicts, name))
