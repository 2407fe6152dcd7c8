"""Quantized tensors to a GGUF and from one, with the `gguf` package on the other side."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGUFValueType

from quantkit.errors import CheckpointError, PlanRefusedError, UsageError
from quantkit.gguf import Field, load_tensor, open_gguf, save_tensors
from quantkit.kernels import FORMATS, QuantizedTensor

WEIGHTS = np.random.default_rng(3).standard_normal((2, 6, 512)).astype(np.float32)


@pytest.fixture(scope="module")
def tensors() -> dict[str, QuantizedTensor]:
    found = {f"{name}.weight": QuantizedTensor.quantize(WEIGHTS, name) for name in FORMATS}
    return found | {"norm.weight": found["f32.weight"][0, 1], "part.weight": found["q4_k.weight"][:, 1:4]}


@pytest.fixture(scope="module")
def file(tensors: dict[str, QuantizedTensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tensors.gguf"
    save_tensors(path, tensors)
    return path


def test_read_back_as_they_were(file: Path, tensors: dict[str, QuantizedTensor]) -> None:
    content = open_gguf(file)
    assert [tensor.name for tensor in content.tensors] == list(tensors)
    for name, tensor in tensors.items():
        for source in (file, str(file), content):
            again = load_tensor(source, name)
            assert (again.format, again.shape) == (tensor.format, tensor.shape)
            assert np.array_equal(again.packed, tensor.packed)


def test_the_package_reads_them(file: Path, tensors: dict[str, QuantizedTensor]) -> None:
    read = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    assert list(read) == list(tensors)
    for name, tensor in tensors.items():
        assert read[name].tensor_type.name.lower() == tensor.format
        assert np.array_equal(gguf.dequantize(read[name].data, read[name].tensor_type), tensor.dequantize()), name


def test_the_package_writes_them(tmp_path: Path) -> None:
    path = tmp_path / "peer.gguf"
    writer = gguf.GGUFWriter(path, "llama4")
    packed = gguf.quantize(WEIGHTS, gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("experts.weight", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("half.weight", WEIGHTS[0].astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert np.array_equal(load_tensor(path, "experts.weight")[1, 2:4].packed, packed[1, 2:4])
    assert np.array_equal(load_tensor(path, "half.weight").dequantize(np.float16), WEIGHTS[0].astype(np.float16))


def test_of_a_file_only_what_is_wanted_is_read(tmp_path: Path) -> None:
    """Ten gigabytes of experts in a file with holes, of which one row is looked at."""
    path = tmp_path / "large.gguf"
    save_tensors(path, {"x": QuantizedTensor(np.zeros((2, 6, 144), np.uint8), "q4_k")})
    header = path.read_bytes()[: open_gguf(path).tensors[0].offset_bytes]
    dims, large = np.array([256, 6, 2], np.uint64).tobytes(), np.array([256, 1 << 16, 1 << 10], np.uint64).tobytes()
    assert header.count(dims) == 1
    with path.open("wb") as out:
        out.write(header.replace(dims, large))
        out.truncate(len(header) + 144 * (1 << 26))
    experts = load_tensor(path, "x")
    assert experts.nbytes == 144 << 26
    assert not experts[1023, -1].dequantize().any()


def test_fields_are_written(file: Path, tensors: dict[str, QuantizedTensor], tmp_path: Path) -> None:
    assert open_gguf(file).fields["general.architecture"].value == "unknown"
    fields = [Field("general.architecture", "llama4", GGUFValueType.STRING), Field("my.n", 3, GGUFValueType.UINT32)]
    save_tensors(tmp_path / "x.gguf", {"a": tensors["q8_0.weight"]}, fields)
    found = open_gguf(tmp_path / "x.gguf").fields
    assert (found["general.architecture"].value, found["my.n"].value) == ("llama4", 3)


def test_a_tensor_that_is_not_there(file: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no tensor 'q4_k\.weights'\nDid you mean q4_k\.weight"):
        load_tensor(file, "q4_k.weights")
    with pytest.raises(UsageError, match=r"no tensor 'zzzzz'\n`quantkit inspect` lists the tensors"):
        load_tensor(file, "zzzzz")


def test_a_type_that_is_not_decoded(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "i32.gguf", "x")
    writer.add_tensor("ids", np.arange(4, dtype=np.int32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UsageError, match="ids is of type i32, which quantkit does not decode"):
        load_tensor(tmp_path / "i32.gguf", "ids")


def test_a_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match=r"x\.gguf"):
        load_tensor(tmp_path / "x.gguf", "a")


def test_what_gguf_cannot_hold_leaves_no_file(tensors: dict[str, QuantizedTensor], tmp_path: Path) -> None:
    with pytest.raises(PlanRefusedError, match="63 bytes"):
        save_tensors(tmp_path / "x.gguf", {"n" * 64: tensors["q8_0.weight"]})
    assert not list(tmp_path.iterdir())
