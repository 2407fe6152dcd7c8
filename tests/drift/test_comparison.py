"""Two files against each other: the same bytes, the layer and the tensor that lose the gap."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.drift.files import PROSE, TINY, changed, converted

import quantkit
from quantkit.cli import app
from quantkit.drift.comparison import TensorDifference, _layers, _statement
from quantkit.errors import UsageError
from quantkit.gguf import load_tensor, open_gguf
from quantkit.kernels import QuantizedTensor

DOWN = "blk.2.ffn_down_exps.weight"
ENDS = {"token_embd.weight": "embedding", "output.weight": "output"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """q6_k, and the same file but for one tensor, which is q2_k."""
    folder = tmp_path_factory.mktemp("compare")
    found = converted(folder, ["q6_k", "bf16"])

    def as_q2_k(name: str) -> Callable[[QuantizedTensor], QuantizedTensor]:
        values = load_tensor(open_gguf(found["bf16"]), name).dequantize()
        return lambda tensor: QuantizedTensor.quantize(values, "q2_k")

    for name in (DOWN, *ENDS):
        path = folder / f"{name.partition('.')[0] if name in ENDS else 'coarse'}.gguf"
        found[path.stem] = changed(found["q6_k"], path, tensors={name: as_q2_k(name)})
    return found


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


@pytest.mark.parametrize("name", list(ENDS))
@pytest.mark.parametrize("turned", [False, True])
def test_embedding_and_output_lose_it_too(name: str, turned: bool, files: dict[str, Path]) -> None:
    order = [files["q6_k"], files[name.partition(".")[0]]][:: -1 if turned else 1]
    for options in ({"text": PROSE, "tokens": 4096, "context": 256}, {}):
        found = quantkit.compare(*order, TINY, threads=2, **options)
        assert [one.name for one in found.tensors] == [name]
        assert [one.name for one in found.layers] == ["embedding", *(f"layer {at}" for at in range(4)), "output"]
        worst = max(found.layers, key=lambda one: one.share)
        assert (worst.name, worst.layer, worst.share) == (ENDS[name], None, pytest.approx(1, abs=0.02))
        assert (worst.gap > 0) != turned
        loser = f"{name.partition('.')[0]}.gguf"
        assert f"of what {loser} loses is lost in the {ENDS[name]}, where {name} is q2_k" in found.statement
        if options:
            assert found.difference is not None
            assert found.difference.told_apart
            assert f"{loser} has drifted further than q6_k.gguf" in found.statement


def test_what_is_not_shown_is_not_attributed(files: dict[str, Path], tmp_path: Path) -> None:
    """One matrix is q8_0 and not q6_k: a real difference of weights, and four chunks, which show none of KLD."""
    name = "blk.0.attn_k.weight"
    values = load_tensor(open_gguf(files["bf16"]), name).dequantize()
    better = changed(
        files["q6_k"], tmp_path / "better.gguf", tensors={name: lambda tensor: QuantizedTensor.quantize(values, "q8_0")}
    )
    found = quantkit.compare(files["q6_k"], better, TINY, text=PROSE, tokens=256, context=64, threads=2)
    assert found.difference is not None
    assert not found.difference.told_apart
    assert [one.name for one in found.tensors] == [name]
    assert any(one.gap for one in found.layers)
    assert not any(one.share for one in found.layers)
    assert found.statement == found.difference.statement
    assert "cannot be told apart" in found.statement


def test_errors_that_go_the_other_way_explain_nothing(files: dict[str, Path]) -> None:
    """A KLD that says the opposite of what the parts err by themselves."""
    drift = quantkit.compare(
        files["q6_k"], files["coarse"], TINY, text=PROSE, tokens=4096, context=256, threads=2
    ).drift
    one, other = drift.candidates
    (difference,) = drift.differences
    assert any(layer.share for layer in _layers(one, other, difference))
    turned = replace(difference, kld=-difference.kld)
    layers = _layers(one, other, turned)
    assert not any(layer.share for layer in layers)
    tensor = TensorDifference(DOWN, 2, ("q6_k", "q2_k"), (2, 1), (0.01, 0.2), "first")
    assert _statement(["a", "b"], 1, [tensor], layers, turned).endswith("does not explain it")


def test_without_text_weights_tell(files: dict[str, Path]) -> None:
    found = quantkit.compare(files["q6_k"], files["coarse"], files["bf16"], threads=2)
    assert found.difference is None
    assert max(found.layers, key=lambda layer: layer.share).layer == 2
    assert [layer.share for layer in found.layers if layer.layer != 2] == [0] * 5
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
    assert found["schema"] == 2
    assert found["drift"]["command"] == shlex.join(["quantkit", *line, "--json"])
    assert found["difference"] is None


def test_wrong_usage_is_named(files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        quantkit.compare(files["q6_k"], tmp_path / "absent.gguf", TINY)
    with pytest.raises(UsageError, match="it is no reference"):
        quantkit.compare(files["q6_k"], files["coarse"], files["q6_k"])
    missing = CliRunner().invoke(app, ["compare", str(files["q6_k"]), str(files["coarse"])])
    assert missing.exit_code == 2
    assert "--reference" in missing.output
