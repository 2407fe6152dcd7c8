"""Two files against each other: the same bytes, the layer and the tensor that lose the gap."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.drift.files import PROSE, TINY, changed, converted

import quantkit
from quantkit.cli import app
from quantkit.errors import UsageError
from quantkit.gguf import load_tensor, open_gguf
from quantkit.kernels import QuantizedTensor

DOWN = "blk.2.ffn_down_exps.weight"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """q6_k, and the same file but for one tensor, which is q2_k."""
    folder = tmp_path_factory.mktemp("compare")
    found = converted(folder, ["q6_k", "bf16"])

    def coarse(tensor: QuantizedTensor) -> QuantizedTensor:
        return QuantizedTensor.quantize(load_tensor(open_gguf(found["bf16"]), DOWN).dequantize(), "q2_k")

    return found | {"coarse": changed(found["q6_k"], folder / "coarse.gguf", tensors={DOWN: coarse})}


@pytest.mark.parametrize("turned", [False, True])
def test_the_tensor_and_the_layer_that_lose_the_gap_are_named(turned: bool, files: dict[str, Path]) -> None:
    order = [files["q6_k"], files["coarse"]][:: -1 if turned else 1]
    found = quantkit.compare(*order, TINY, text=PROSE, tokens=4096, context=256, threads=2)
    (tensor,) = found.tensors
    assert (tensor.name, tensor.layer) == (DOWN, 2)
    assert set(tensor.types) == {"q6_k", "q2_k"}
    assert tensor.types[1 - turned] == "q2_k"
    assert tensor.better == ("second" if turned else "first")
    assert tensor.relative_errors[1 - turned] > 10 * tensor.relative_errors[turned]
    assert found.same == len(open_gguf(files["q6_k"]).tensors) - 1
    worst = max(found.layers, key=lambda layer: layer.share)
    assert worst.layer == 2
    assert worst.share > 0.95
    assert (worst.gap > 0) != turned
    assert sum(layer.share for layer in found.layers) == pytest.approx(1)
    assert found.difference is not None
    assert found.difference.told_apart
    assert (found.difference.kld > 0) != turned
    assert "coarse.gguf has drifted further than q6_k.gguf" in found.statement
    assert f"lost in layer 2, where {DOWN} is q2_k" in found.statement


def test_without_text_weights_tell(files: dict[str, Path]) -> None:
    found = quantkit.compare(files["q6_k"], files["coarse"], files["bf16"], threads=2)
    assert found.difference is None
    assert max(found.layers, key=lambda layer: layer.share).layer == 2
    assert [layer.share for layer in found.layers if layer.layer != 2] == [0] * 3
    assert "of 1 tensors that differ q6_k.gguf is nearer to the reference in 1, coarse.gguf in 0" in found.statement
    assert found.drift.candidates[0].tensors


def test_the_same_file_is_the_same(files: dict[str, Path]) -> None:
    found = quantkit.compare(files["q6_k"], files["q6_k"], TINY, text=PROSE, tokens=1024, threads=2)
    assert not found.tensors
    assert all(layer.gap == layer.share == 0 for layer in found.layers)
    assert "hold the same bytes in all" in found.statement


def test_command(files: dict[str, Path], tmp_path: Path) -> None:
    line = ["compare", str(files["q6_k"]), str(files["coarse"]), "--reference", str(TINY), "--threads", "2"]
    shown = CliRunner().invoke(app, line)
    assert shown.exit_code == 0, shown.output
    assert DOWN in shown.output
    assert "lost in layer 2" in " ".join(shown.output.split())
    found = json.loads(CliRunner().invoke(app, [*line, "--json"]).stdout)
    assert [tensor["name"] for tensor in found["tensors"]] == [DOWN]
    assert found["schema"] == 1
    assert found["difference"] is None


def test_wrong_usage_is_named(files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        quantkit.compare(files["q6_k"], tmp_path / "absent.gguf", TINY)
    with pytest.raises(UsageError, match="it is no reference"):
        quantkit.compare(files["q6_k"], files["coarse"], files["q6_k"])
    missing = CliRunner().invoke(app, ["compare", str(files["q6_k"]), str(files["coarse"])])
    assert missing.exit_code == 2
    assert "--reference" in missing.output
