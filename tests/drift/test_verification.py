"""Sound files pass; files with one thing wrong in their bytes fail with that thing named."""

from __future__ import annotations

import hashlib
import json
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import llama_cpp
import numpy as np
import pytest
from click.testing import CliRunner
from tests.drift.files import TINY, changed, converted
from tests.llama4 import checkpoints
from tests.oracle.llama import quantize

import quantkit
from quantkit.cli import app
from quantkit.drift.verification import Verification, verify
from quantkit.errors import CheckpointError, UsageError
from quantkit.gguf import GgufTensor, lay_out, load_tensor, open_gguf, save_tensors
from quantkit.kernels import FORMATS, QuantizedTensor

EXPERTS = "blk.1.ffn_up_exps.weight"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return converted(tmp_path_factory.mktemp("verify"), ["bf16", "q8_0", "q4_k_m", "q2_k"])


def tensor_of(path: Path, name: str) -> GgufTensor:
    return next(one for one in open_gguf(path).tensors if one.name == name)


def poked(source: Path, out: Path, offset: int, content: bytes) -> Path:
    data = bytearray(source.read_bytes())
    data[offset : offset + len(content)] = content
    out.write_bytes(data)
    return out


def failed(found: Verification) -> list[str]:
    assert found.passed == all(one.severity == "warning" for one in found.faults)
    return [one.name for one in found.checks if one.passed is False]


@pytest.mark.parametrize("recipe", ["bf16", "q8_0", "q4_k_m", "q2_k"])
def test_sound_files(recipe: str, files: dict[str, Path]) -> None:
    found = verify(files[recipe], TINY, threads=2)
    assert found.passed
    assert found.faults == ()
    assert [one.passed for one in found.checks] == [True] * 5
    assert found.keys["quantkit.recipe"] == recipe
    errors = {one.name: one.relative_error for one in found.tensors}
    assert all(error is not None for name, error in errors.items() if name != "rope_freqs.weight")
    alone = verify(files[recipe], threads=1)
    assert alone.passed
    assert [one.passed for one in alone.checks] == [True] * 4 + [None]


def test_a_file_of_llama_cpp_s(files: dict[str, Path], tmp_path: Path) -> None:
    path = quantize(files["bf16"], tmp_path / "iq3_s.gguf", llama_cpp.LLAMA_FTYPE_MOSTLY_IQ3_S)
    found = verify(path, TINY, threads=2)
    assert (found.passed, failed(found)) == (True, [])


def test_hashes(files: dict[str, Path]) -> None:
    content = files["q4_k_m"].read_bytes()
    found = verify(files["q4_k_m"], sha256=True)
    assert found.files == {str(files["q4_k_m"]): hashlib.sha256(content).hexdigest()}
    for one in found.tensors:
        place = tensor_of(files["q4_k_m"], one.name)
        part = content[place.offset_bytes : place.offset_bytes + place.n_bytes]
        assert one.sha256 == hashlib.sha256(part).hexdigest()


def structural(files: dict[str, Path]) -> dict[str, tuple[Any, str]]:
    data = files["q4_k_m"].read_bytes()
    name, other = b"blk.0.attn_q.weight", b"blk.0.attn_k.weight"
    info = data.index(other) + len(other) + 4 + 16 + 4  # after its dimensions, two extents and type
    offset = struct.unpack_from("<Q", data, info)[0]
    return {
        "magic": (lambda b: b"GGUX" + b[4:], "not a GGUF"),
        "version": (lambda b: b[:4] + struct.pack("<I", 9) + b[8:], "GGUF version 9"),
        "big-endian": (lambda b: b[:4] + struct.pack(">I", 3) + b[8:], "big-endian"),
        "tensor count": (lambda b: b[:8] + struct.pack("<Q", 1 << 40) + b[16:], "tensors"),
        "key count": (lambda b: b[:16] + struct.pack("<Q", 1000) + b[24:], "byte"),
        "truncated": (lambda b: b[:-5000], "cut off"),
        "truncated header": (lambda b: b[:3000], "the file ends within"),
        "appended": (lambda b: b + bytes(4096), "4,096 bytes after the last tensor"),
        "duplicated name": (lambda b: b.replace(name, other, 1), "stands there twice"),
        "offset": (lambda b: b[:info] + struct.pack("<Q", offset + 32) + b[info + 8 :], "comes next"),
        "overlap": (lambda b: b[:info] + struct.pack("<Q", offset - 32) + b[info + 8 :], "comes next"),
        "type": (lambda b: b[: info - 4] + struct.pack("<I", 250) + b[info:], "unknown tensor type 250"),
    }


KINDS = (
    "magic", "version", "big-endian", "tensor count", "key count", "truncated", "truncated header", "appended",
    "duplicated name", "offset", "overlap", "type",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_structure(kind: str, files: dict[str, Path], tmp_path: Path) -> None:
    change, word = structural(files)[kind]
    path = tmp_path / "broken.gguf"
    path.write_bytes(change(files["q4_k_m"].read_bytes()))
    found = verify(path, TINY)
    assert failed(found)[:1] == ["structure"]
    assert word in found.faults[0].statement
    assert str(path) in found.faults[0].statement
    assert found.faults[0].advice


@pytest.mark.parametrize("recipe", ["q4_k_m", "q2_k", "q8_0", "bf16"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite(recipe: str, value: float, files: dict[str, Path], tmp_path: Path) -> None:
    """A scale, or a value, deep inside the third expert."""
    place = tensor_of(files[recipe], EXPERTS)
    size = FORMATS[place.type].block_bytes
    experts, rows, cols = place.shape
    row_bytes = place.n_bytes // experts // rows
    row, block = 17, row_bytes // size - 1
    at = place.offset_bytes + (2 * rows + row) * row_bytes + block * size
    scale = {"q4_k": 0, "q2_k": 80, "q3_k": 108, "q6_k": 208, "q8_0": 0, "bf16": 0}[place.type]
    bits = np.float32(value).view(np.uint32) >> 16 if place.type == "bf16" else np.float16(value).view(np.uint16)
    path = poked(files[recipe], tmp_path / "nan.gguf", at + scale, struct.pack("<H", int(bits)))
    found = verify(path, TINY, threads=2)
    assert failed(found) == ["values"]
    (fault,) = found.faults
    assert (fault.tensor, fault.experts) == (EXPERTS, (2,))
    assert f"{EXPERTS}, expert 2: row 17, column {cols - FORMATS[place.type].block_size}" in fault.statement
    assert f"at byte {at:,} of nan.gguf" in fault.statement
    assert [one.note for one in found.checks if one.name == "weights"] == ["values failed"]


def test_zeroed_expert_and_tensor(files: dict[str, Path], tmp_path: Path) -> None:
    place = tensor_of(files["q4_k_m"], EXPERTS)
    size = place.n_bytes // place.shape[0]
    path = poked(files["q4_k_m"], tmp_path / "zero.gguf", place.offset_bytes + size, bytes(size))
    found = verify(path, TINY, threads=2)
    assert failed(found) == ["zeros", "weights"]
    assert (found.faults[0].tensor, found.faults[0].experts) == (EXPERTS, (1,))
    assert f"{EXPERTS}, expert 1: every value is zero" in found.faults[0].statement
    place = tensor_of(files["q4_k_m"], "output_norm.weight")
    path = poked(files["q4_k_m"], tmp_path / "zero.gguf", place.offset_bytes, bytes(place.n_bytes))
    found = verify(path)
    assert failed(found) == ["zeros"]
    assert found.faults[0].statement == "output_norm.weight: every value is zero"


def test_swapped_experts(files: dict[str, Path], tmp_path: Path) -> None:
    """Sound by itself: only the checkpoint tells."""

    def swap(tensor: QuantizedTensor) -> QuantizedTensor:
        return QuantizedTensor(np.ascontiguousarray(tensor.packed[[0, 2, 1, 3]]), tensor.format)

    path = changed(files["q4_k_m"], tmp_path / "swapped.gguf", tensors={EXPERTS: swap})
    assert verify(path).passed
    found = verify(path, TINY, threads=2)
    assert failed(found) == ["weights"]
    assert {one.tensor for one in found.faults} == {EXPERTS}
    assert sorted(expert for one in found.faults for expert in one.experts) == [1, 2]
    assert any("the weights of expert 2" in one.statement for one in found.faults)


def test_another_checkpoint_s_weights(files: dict[str, Path], tmp_path: Path) -> None:
    def doubled(tensor: QuantizedTensor) -> QuantizedTensor:
        return QuantizedTensor.quantize(2 * tensor.dequantize(), tensor.format)

    path = changed(files["q8_0"], tmp_path / "scaled.gguf", tensors={"blk.0.attn_q.weight": doubled})
    found = verify(path, files["bf16"], threads=2)
    assert failed(found) == ["weights"]
    assert "2 times the reference's" in found.faults[0].statement
    fields = {"quantkit.source_fingerprint": "0" * 64}
    found = verify(changed(files["q8_0"], tmp_path / "other.gguf", fields=fields), TINY, threads=2)
    assert found.passed
    assert [one.severity for one in found.faults] == ["warning"]
    assert "source_fingerprint" in found.faults[0].statement


def test_model(files: dict[str, Path], tmp_path: Path) -> None:
    data = files["q4_k_m"].read_bytes()

    def faults(path: Path) -> str:
        found = verify(path, TINY)
        assert failed(found) == ["model"]
        return " ".join(one.statement for one in found.faults)

    path = tmp_path / "model.gguf"
    path.write_bytes(data.replace(b"blk.0.attn_q.weight", b"blk.0.attn_Q.weight", 1))
    assert "blk.0.attn_q.weight [256, 256] is missing" in faults(path)
    assert "blk.0.attn_Q.weight is no tensor of Llama 4" in faults(path)
    assert "llama4.block_count" in faults(changed(files["q4_k_m"], path, fields={"llama4.block_count": None}))
    assert "tokenizer.ggml.merges" in faults(changed(files["q4_k_m"], path, fields={"tokenizer.ggml.merges": None}))
    shape = changed(files["q4_k_m"], path, fields={"llama4.attention.head_count_kv": 1})
    assert "has shape" in faults(shape)
    other = changed(files["q4_k_m"], path, fields={"general.architecture": "llama"})
    alone, found = verify(other), verify(other, TINY)
    assert alone.passed
    assert [one.passed for one in found.checks] == [True, None, True, True, None]
    assert not found.passed  # weights were to be compared, and could not
    (fault,) = found.faults
    assert (fault.check, fault.severity) == ("weights", "fault")
    assert "could not be compared with" in fault.statement
    assert "general.architecture is 'llama'" in fault.statement
    assert [one.condition for one in found.verdicts() if one.failed] == ["weights"]


def test_a_type_that_nobody_decodes_is_not_passed_against_a_checkpoint(files: dict[str, Path], tmp_path: Path) -> None:
    name, source = "blk.0.attn_q.weight", open_gguf(files["q8_0"])
    tensors = [(one.name, one.shape, "q1_0" if one.name == name else one.type) for one in source.tensors]
    (plan,) = lay_out(list(source.fields.values()), tensors, path=tmp_path / "q1_0.gguf")
    data, out = files["q8_0"].read_bytes(), bytearray(plan.n_bytes)
    out[: len(plan.header)] = plan.header
    for one in source.tensors:
        if one.name != name:
            start = plan.offsets[one.name]
            out[start : start + one.n_bytes] = data[one.offset_bytes : one.offset_bytes + one.n_bytes]
    plan.path.write_bytes(out)
    alone = verify(plan.path)
    assert alone.passed
    assert [(one.severity, one.tensor) for one in alone.faults] == [("warning", name)]
    found = verify(plan.path, TINY)
    assert not found.passed
    assert f"could not be compared with {TINY}: {name} is q1_0, which nobody here decodes" in found.faults[0].statement
    done = CliRunner().invoke(app, ["verify", str(plan.path), "--against", str(TINY)])
    assert done.exit_code == 7
    assert "could not be compared" in done.output


def test_rope_factors(tmp_path: Path) -> None:
    name = "rope_freqs.weight"
    folder = checkpoints.build(tmp_path / "model", layers=2, rope_scaling=checkpoints.SCOUT_ROPE_SCALING)
    made = converted(tmp_path, ["bf16", "q8_0"], folder, allow_mismatch=True)

    def wrong(tensor: QuantizedTensor) -> QuantizedTensor:
        values = tensor.dequantize()
        values[-1] *= 1.01
        return QuantizedTensor(values.view(np.uint8), "f32")

    path = changed(made["q8_0"], tmp_path / "rope.gguf", tensors={name: wrong})
    assert verify(path).passed
    for reference in (folder, made["bf16"]):
        found = verify(path, reference, threads=2)
        assert failed(found) == ["weights"]
        (fault,) = found.faults
        assert fault.tensor == name
        assert "off by up to +1.00%" in fault.statement
    sound = {one.name: one.relative_error for one in verify(made["q8_0"], folder, threads=2).tensors}
    assert sound[name] is not None
    assert sound[name] < 1e-6


def test_an_output_matrix_that_is_gone(files: dict[str, Path], tmp_path: Path) -> None:
    """Without it the embedding takes its place, and the file is sound by itself."""
    file = open_gguf(files["q8_0"])
    kept = {one.name: load_tensor(file, one.name) for one in file.tensors if one.name != "output.weight"}
    save_tensors(tmp_path / "tied.gguf", kept, fields=list(file.fields.values()))
    assert verify(tmp_path / "tied.gguf").passed
    found = verify(tmp_path / "tied.gguf", TINY, threads=2)
    assert failed(found) == ["weights"]
    assert found.faults[0].statement == "output.weight is missing, and the reference has one"


def test_faults_are_in_order(files: dict[str, Path], tmp_path: Path) -> None:
    """Not in that of a set, which changes from process to process."""
    file = open_gguf(files["q8_0"])
    kept = {one.name: load_tensor(file, one.name) for one in file.tensors}
    names = [f"blk.{layer}.foreign.weight" for layer in range(8)]
    foreign = {name: QuantizedTensor.quantize(np.ones((1, 32), np.float32), "q8_0") for name in reversed(names)}
    save_tensors(tmp_path / "foreign.gguf", {**kept, **foreign}, fields=list(file.fields.values()))
    assert [one.tensor for one in verify(tmp_path / "foreign.gguf").faults] == names


def test_what_only_warns_is_said(files: dict[str, Path], tmp_path: Path) -> None:
    """Twice the error that q8_0 leaves."""

    def noisy(tensor: QuantizedTensor) -> QuantizedTensor:
        values = tensor.dequantize()
        noise = np.random.default_rng(0).normal(0, 0.0095 * np.sqrt(np.square(values).mean()), values.shape)
        return QuantizedTensor.quantize((values + noise).astype(np.float32), tensor.format)

    found = verify(changed(files["q8_0"], tmp_path / "noisy.gguf", tensors={"blk.1.attn_q.weight": noisy}), TINY)
    assert found.passed
    assert [(one.severity, one.tensor) for one in found.faults] == [("warning", "blk.1.attn_q.weight")]
    assert "1 off by up to three times as much, which is a warning" in found.checks[-1].note


def test_splits(files: dict[str, Path], tmp_path: Path) -> None:
    quantkit.convert(TINY, tmp_path / "split.gguf", ["q8_0"], split_max_size=2_000_000, threads=2)
    paths = sorted(tmp_path.glob("split-*.gguf"))
    assert len(paths) > 2
    found = verify(paths[1], TINY, sha256=True)
    assert found.passed
    assert list(found.files) == [str(path) for path in paths]
    paths[2].unlink()
    assert failed(verify(paths[0])) == ["structure"]


def test_command(files: dict[str, Path], tmp_path: Path) -> None:
    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "quantkit", "verify", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=300)

    done = run(files["q8_0"], "--against", TINY)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("passed") == 5
    path = tmp_path / "short.gguf"
    path.write_bytes(files["q8_0"].read_bytes()[:-5000])
    done = run(path, "--json", "--junit", tmp_path / "verify.xml")
    assert done.returncode == 7, done.stderr
    content = json.loads(done.stdout)
    assert (content["schema"], content["passed"]) == (1, False)
    assert "cut off" in content["faults"][0]["statement"]
    suite = ElementTree.parse(tmp_path / "verify.xml").getroot()[0]
    assert (suite.get("name"), suite.get("tests"), suite.get("failures")) == ("quantkit verify", "1", "1")
    done = run(path, "--junit", tmp_path / "missing" / "verify.xml")
    assert done.returncode == 2
    assert "mkdir -p" in done.stderr
    assert run(path, "--junit", tmp_path).returncode == 2
    done = run(path)
    assert done.returncode == 7
    assert "cut off" in done.stdout
    assert run(tmp_path / "none.gguf").returncode == 2


def test_what_is_no_file(files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        verify(tmp_path / "none.gguf")
    with pytest.raises(UsageError, match="no such file"):
        verify(files["q8_0"], tmp_path / "none")
    with pytest.raises(UsageError, match="it is no reference"):
        verify(files["q8_0"], files["q2_k"])
    (tmp_path / "folder").mkdir()
    with pytest.raises(CheckpointError):
        verify(files["q8_0"], tmp_path / "folder")


def test_memory_is_that_of_some_rows(files: dict[str, Path], tmp_path: Path) -> None:
    """A sparse gigabyte, of which every byte is read, in no more than 150 MB beside what the library takes."""
    fields = [one for one in open_gguf(files["q8_0"]).fields.values() if one.key == "general.architecture"]
    fields = [replace(fields[0], value="other")]
    (plan,) = lay_out(fields, [("big.weight", (16, 1024, 16384), "f32")], path=tmp_path / "big.gguf")
    with plan.path.open("wb") as file:
        file.write(plan.header)
        file.seek(plan.n_bytes - 4)
        file.write(np.float32(1).tobytes())
    code = (
        "import resource, sys; from quantkit.drift.verification import verify\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "found = verify(sys.argv[1], threads=2)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, found.faults[0].experts)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(plan.path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    kilobytes, experts = done.stdout.split(" ", 1)
    assert int(kilobytes) < 150_000 * (1 if sys.platform == "linux" else 1024)
    assert experts.strip() == str(tuple(range(15)))
