"""From a checkpoint to a GGUF and back, tensor by tensor, with the `gguf` package as the reader."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from tests.convert.source import KEPT, text_tensors

import quantkit
from quantkit import kernels
from quantkit.convert import Tuning, convert, plan
from quantkit.convert.weighting import weighting
from quantkit.recipes import RECIPES


def digest(path: Path) -> bytes:
    return path.read_bytes()


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_every_tensor_reads_back(recipe: str, tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    result = convert(tiny, out, recipe, threads=2)
    planned = {tensor.name: tensor for tensor in plan(tiny, types=recipe).outputs[0].tensors}
    expected = text_tensors(tiny)
    read = {tensor.name: tensor for tensor in gguf.GGUFReader(out).tensors}
    assert set(read) - {"rope_freqs.weight"} == set(expected)
    for name, values in expected.items():
        tensor = read[name]
        assert tuple(reversed(tensor.shape.tolist())) == values.shape, name
        format = tensor.tensor_type.name.lower()
        assert format == planned[name].type
        assert not name.endswith(KEPT) or format == "f32"
        back = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(values.shape)
        if format in ("f32", "bf16"):
            assert np.array_equal(back, values), name
        elif format == "f16":
            assert np.array_equal(back, values.astype(np.float16).astype(np.float32)), name
        else:
            packed = kernels.quantize(np.ascontiguousarray(values), format, weighting=weighting(format))
            assert np.array_equal(tensor.data.reshape(-1), packed.reshape(-1)), name
    assert result.outputs[0].n_bytes == out.stat().st_size
    assert list(tmp_path.iterdir()) == [out]


def test_file_type_and_provenance(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    convert(tiny, out, "q4_k_m")
    fields = gguf.GGUFReader(out).fields
    assert fields["general.file_type"].contents() == 15
    assert fields["general.quantization_version"].contents() == 2
    assert fields["general.architecture"].contents() == "llama4"
    assert fields["quantkit.version"].contents() == quantkit.__version__
    assert fields["quantkit.recipe"].contents() == "q4_k_m"
    assert not any(key.startswith("quantize.imatrix") for key in fields)


def test_several_types_equal_single_runs(tiny: Path, tmp_path: Path) -> None:
    types = ["q4_k_m", "q8_0", "bf16"]
    result = convert(tiny, tmp_path / "all-{type}.gguf", types, mmproj=tmp_path / "all-mmproj.gguf", threads=2)
    for recipe in types:
        convert(tiny, tmp_path / f"one-{recipe}.gguf", [recipe], threads=1)
        assert digest(tmp_path / f"all-{recipe}.gguf") == digest(tmp_path / f"one-{recipe}.gguf")
    convert(tiny, None, mmproj=tmp_path / "one-mmproj.gguf", mmproj_only=True)
    assert digest(tmp_path / "all-mmproj.gguf") == digest(tmp_path / "one-mmproj.gguf")
    assert [output.kind for output in result.outputs] == ["model"] * 3 + ["mmproj"]


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("tuning", [Tuning(), Tuning(slab_bytes=10_000, chunk_bytes=3_000, writers=3)])
def test_threads_and_cuts_do_not_show(threads: int, tuning: Tuning, tiny: Path, tmp_path: Path) -> None:
    convert(tiny, tmp_path / "plain.gguf", "q4_k_m", threads=2)
    convert(tiny, tmp_path / "other.gguf", "q4_k_m", threads=threads, tuning=tuning)
    assert digest(tmp_path / "plain.gguf") == digest(tmp_path / "other.gguf")


def test_splits_hold_the_same_tensors(tiny: Path, tmp_path: Path) -> None:
    convert(tiny, tmp_path / "whole.gguf", "q4_k_m")
    result = convert(tiny, tmp_path / "split.gguf", "q4_k_m", split_max_size="1M")
    files = result.outputs[0].files
    assert len(files) > 2
    assert files[0].name == f"split-00001-of-{len(files):05d}.gguf"
    readers = [gguf.GGUFReader(path) for path in files]
    assert [reader.fields["split.no"].contents() for reader in readers] == list(range(len(files)))
    whole = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "whole.gguf").tensors}
    parts = {tensor.name: tensor for reader in readers for tensor in reader.tensors}
    assert parts.keys() == whole.keys()
    for name, tensor in parts.items():
        assert tensor.tensor_type == whole[name].tensor_type
        assert np.array_equal(tensor.data, whole[name].data)


def test_pure_and_overrides(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    convert(tiny, out, "q4_0", pure=True, tensor_types=[("attn_v", "q6_k")], output_tensor_type="f16")
    types = {tensor.name: tensor.tensor_type.name.lower() for tensor in gguf.GGUFReader(out).tensors}
    assert types["blk.0.attn_v.weight"] == "q6_k"
    assert types["output.weight"] == "f16"
    assert types["blk.1.ffn_down_exps.weight"] == "q4_0"
    assert types["token_embd.weight"] == "q4_0"


def test_the_room_is_the_function(tiny: Path, tmp_path: Path) -> None:
    result = quantkit.convert(tiny, tmp_path / "out.gguf", types=["q8_0"])
    assert result.outputs[0].files == (tmp_path / "out.gguf",)
    assert quantkit.plan(tiny, types=["q8_0"]).outputs[0].n_bytes == result.outputs[0].n_bytes


def test_progress_runs_from_start_to_end(tiny: Path, tmp_path: Path) -> None:
    seen: list[quantkit.convert.Progress] = []
    result = convert(tiny, tmp_path / "out.gguf", "q8_0", progress=seen.append)
    assert seen[0].done_bytes == 0
    assert seen[-1].done_bytes == seen[-1].total_bytes == result.source_bytes
    assert seen[-1].written_bytes > 0
    assert [step.done_bytes for step in seen] == sorted(step.done_bytes for step in seen)
