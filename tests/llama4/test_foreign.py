"""Types that only the `gguf` package decodes: a file of llama.cpp's runs through the stream as its decoded twin."""

from __future__ import annotations

from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import pytest
from tests.drift.files import as_float, changed, converted
from tests.oracle import llama

from quantkit.errors import UsageError
from quantkit.gguf import open_gguf
from quantkit.kernels import FORMATS, QuantizedTensor
from quantkit.llama4.forward import Stream, foreign, open_weights


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("foreign")
    base = converted(folder, ["bf16"])["bf16"]
    path = llama.quantize(base, folder / "iq3_s.gguf", llama_cpp.LLAMA_FTYPE_MOSTLY_IQ3_S)
    return path, as_float(path, folder / "f32.gguf")


def test_matrices_are_those_of_the_package(files: tuple[Path, Path]) -> None:
    foreign_types = {tensor.type for tensor in open_gguf(files[0]).tensors} - set(FORMATS)
    assert "iq3_s" in foreign_types
    weights, twin = (open_weights(path) for path in files)
    for tensor in open_gguf(files[0]).tensors:
        if tensor.type not in FORMATS:
            expert = 2 if len(tensor.shape) == 3 else None
            (matrix,), (wanted,) = (one.matrices([tensor.name], expert) for one in (weights, twin))
            np.testing.assert_array_equal(matrix.tensor.dequantize(), wanted.tensor.dequantize())
            assert weights.n_bytes(tensor.name) == matrix.packed.nbytes
            rows = weights.rows(tensor.name, 3, 9)
            np.testing.assert_array_equal(rows.packed, twin.rows(tensor.name, 3, 9).packed)
    assert weights.reading_bytes > 0 == twin.reading_bytes


def test_logits_are_those_of_the_decoded_twin(files: tuple[Path, Path]) -> None:
    tokens = np.random.default_rng(0).integers(0, 900, (2, 40))
    logits = []
    for path in files:
        weights = open_weights(path)
        with Stream(weights, tokens, threads=2) as stream:
            stream.run()
            logits.append(stream.logits())
        weights.close()
    # types that are ours are decoded in other pieces than float32 is multiplied in
    np.testing.assert_allclose(logits[0], logits[1], rtol=0, atol=2e-4)


def test_in_blocks_of_rows() -> None:
    rng = np.random.default_rng(1)
    packed = gguf.quants.quantize(rng.normal(size=(5000, 512)).astype(np.float32), gguf.GGMLQuantizationType.TQ1_0)
    whole = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType.TQ1_0)
    np.testing.assert_array_equal(foreign.decoded(packed, "tq1_0", 512), whole)
    assert foreign.row_bytes("tq1_0", 512) == packed.shape[1]


def test_what_nobody_decodes_is_named(files: tuple[Path, Path], tmp_path: Path) -> None:
    assert not foreign.is_known("q8_1")
    assert not foreign.is_known("i32")
    base = converted(tmp_path, ["q8_0"])["q8_0"]

    def renamed(tensor: QuantizedTensor) -> QuantizedTensor:
        return QuantizedTensor.quantize(np.zeros(tensor.shape, np.float32), "f32")

    path = changed(base, tmp_path / "f32.gguf", tensors={"blk.1.attn_q.weight": renamed})
    data = path.read_bytes()
    name = b"blk.1.attn_q.weight"
    at = data.index(name) + len(name) + 4 + 2 * 8  # dimensions, their count before them
    assert int.from_bytes(data[at : at + 4], "little") == gguf.GGMLQuantizationType.F32
    path.write_bytes(data[:at] + int(gguf.GGMLQuantizationType.I32).to_bytes(4, "little") + data[at + 4 :])
    with pytest.raises(UsageError, match=r"blk\.1\.attn_q\.weight is i32, which quantkit does not decode"):
        open_weights(path)
