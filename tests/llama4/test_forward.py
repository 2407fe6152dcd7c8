"""The stream by itself: one origin or the other, one block or several, in memory or in a file."""

from __future__ import annotations

import threading
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.llama4 import checkpoints

import quantkit
from quantkit.checkpoint import Checkpoint, TensorEntry
from quantkit.errors import CheckpointError, NonFiniteError, PlanRefusedError, UnsupportedModelError, UsageError
from quantkit.gguf import load_tensor, open_gguf, save_tensors
from quantkit.kernels import QuantizedTensor
from quantkit.llama4 import Hyperparameters
from quantkit.llama4.forward import (
    Blocks,
    Inputs,
    Matrix,
    Observer,
    Outputs,
    Routing,
    Stream,
    Weights,
    estimate,
    open_weights,
)
from quantkit.llama4.forward.states import FileStates, States

TINY = Path(__file__).parents[1] / "data" / "tiny-llama4"
TOKENS = np.random.default_rng(0).integers(0, 990, (3, 70))
SMALL = {"attention_chunk_size": 32, "floor_scale": 8}


class Everything(Observer):
    """All that an observer is told, as copies."""

    def __init__(self) -> None:
        self.states: list[np.ndarray] = []
        self.inputs_seen: list[Inputs] = []
        self.routings: list[Routing] = []

    def inputs(self, seen: Inputs) -> None:
        self.inputs_seen.append(Inputs(seen.layer, seen.tensors, seen.x.copy(), seen.tokens, seen.expert, seen.weights))

    def routing(self, seen: Routing) -> None:
        self.routings.append(seen)

    def layer(self, layer: int, states: States) -> None:
        self.states.append(states.read(slice(0, states.shape[0])))


def run(path: Path, tokens: Any = TOKENS, hp: Hyperparameters | None = None, **options: Any) -> list[np.ndarray]:
    """Hidden states after each layer, and the logits."""
    seen = Everything()
    weights = open_weights(path, hp)
    with Stream(weights, tokens, observer=seen, **options) as stream:
        stream.run()
        found = [*seen.states, stream.logits()]
    weights.close()
    return found


def assert_same(one: list[np.ndarray], other: list[np.ndarray]) -> None:
    assert len(one) == len(other)
    for ours, theirs in zip(one, other, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def assert_close(one: list[np.ndarray], other: list[np.ndarray]) -> None:
    for ours, theirs in zip(one, other, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


def build(folder: Path, **options: Any) -> Path:
    text = {**SMALL, **options.pop("text_config", {})}
    sizes = {"hidden": 96, "head_dim": 32, "expert_width": 64, "dense_width": 160, "std": 0.08}
    return checkpoints.build(folder, text_config=text, **{**sizes, **options})


@pytest.mark.parametrize(
    ("options", "recipe"),
    [
        ({"rope_scaling": checkpoints.SCOUT_ROPE_SCALING}, "bf16"),
        ({"moe_step": 2, "tied": True, "experts_used": 2}, "bf16"),
        ({"unfused": True, "conditional": False}, "bf16"),
        ({"dtype": "F16"}, "f16"),
        ({"dtype": "F32"}, "f32"),
        ({"fp8": "[1]"}, "f32"),
        ({"fp8": "[out,1]", "unfused": True}, "f32"),
    ],
    ids=lambda value: "-".join(f"{key}" for key in value) if isinstance(value, dict) else value,
)
def test_checkpoint_and_its_gguf_are_bit_equal(options: dict[str, Any], recipe: str, tmp_path: Path) -> None:
    folder = build(tmp_path / "source", **options)
    path = tmp_path / "out.gguf"
    quantkit.convert(folder, path, [recipe], allow_mismatch=True, threads=2)
    weights = open_weights(folder)
    assert_same(run(path, hp=weights.hp), run(folder))


def test_trained_checkpoint_and_its_gguf_are_bit_equal_with_the_gguf_s_own_keys(tmp_path: Path) -> None:
    path = tmp_path / "out.gguf"
    quantkit.convert(TINY, path, ["bf16"], threads=2)
    assert_same(run(path), run(TINY))


def test_quantized_weights_are_multiplied_as_decoded(tmp_path: Path) -> None:
    path, decoded = tmp_path / "q4_k_m.gguf", tmp_path / "decoded.gguf"
    quantkit.convert(TINY, path, ["q4_k_m"], threads=2)
    file = open_gguf(path)
    tensors = {
        tensor.name: QuantizedTensor.quantize(load_tensor(file, tensor.name).dequantize(), "f32")
        for tensor in file.tensors
        if len(tensor.shape) > 1
    }
    norms = {tensor.name: tensor for tensor in file.tensors if len(tensor.shape) == 1}
    assert all(tensor.type == "f32" for tensor in norms.values())
    rows = {name: load_tensor(file, name) for name in norms}
    save_tensors(
        decoded, {**tensors, **rows}, [field for field in file.fields.values() if "tokenizer" not in field.key]
    )
    assert {tensor.type for tensor in file.tensors} > {"q4_k", "q6_k"}
    ours = run(path)
    assert_close(ours, run(decoded))
    assert np.abs(ours[-1] - run(TINY)[-1]).max() > 0.05  # and they are not the original's


@pytest.mark.parametrize("blocks", [Blocks(7, 3, 5), Blocks(64, 16, 200), Blocks(1000, 1, 1)], ids=str)
@pytest.mark.parametrize("experts_used", [1, 2])
def test_blocks_change_nothing_but_rounding(blocks: Blocks, experts_used: int, tmp_path: Path) -> None:
    folder = build(tmp_path / "source", experts_used=experts_used, moe_step=2)
    assert_close(run(folder, blocks=blocks), run(folder))


def test_same_bits_twice_and_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = build(tmp_path / "source", experts_used=2)
    once = run(folder, blocks=Blocks(32))
    assert_same(run(folder, blocks=Blocks(32)), once)
    weights = open_weights(folder)
    memory = estimate(weights, *TOKENS.shape, Blocks(32), 2)
    assert memory.states == 2 * TOKENS.size * 96 * 4
    files = []
    original = FileStates.__init__

    def note(self: FileStates, *arguments: Any) -> None:
        files.append(arguments)
        original(self, *arguments)

    monkeypatch.setattr(FileStates, "__init__", note)
    options = {"blocks": Blocks(32), "folder": tmp_path, "threads": 2}
    assert_same(run(folder, **options, max_ram_bytes=memory.states + memory.working), once)
    assert not files
    assert_same(run(folder, **options, max_ram_bytes=memory.states + memory.working - 1), once)
    assert set(files) == {(TOKENS.size, 96, tmp_path)}
    assert [path.name for path in tmp_path.iterdir()] == ["source"]  # the file has no name
    with pytest.raises(PlanRefusedError, match="beside hidden states"):
        run(folder, **options, max_ram_bytes=memory.working - 1)


def test_same_bits_for_any_number_of_threads(tmp_path: Path) -> None:
    folder = build(tmp_path / "source", moe_step=2, hidden=256)
    once = run(folder, threads=1)
    for threads in (2, 3, 0):
        assert_same(run(folder, threads=threads), once)


def test_sequences_do_not_see_each_other(tmp_path: Path) -> None:
    together = run(TINY)[-1].reshape(*TOKENS.shape, -1)
    for sequence, logits in zip(TOKENS, together, strict=True):
        np.testing.assert_allclose(run(TINY, sequence[None])[-1], logits, atol=2e-4)


def test_observer_sees_every_token_once_at_every_matrix(tmp_path: Path) -> None:
    folder = build(tmp_path / "source", experts_used=2, moe_step=2, experts=5)
    seen = Everything()
    weights = open_weights(folder)
    with Stream(weights, TOKENS, observer=seen, blocks=Blocks(50)) as stream:
        stream.run()
    routed: dict[str, list[tuple[int, int]]] = {}
    for item in seen.inputs_seen:
        assert item.x.shape[0] == len(item.tokens)
        for tensor in item.tensors:
            assert tensor.startswith(f"blk.{item.layer}.")
            assert item.x.shape[1] == weights.matrices([tensor], item.expert)[0].tensor.shape[1]
            assert ("_exps" in tensor) == (item.expert is not None) == (item.weights is not None)
            where = -1 if item.expert is None else item.expert
            routed.setdefault(tensor, []).extend((token, where) for token in item.tokens.tolist())
    n = TOKENS.size
    matrices = {tensor for tensor in routed if "_exps" not in tensor}
    assert len(matrices) == 4 * 4 + 2 * 4 + 2 * 3  # attention, shared and router, dense
    assert all(sorted(token for token, _ in routed[tensor]) == list(range(n)) for tensor in matrices)
    for layer in (1, 3):
        chosen = [
            (token, expert)
            for item in seen.routings
            if item.layer == layer
            for token, experts in zip(item.tokens.tolist(), item.experts.tolist(), strict=True)
            for expert in experts
        ]
        assert len(set(chosen)) == 2 * n
        for kind in ("gate", "up", "down"):
            assert sorted(routed[f"blk.{layer}.ffn_{kind}_exps.weight"]) == sorted(chosen)
    for item in seen.routings:
        best = np.sort(item.logits, axis=1)[:, ::-1][:, :2]
        np.testing.assert_array_equal(np.take_along_axis(item.logits, item.experts, axis=1), best)
        np.testing.assert_allclose(item.weights, 1 / (1 + np.exp(-best.astype(np.float64))), rtol=1e-6)


def test_weights_are_read_once_and_unused_experts_never(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = build(tmp_path / "source", experts=16, layers=2)
    read: dict[str, int] = {}
    original = Checkpoint.read_into

    def note(self: Checkpoint, entry: TensorEntry, buffer: memoryview, offset_bytes: int, n_bytes: int) -> None:
        read[entry.name] = read.get(entry.name, 0) + n_bytes
        original(self, entry, buffer, offset_bytes, n_bytes)

    monkeypatch.setattr(Checkpoint, "read_into", note)
    seen = Everything()
    weights = open_weights(folder)
    with Stream(weights, TOKENS[:1, :9], observer=seen, blocks=Blocks(4)) as stream:
        stream.run()
        assert not any("lm_head" in name for name in read)
        list(stream.logit_blocks(n_bytes=1 << 14))
    entries = Checkpoint(folder).tensors
    for layer in range(2):
        used = len({expert for item in seen.routings if item.layer == layer for expert in item.experts[:, 0].tolist()})
        assert 1 < used < 10
        name = f"language_model.model.layers.{layer}.feed_forward.experts.gate_up_proj"
        assert read[name] == used * entries[name].n_bytes // 16
    for name, entry in entries.items():
        if "experts." not in name and "embed_tokens" not in name:
            assert read[name] == entry.n_bytes
    assert read["language_model.model.embed_tokens.weight"] <= 9 * 96 * 2


def test_logit_blocks_cover_what_is_asked_for(tmp_path: Path) -> None:
    with Stream(open_weights(TINY), TOKENS, blocks=Blocks(64)) as stream:
        with pytest.raises(UsageError, match="layer 0 of 4 comes first"):
            stream.logits()
        stream.run()
        whole = stream.logits()
        pieces = np.full((100, 1024), np.nan, np.float32)
        for tokens, ids, logits in stream.logit_blocks(30, 130, n_bytes=1 << 16):
            assert logits.nbytes <= 1 << 16
            assert np.isnan(pieces[tokens.start - 30 : tokens.stop - 30, ids]).all()
            pieces[tokens.start - 30 : tokens.stop - 30, ids] = logits
        np.testing.assert_allclose(pieces, whole[30:130], atol=1e-4)
        with pytest.raises(UsageError, match="all 4 layers"):
            stream.advance()


@pytest.mark.parametrize("tokens", [[1, 2], [[]], [[0, 1024]], [[-1, 0]], [[0.5, 1.0]]], ids=str)
def test_tokens_that_are_none(tokens: Any) -> None:
    with pytest.raises(UsageError, match="tokens"):
        Stream(open_weights(TINY), tokens)


@pytest.mark.parametrize(
    ("text_config", "what"),
    [
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope_type is 'yarn'"),
        ({"attention_chunk_size": None}, "attention_chunk_size is null"),
    ],
)
def test_functions_that_are_not_computed(text_config: dict[str, Any], what: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=what):
        open_weights(build(tmp_path / "source", text_config=text_config))


def test_gguf_that_does_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "out.gguf"
    quantkit.convert(TINY, path, ["q8_0"], threads=2)
    file = open_gguf(path)
    fields = [field for field in file.fields.values() if "tokenizer" not in field.key]
    tensors = {tensor.name: load_tensor(file, tensor.name) for tensor in file.tensors}

    def written(name: str, content: dict[str, QuantizedTensor], keys: Any = fields) -> Path:
        save_tensors(tmp_path / name, content, keys)
        return tmp_path / name

    without = {name: tensor for name, tensor in tensors.items() if name != "blk.2.ffn_up_exps.weight"}
    with pytest.raises(CheckpointError, match=r"blk.2.ffn_up_exps.weight \[4, 256, 256\] is missing"):
        open_weights(written("missing.gguf", without))
    cut = {**tensors, "blk.1.attn_k.weight": tensors["blk.1.attn_k.weight"][:64]}
    with pytest.raises(CheckpointError, match=r"blk.1.attn_k.weight has shape \[64, 256\]"):
        open_weights(written("shape.gguf", cut))
    other = [field for field in fields if field.key != "general.architecture"]
    with pytest.raises(UnsupportedModelError, match=r"general.architecture"):
        open_weights(written("architecture.gguf", tensors, other))
    broken = tensors["blk.3.attn_v.weight"].packed.copy()
    broken[69, :2] = 0xFF  # the scale of row 69's first block: NaN
    content = {**tensors, "blk.3.attn_v.weight": QuantizedTensor(broken, "q8_0")}
    with pytest.raises(NonFiniteError, match=r"nan.gguf: blk.3.attn_v.weight, from row 48 on: .* at row 21, column 0"):
        run(written("nan.gguf", content))


def test_weights_that_are_not_finite_are_named_as_the_checkpoint_has_them(tmp_path: Path) -> None:
    folder = build(tmp_path / "source")
    entry = Checkpoint(folder).tensors["language_model.model.layers.2.feed_forward.shared_expert.up_proj.weight"]
    with entry.file.open("r+b") as file:
        file.seek(entry.offset_bytes + 2 * (96 * 3 + 7))
        file.write(b"\xc0\x7f")
    with pytest.raises(NonFiniteError, match=r"shared_expert.up_proj.weight\[3, 7\]"):
        run(folder)


@pytest.mark.parametrize("threads", [1, 3])
def test_an_observer_s_error_wins_over_the_product_s_and_ends_the_walk(threads: int, tmp_path: Path) -> None:
    """It looks at a product's inputs while that fails by itself."""
    path, wrong = tmp_path / "nan.gguf", "blk.1.attn_v.weight"
    quantkit.convert(TINY, path, ["q8_0"], threads=2)
    tensor = next(one for one in open_gguf(path).tensors if one.name == wrong)
    with path.open("r+b") as file:
        file.seek(tensor.offset_bytes)
        file.write(b"\xff\xff")  # the first block's scale: NaN
    with pytest.raises(NonFiniteError, match=wrong):
        run(path, threads=threads)

    class Refusing(Observer):
        def __init__(self, error: Exception) -> None:
            self.error, self.seen = error, list[int]()

        def inputs(self, seen: Inputs) -> None:
            self.seen.append(seen.layer)
            if wrong in seen.tensors:
                raise self.error

        def attention(self, layer: int, states: States) -> None:
            assert layer == 0

    for error in (NonFiniteError("inputs are not finite"), LookupError("the observer's")):
        observer, weights = Refusing(error), open_weights(path)
        stream = Stream(weights, TOKENS, observer=observer, threads=threads)
        with pytest.raises(type(error)) as caught, stream:
            stream.run()
        weights.close()
        assert caught.value is error
        assert observer.seen.count(1) == 1


@pytest.mark.parametrize("format", ["bf16", "q4_k"])
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_a_product_is_the_same_in_pieces(n: int, format: str) -> None:
    """A few rows of x, which have a product of their own, and more."""
    rng = np.random.default_rng(n)
    x = rng.standard_normal((n, 512), np.float32)
    whole = QuantizedTensor.quantize(rng.standard_normal((1100, 512), np.float32), format)
    matrix, out = Matrix("w", whole.packed, format), np.empty((n, 1100), np.float32)
    pieces = matrix.pieces()
    assert len(pieces) > 2
    for outputs in reversed(pieces):
        matrix.multiply(x, out, outputs)
    np.testing.assert_array_equal(out, whole.matmul(x))


def test_outputs_are_what_a_layer_adds_to_what_attention_left(tmp_path: Path) -> None:
    """With dense layers and two experts a token; and what an observer writes between the halves is gone on with."""
    folder = checkpoints.build(tmp_path / "model", layers=4, experts=4, experts_used=2, moe_step=2)

    class Adding(Observer):
        def __init__(self) -> None:
            self.sums: list[np.ndarray] = []

        def attention(self, layer: int, states: States) -> None:
            everything = slice(0, states.shape[0])
            states.write(everything, 2 * states.read(everything))
            self.sums.append(states.read(everything).astype(np.float64))

        def outputs(self, seen: Outputs) -> None:
            assert seen.expert is None or seen.layer % 2 == 1
            self.sums[seen.layer][seen.tokens] += seen.y

        def layer(self, layer: int, states: States) -> None:
            np.testing.assert_allclose(states.read(slice(0, states.shape[0])), self.sums[layer], rtol=1e-5, atol=1e-5)

    weights, seen = open_weights(folder), Adding()
    with Stream(weights, TOKENS, observer=seen) as stream:
        stream.run()
    weights.close()
    assert len(seen.sums) == 4


class Meeting(Observer):
    """Weights and observer of a stream, in which each weights' reading and the computing before it meet: the one waits
    until the other has begun. Whoever waits in vain gives up.
    """

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._begun: defaultdict[tuple[str, object], threading.Event] = defaultdict(threading.Event)
        self._chosen: dict[int, list[object]] = {}
        self.met: set[tuple[str, object]] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._weights, name)

    def matrices(self, names: list[str], expert: int | None = None, **options: Any) -> list[Matrix]:
        order, key = self._order(), self._key(names, expert)
        self._begun["reading", key].set()
        if key != order[0]:
            self._wait("computing", order[order.index(key) - 1])
        return self._weights.matrices(names, expert, **options)

    def routing(self, seen: Routing) -> None:
        self._chosen[seen.layer] = sorted({*self._chosen.get(seen.layer, []), *seen.experts.ravel().tolist()})

    def inputs(self, seen: Inputs) -> None:
        order, key = self._order(), self._key(list(seen.tensors), seen.expert)
        first = not self._begun["computing", key].is_set()
        self._begun["computing", key].set()
        if first and key != order[-1]:
            self._wait("reading", order[order.index(key) + 1])

    def _wait(self, what: str, key: object) -> None:
        if not self._begun[what, key].wait(30):
            raise AssertionError(f"{what} {key} has not begun")
        self.met.add((what, key))

    def _order(self) -> list[object]:
        """As far as routing is known: attention, what all tokens go through, and the chosen experts, of each layer."""
        n_layers = self._weights.hp.n_layers
        return [(n, part) for n in range(n_layers) for part in ("attn", "shared", *self._chosen.get(n, []))]

    @staticmethod
    def _key(names: list[str], expert: int | None) -> object:
        _, layer, name, _ = names[-1].split(".")
        part = "attn" if name.startswith("attn_") else "shared" if expert is None else expert
        return int(layer), part


def test_the_next_weights_are_read_while_the_ones_before_compute() -> None:
    meeting = Meeting(open_weights(TINY))
    with Stream(meeting, TOKENS, observer=meeting, threads=1) as stream:
        stream.run()
    n_experts = sum(map(len, meeting._chosen.values()))
    assert n_experts > 2 * 4
    assert len(meeting.met) == 2 * (2 * 4 + n_experts - 1)
