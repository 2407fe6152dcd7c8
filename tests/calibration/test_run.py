"""A calibration from text to file: same bytes for any number of threads, refused before anything is computed."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.kernels.blas import numpy_blas_threads
from tests.llama4 import checkpoints

import quantkit
from quantkit import calibration
from quantkit.calibration import Collector, Cost, Progress, documents, token_source
from quantkit.calibration.collector import statistics_bytes
from quantkit.checkpoint import open_checkpoint
from quantkit.errors import NonFiniteError, PlanRefusedError, QuantkitError, UsageError
from quantkit.gguf import merge_imatrix, read_imatrix
from quantkit.llama4.forward import Inputs, Matrix, Stream, open_weights

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "data" / "tiny-llama4"
TEXT = ROOT / "LICENSE"
DEFAULT = Path(calibration.__file__).parent / "default" / "text.jsonl"


def run(out: Path, **options: Any) -> Any:
    return quantkit.calibrate(TINY, out, **{"text": [TEXT], "context": 64, "tokens": 1024, "threads": 2, **options})


def test_without_text_that_of_quantkit_is_read(tmp_path: Path) -> None:
    run(tmp_path / "a.gguf", text=None)
    run(tmp_path / "b.gguf", text=[DEFAULT])
    mine, given = (read_imatrix(tmp_path / f"{name}.gguf") for name in "ab")
    assert (mine.datasets, given.datasets) == (("quantkit-default-2",), (str(DEFAULT),))
    for name, entry in mine.entries.items():
        np.testing.assert_array_equal(entry.sums, given.entries[name].sums)
    assert merge_imatrix([mine, given]).datasets == ("quantkit-default-2", str(DEFAULT))


def test_threads_and_memory_do_not_show(tmp_path: Path) -> None:
    costs: list[Cost] = []
    files = []
    weights = open_weights(TINY)
    statistics = statistics_bytes(weights.hp)
    weights.close()
    for number, options in enumerate([{"threads": 1}, {"threads": 2}, {"threads": 3}, {"threads": 1}]):
        out = tmp_path / f"{number}.gguf"
        limit = costs[0].peak_ram_bytes - 1 if number == 3 else None
        run(out, announce=costs.append, max_ram_bytes=limit, **options)
        files.append(out.read_bytes())
    assert files[1:] == files[:1] * 3
    assert [cost.states_in_memory for cost in costs] == [True, True, True, False]
    assert costs[0].states_bytes == 1024 * 256 * 4
    assert costs[0].peak_ram_bytes > statistics + costs[0].states_bytes
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{number}.gguf" for number in range(4)]


def test_every_sum_is_that_of_the_inputs(tmp_path: Path) -> None:
    result = run(tmp_path / "a.gguf")
    with open_checkpoint(TINY) as cp:
        chunks = token_source(cp, documents([TEXT]), context=64).take(16)

    class Kept(Collector):
        def __init__(self, hp: Any) -> None:
            super().__init__(hp)
            self.seen: list[tuple[str, np.ndarray, np.ndarray]] = []

        def inputs(self, seen: Inputs) -> None:
            if seen.expert == 1 and seen.weights is not None:
                self.seen.append((seen.tensors[0], seen.x.astype(np.float64), seen.weights.astype(np.float64)))

    weights = open_weights(TINY)
    kept = Kept(weights.hp)
    with Stream(weights, chunks, observer=kept, threads=1) as stream:
        stream.run()
    weights.close()
    read = read_imatrix(tmp_path / "a.gguf", inputs=True)
    assert (read.datasets, read.chunk_count, read.chunk_size) == ((str(TEXT),), 16, 64)
    for name in ("blk.2.ffn_gate_exps.weight", "blk.2.ffn_down_exps.weight"):
        x = np.concatenate([x for tensor, x, _ in kept.seen if tensor == name])
        w = np.concatenate([w for tensor, _, w in kept.seen if tensor == name])
        entry = result.imatrix.entries[name]
        assert entry.counts[1] == len(x)
        np.testing.assert_allclose(entry.sums[1], np.square(x).sum(0), rtol=1e-12)
        np.testing.assert_allclose(entry.inputs[1], x.sum(0), rtol=1e-12, atol=1e-9)
        np.testing.assert_allclose([entry.router_sums[1], entry.router_squares[1]], [w.sum(), (w * w).sum()])
        np.testing.assert_array_equal(read.entries[name].sums, entry.sums.astype(np.float32))
        assert read.entries[name].inputs is not None


def test_the_sum_of_the_statistics_fits_the_estimate(tmp_path: Path) -> None:
    """What is held and what writing adds, for a model with dense layers too."""
    folder = checkpoints.build(tmp_path / "model", layers=4, experts=8, moe_step=2)
    weights = open_weights(folder)
    collector = Collector(weights.hp)
    with Stream(weights, np.arange(40).reshape(1, 40), observer=collector) as stream:
        stream.run()
    weights.close()
    entries = collector.imatrix((), 1, 40).entries
    held = {id(entry.sums): 16 * entry.sums.size for entry in entries.values()}
    written = sum(8 * entry.sums.size for entry in entries.values())
    assert statistics_bytes(weights.hp) == pytest.approx(sum(held.values()) + written, rel=0.02)


def test_rounds_add_up_to_one_run_over_all_their_tokens(tmp_path: Path) -> None:
    reports: list[Progress] = []
    result = run(tmp_path / "a.gguf", min_tokens_per_expert=10**6, max_tokens=3072, progress=reports.append)
    assert [one.tokens for one in result.rounds] == [1024, 1024, 1024]
    assert (result.ending, result.tokens, len(result.short)) == ("max-tokens", 3072, 16)
    ends = [report for report in reports if report.done_tokens == report.total_tokens]
    assert {report.round for report in ends} == {1, 2, 3}
    assert all(report.total_tokens == 4096 for report in reports)
    whole = run(tmp_path / "b.gguf", tokens=3072)
    assert len(whole.rounds) == 1
    for name, entry in whole.imatrix.entries.items():
        mine = result.imatrix.entries[name]
        np.testing.assert_array_equal(mine.counts, entry.counts)
        np.testing.assert_allclose(mine.sums, entry.sums, rtol=1e-5)
    merged = merge_imatrix([read_imatrix(tmp_path / "a.gguf"), read_imatrix(tmp_path / "b.gguf")])
    assert merged.chunk_count == 96


def test_the_floor_ends_it(tmp_path: Path) -> None:
    first = run(tmp_path / "a.gguf")
    least = min(entry.counts.min() for name, entry in first.imatrix.entries.items() if "_exps" in name)
    result = run(tmp_path / "b.gguf", min_tokens_per_expert=int(least) + 1)
    assert (result.ending, result.short) == ("floor", ())
    assert 1 < len(result.rounds) <= 4
    assert result.rounds[0].short > 0
    assert len(run(tmp_path / "c.gguf", min_tokens_per_expert=int(least)).rounds) == 1


def test_four_times_the_tokens_are_the_most(tmp_path: Path) -> None:
    costs: list[Cost] = []
    result = run(tmp_path / "a.gguf", tokens=256, min_tokens_per_expert=10**6, announce=costs.append)
    assert (result.ending, [one.tokens for one in result.rounds]) == ("max-tokens", [256] * 4)
    assert costs[0].max_tokens == 4 * 256


def test_the_end_of_the_text_ends_it(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT.read_text()[:6000])
    result = run(tmp_path / "a.gguf", text=[text], min_tokens_per_expert=10**6, max_tokens=10**6)
    whole = run(tmp_path / "b.gguf", text=[text], tokens=None)
    assert result.ending == "text"
    assert result.tokens == whole.tokens > 1024


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"text": []}, "--text"),
        ({"tokens": 63}, "one chunk"),
        ({"context": 1}, "context"),
        ({"context": 10**6, "tokens": None}, "do not fill one chunk"),
        ({"tokens": None, "min_tokens_per_expert": 5}, "--tokens"),
        ({"max_tokens": 512, "min_tokens_per_expert": 5}, "at most"),
        ({"max_tokens": 4096}, "--min-tokens-per-expert"),
        ({"format": "npz"}, "npz"),
    ],
)
def test_usage(options: dict[str, Any], word: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        run(tmp_path / "a.gguf", **options)
    assert word in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_too_little_memory_and_existing_output_are_refused(tmp_path: Path) -> None:
    for limit in (1000, 50_000_000):
        with pytest.raises(PlanRefusedError, match="memory"):
            run(tmp_path / "a.gguf", max_ram_bytes=limit)
    (tmp_path / "a.gguf").write_text("mine")
    with pytest.raises(PlanRefusedError, match="exists"):
        run(tmp_path / "a.gguf")
    assert (tmp_path / "a.gguf").read_text() == "mine"
    run(tmp_path / "a.gguf", force=True, format="dat")
    assert read_imatrix(tmp_path / "a.gguf").legacy


def test_an_input_that_is_not_finite_names_tensor_and_expert() -> None:
    weights = open_weights(TINY)
    collector = Collector(weights.hp)
    weights.close()
    x = np.full((2, 256), np.inf, np.float32)
    with pytest.raises(QuantkitError, match=r"blk\.1\.ffn_gate_exps\.weight, expert 2") as caught:
        collector.inputs(Inputs(1, ("blk.1.ffn_gate_exps.weight",), x, np.arange(2), 2, np.ones(2, np.float32)))
    assert isinstance(caught.value, NonFiniteError)


def test_each_layer_is_told_of_however_fast_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A report that raises stops the run where the next one goes on."""
    monkeypatch.setattr("quantkit.calibration.watch.Watch.INTERVAL_SECONDS", 10**6)
    reports: list[Progress] = []
    run(tmp_path / "a.gguf", progress=reports.append)
    assert [(one.layer, one.done_tokens) for one in reports] == [(layer, 1024 * layer) for layer in range(5)]


def test_threads_bound_those_of_blas_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever a matrix is multiplied, by whatever thread of ours, BLAS has one thread."""
    seen: set[tuple[str, int]] = set()
    product = Matrix.multiply

    def watched(self: Matrix, *arguments: Any) -> None:
        blas = numpy_blas_threads()
        names = [thread.name for thread in threading.enumerate() if thread.name.startswith("quantkit-work")]
        seen.update({("blas", n) for n in blas} | {("ours", len(names) + 1)})
        product(self, *arguments)

    monkeypatch.setattr(Matrix, "multiply", watched)
    for threads in (1, 3):
        seen.clear()
        run(tmp_path / f"{threads}.gguf", tokens=512, threads=threads)
        assert {n for kind, n in seen if kind == "blas"} == {1}
        assert max(n for kind, n in seen if kind == "ours") <= threads
