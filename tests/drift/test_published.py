"""Files as others publish them: types mixed by tensor, some without kernels here, an imatrix named, cut into splits."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
import pytest
from tests.drift.files import PROSE, as_float, converted
from tests.oracle.llama import quantize

import quantkit
from quantkit.errors import CheckpointError
from quantkit.gguf import open_gguf
from quantkit.kernels import FORMATS

OPTIONS: dict[str, Any] = {"text": PROSE, "context": 64, "tokens": 512, "threads": 2}
# One layer has what "dynamic" mixes give to a layer that matters more.
MIXED = [
    (r"blk\.1\.ffn_down_exps", int(gguf.GGMLQuantizationType.Q5_K)),
    (r"blk\.2\.ffn_gate_exps", int(gguf.GGMLQuantizationType.IQ3_XXS)),
    (r"blk\.3\.ffn_up_exps", int(gguf.GGMLQuantizationType.TQ2_0)),
    (r"ffn_.*_shexp", int(gguf.GGMLQuantizationType.Q6_K)),
]
CALIBRATED = {
    "quantize.imatrix.file": "imatrix.dat",
    "quantize.imatrix.dataset": "calibration.txt",
    "quantize.imatrix.entries_count": 48,
    "quantize.imatrix.chunks_count": 45,
}


def published(source: Path, out: Path, **options: Any) -> list[Path]:
    """A copy by the `gguf` package's own writer, with the keys of an imatrix; options split it."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(out, "llama4", **options)
    for field in open_gguf(source).fields.values():
        if field.key != "general.architecture":
            writer.add_key_value(field.key, field.value, field.type, field.sub_type)
    for key, value in CALIBRATED.items():
        (writer.add_string if isinstance(value, str) else writer.add_uint32)(key, value)  # type: ignore[operator]
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(out.parent.glob(f"{out.stem}*.gguf"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return converted(tmp_path_factory.mktemp("published"), ["bf16"])["bf16"]


@pytest.fixture(scope="module")
def mixed(base: Path) -> Path:
    rng = np.random.default_rng(0)
    importance = {
        tensor.name: rng.gamma(2, size=int(np.prod(tensor.shape)) // tensor.shape[-2]).astype(np.float32)
        for tensor in open_gguf(base).tensors
        if len(tensor.shape) > 1
    }
    ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_IQ2_XXS
    return quantize(base, base.parent / "ud-iq2_xxs.gguf", ftype, importance=importance, tensor_types=MIXED)


@pytest.mark.parametrize(
    "options", [{}, {"split_max_tensors": 20}, {"split_max_tensors": 20, "small_first_shard": True}]
)
def test_mixed_types_and_splits(options: dict[str, Any], base: Path, mixed: Path, tmp_path: Path) -> None:
    """However the file is cut, and whichever split is named, its figures are those of the whole."""
    paths = published(mixed, tmp_path / "model.gguf", **options)
    assert len(paths) == 1 if not options else len(paths) > 2
    whole, split = quantkit.drift(base, [mixed, paths[-1]], **OPTIONS).candidates
    assert {"iq2_xxs", "iq3_xxs", "tq2_0", "q5_k", "q6_k"} < set(split.types)
    assert set(split.types) - set(FORMATS)
    assert split.file == str(paths[0])
    assert split.bytes == sum(path.stat().st_size for path in paths)
    for name in ("kld", "perplexity", "top1_agreement", "routing", "layers", "tensors", "types"):
        assert getattr(split, name) == getattr(whole, name)


def test_figures_are_those_of_the_decoded_twin(base: Path, mixed: Path, tmp_path: Path) -> None:
    twin = as_float(mixed, tmp_path / "decoded.gguf")
    own, decoded = quantkit.drift(base, [mixed, twin], **OPTIONS).candidates
    assert own.kld is not None
    assert decoded.kld is not None
    assert own.kld.mean > 0.1
    assert own.kld.mean == pytest.approx(decoded.kld.mean, rel=1e-3)
    for one, other in zip(own.tensors, decoded.tensors, strict=True):
        assert one.error.relative_error == pytest.approx(other.error.relative_error, rel=1e-9)
    by_name = {tensor.name: tensor for tensor in own.tensors}
    assert by_name["blk.1.ffn_down_exps.weight"].type == "q5_k"
    assert by_name["blk.0.ffn_up_exps.weight"].type == "iq2_xxs"


def test_a_split_that_is_missing_is_named(base: Path, mixed: Path, tmp_path: Path) -> None:
    paths = published(mixed, tmp_path / "model.gguf", split_max_tensors=20)
    paths[1].unlink()
    with pytest.raises(CheckpointError, match=paths[1].name):
        quantkit.drift(base, [paths[0]], **OPTIONS)
    other = tmp_path / "renamed.gguf"
    shutil.copy(paths[0], other)
    with pytest.raises(CheckpointError, match="its name does not say so") as caught:
        quantkit.drift(base, [other], **OPTIONS)
    assert "NAME-00001-of-" in caught.value.hint


def test_a_type_of_the_future_is_named(base: Path, tmp_path: Path) -> None:
    path = converted(tmp_path, ["q8_0"])["q8_0"]
    data, name = path.read_bytes(), b"blk.1.attn_q.weight"
    at = data.index(name) + len(name) + 4 + 2 * 8  # dimensions, their count before them
    assert int.from_bytes(data[at : at + 4], "little") == gguf.GGMLQuantizationType.Q8_0
    path.write_bytes(data[:at] + (200).to_bytes(4, "little") + data[at + 4 :])
    with pytest.raises(CheckpointError, match=r"blk\.1\.attn_q\.weight is of the unknown tensor type 200") as caught:
        quantkit.drift(base, [path], **OPTIONS)
    assert "gguf package" in caught.value.hint
