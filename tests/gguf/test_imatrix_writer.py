"""Written imatrices: read back as they were, and by llama.cpp as it reads its own."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.convert.source import text_tensors
from tests.gguf.imatrix_file import write_imatrix_dat, write_imatrix_gguf
from tests.oracle import imatrix as oracle
from tests.oracle.llama import quantize

from quantkit.convert import convert
from quantkit.errors import CheckpointError, OutputError, UsageError
from quantkit.gguf import Imatrix, ImatrixEntry, read_imatrix, write_imatrix

TINY = Path(__file__).parents[1] / "data" / "tiny-llama4"
EXPERTS = "blk.0.ffn_down_exps.weight"


def floats(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.gamma(0.3, 10.0 ** rng.integers(-3, 4), shape).astype(np.float32).astype(np.float64)


@st.composite
def imatrices(draw: st.DrawFn) -> Imatrix:
    """Values that float32 holds, so that a file gives them back as they are."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    with_inputs, with_routers = draw(st.booleans()), draw(st.booleans())
    entries = {}
    for layer in range(draw(st.integers(1, 3))):
        for name, experts in (("attn_q", 1), ("ffn_down_exps", draw(st.integers(1, 5)))):
            cols = draw(st.integers(1, 40))
            counts = rng.integers(0, 10 ** rng.integers(0, 6) + 1, experts).astype(np.float64)
            counts[0] += 1
            sums = floats(rng, (experts, cols))
            sums[counts == 0] = 0
            routers = floats(rng, (experts,)) if with_routers else None
            entries[f"blk.{layer}.{name}.weight"] = ImatrixEntry(
                sums,
                counts,
                floats(rng, (experts, cols)) - 5.0 if with_inputs else None,
                routers,
                None if routers is None else (routers**2).astype(np.float32).astype(np.float64),
            )
    datasets = tuple(draw(st.lists(st.text("abcä/. ", min_size=1, max_size=9), max_size=3)))
    return Imatrix(entries, datasets, draw(st.integers(0, 2**32 - 1)), draw(st.integers(1, 4096)))


def assert_same(a: Imatrix, b: Imatrix) -> None:
    assert (a.datasets, a.chunk_count, a.chunk_size, a.legacy, a.shrunk) == (
        b.datasets,
        b.chunk_count,
        b.chunk_size,
        b.legacy,
        b.shrunk,
    )
    assert set(a.entries) == set(b.entries)
    for name, entry in a.entries.items():
        for field in ("sums", "counts", "inputs", "router_sums", "router_squares"):
            one, other = getattr(entry, field), getattr(b.entries[name], field)
            assert (one is None) == (other is None), field
            assert one is None or np.array_equal(one.astype(np.float32), other.astype(np.float32)), field


@settings(max_examples=40, deadline=None)
@given(imatrices(), st.booleans())
def test_a_gguf_holds_what_was_written(imatrix: Imatrix, shrunk: bool) -> None:
    if shrunk:
        imatrix = imatrix.as_shrunk()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stats.gguf"
        write_imatrix(path, imatrix)
        read = read_imatrix(path, inputs=True)
        assert_same(read, imatrix)
        assert read.path == path
        assert all(entry.inputs is None for entry in read_imatrix(path).entries.values())
        data = path.read_bytes()
        write_imatrix(path, read)
        assert path.read_bytes() == data
        loaded = oracle.load(path)  # by ggml's own reader
        assert (loaded.n_chunks, loaded.chunk_size) == (imatrix.chunk_count, imatrix.chunk_size)
        assert [name for name in loaded.datasets if name] == list(imatrix.datasets)
        assert set(loaded.entries) == set(imatrix.entries)
        for name, entry in imatrix.entries.items():
            assert np.array_equal(loaded.entries[name].sums, entry.sums.astype(np.float32))
            assert np.array_equal(loaded.entries[name].counts, entry.counts)


@settings(max_examples=40, deadline=None)
@given(imatrices())
def test_a_dat_file_holds_the_means(imatrix: Imatrix) -> None:
    imatrix = replace(imatrix, chunk_count=imatrix.chunk_count >> 1)  # int32 there
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stats.dat"
        write_imatrix(path, imatrix, legacy=True)
        read = read_imatrix(path)
        assert (read.legacy, read.chunk_count, read.datasets) == (True, imatrix.chunk_count, imatrix.datasets[-1:])
        assert list(read.entries) == sorted(imatrix.entries)
        for name, entry in imatrix.entries.items():
            seen = entry.counts > 0
            means = np.where(seen[:, None], entry.sums / np.maximum(entry.counts, 1)[:, None], 1)
            stored = read.entries[name]
            calls = -(-entry.counts.max() // imatrix.chunk_size)
            assert stored.counts.tolist() == [calls]
            np.testing.assert_allclose(stored.sums.ravel() / calls, means.ravel(), rtol=3e-7, atol=1e-37)


def test_files_are_the_same_as_those_of_llama_imatrix(tmp_path: Path) -> None:
    """Byte by byte, but for the order of nothing: keys, tensors, shapes, padding; and the .dat too."""
    rng = np.random.default_rng(4)
    counts = np.array([700.0, 0.0, 12.0])
    raw = {
        EXPERTS: (floats(rng, (3, 16)) * (counts > 0)[:, None], counts),
        "blk.0.attn_q.weight": (floats(rng, (1, 8)), counts[:1]),
    }
    theirs = write_imatrix_gguf(tmp_path / "theirs.gguf", raw, extra=False)
    write_imatrix(tmp_path / "ours.gguf", read_imatrix(theirs))
    assert (tmp_path / "ours.gguf").read_bytes() == theirs.read_bytes()

    old = write_imatrix_dat(tmp_path / "theirs.dat", dict(sorted(raw.items())))
    one_dataset = replace(read_imatrix(theirs), datasets=("wiki.txt",))
    write_imatrix(tmp_path / "ours.dat", one_dataset, legacy=True)
    assert (tmp_path / "ours.dat").read_bytes() == old.read_bytes()


def test_llama_quantize_weighs_with_a_written_file(tmp_path: Path) -> None:
    """With Σx and router weights beside the sums its output is that of the same numbers from a file of its own kind."""
    rng = np.random.default_rng(7)
    entries = {}
    for name, values in text_tensors(TINY).items():
        if values.ndim < 2 or not name.startswith("blk."):
            continue
        experts, cols = values.shape[0] if values.ndim == 3 else 1, values.shape[-1]
        counts = rng.integers(1, 900, experts).astype(np.float64)
        sums = floats(rng, (experts, cols)) * counts[:, None]
        entries[name] = ImatrixEntry(sums, counts, sums - 1, counts / 2, counts / 3)
    raw = Imatrix(entries, ("text",), 7, 512)
    write_imatrix(tmp_path / "ours.gguf", raw)
    write_imatrix_gguf(tmp_path / "theirs.gguf", {name: (entry.sums, entry.counts) for name, entry in entries.items()})
    convert(TINY, tmp_path / "bf16.gguf", "bf16", threads=2)
    ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M

    def quantized(name: str | None) -> dict[str, bytes]:
        weights = None if name is None else oracle.importance(oracle.load(tmp_path / name).entries)
        out = quantize(tmp_path / "bf16.gguf", tmp_path / "out.gguf", ftype, importance=weights)
        return {tensor.name: tensor.data.tobytes() for tensor in gguf.GGUFReader(out).tensors}

    ours = quantized("ours.gguf")
    assert ours == quantized("theirs.gguf")
    assert ours != quantized(None)
    write_imatrix(tmp_path / "shrunk.gguf", raw.as_shrunk())
    assert quantized("shrunk.gguf") != ours


def test_a_shrunk_file_gives_llama_quantize_what_convert_uses(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    counts = np.array([0.0, 3.0, 80.0, 4000.0])
    entries = {
        EXPERTS: ImatrixEntry(rng.gamma(0.5, 1, (4, 64)) * counts[:, None], counts),
        "blk.0.attn_q.weight": ImatrixEntry(rng.random((1, 8)), np.array([4083.0])),
        "blk.1.ffn_down_exps.weight": ImatrixEntry(np.zeros((4, 64)), np.zeros(4)),
    }
    write_imatrix(tmp_path / "raw.gguf", Imatrix(entries, ("text",), 8, 512))
    raw = read_imatrix(tmp_path / "raw.gguf")
    write_imatrix(tmp_path / "shrunk.gguf", raw.as_shrunk())
    shrunk = read_imatrix(tmp_path / "shrunk.gguf")
    assert shrunk.shrunk
    theirs = oracle.importance(oracle.load(tmp_path / "shrunk.gguf").entries)
    assert set(theirs) == {EXPERTS, "blk.0.attn_q.weight"}  # what saw nothing is not there
    for name, experts, cols in ((EXPERTS, 4, 64), ("blk.0.attn_q.weight", 1, 8)):
        expected = raw.importance(name, experts, cols)
        assert expected is not None
        np.testing.assert_allclose(theirs[name], expected, rtol=1e-6)
        np.testing.assert_allclose(
            shrunk.importance(name, experts, cols), expected, rtol=1e-6
        )  # and is not shrunk again
    assert (shrunk.entries[EXPERTS].counts > counts).all()
    with pytest.raises(UsageError, match="shrunk already"):
        shrunk.as_shrunk()
    write_imatrix(tmp_path / "shrunk.dat", shrunk, legacy=True)
    np.testing.assert_allclose(
        read_imatrix(tmp_path / "shrunk.dat").importance(EXPERTS, 4, 64), raw.importance(EXPERTS, 4, 64), rtol=1e-6
    )
    with pytest.raises(UsageError, match="no counts by expert to shrink by"):
        read_imatrix(tmp_path / "shrunk.dat").as_shrunk()


GOOD = ImatrixEntry(np.ones((2, 3)), np.ones(2))


@pytest.mark.parametrize(
    ("entry", "error", "says"),
    [
        (replace(GOOD, sums=np.full((2, 3), np.nan)), CheckpointError, "holds nan at index 0 of its sums"),
        (replace(GOOD, sums=np.full((2, 3), 1e39)), CheckpointError, "holds inf at index 0 of its sums"),
        (replace(GOOD, sums=np.full((2, 3), -1.0)), CheckpointError, "holds -1.0 at index 0 of its sums"),
        (replace(GOOD, counts=np.array([1, -1.0])), CheckpointError, "index 1 of its counts"),
        (replace(GOOD, inputs=np.full((2, 3), np.inf)), CheckpointError, "sums of inputs"),
        (replace(GOOD, router_sums=np.full(2, -1.0)), CheckpointError, "router_sum"),
        (replace(GOOD, counts=np.ones(3)), UsageError, r"sums of shape \(2, 3\) and counts of shape \(3,\)"),
        (replace(GOOD, inputs=np.ones((2, 4))), UsageError, r"of shape \(2, 4\), and of squares \(2, 3\)"),
        (replace(GOOD, router_squares=np.ones(3)), UsageError, "router_square_sum of shape"),
    ],
)
def test_what_no_reader_would_take_is_not_written(entry: ImatrixEntry, error: type, says: str, tmp_path: Path) -> None:
    path = tmp_path / "stats.gguf"
    with pytest.raises(error, match=says):
        write_imatrix(path, Imatrix({"good": GOOD, EXPERTS: entry}, (), 1, 512))
    assert not list(tmp_path.iterdir())


def test_nothing_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "stats"
    unseen = ImatrixEntry(np.zeros((2, 3)), np.zeros(2))
    with pytest.raises(UsageError, match="without entries"):
        write_imatrix(path, Imatrix({}, (), 1, 512))
    with pytest.raises(UsageError, match="no entry saw a token"):
        write_imatrix(path, Imatrix({EXPERTS: unseen}, (), 1, 512), legacy=True)
    with pytest.raises(UsageError, match="without a chunk size"):
        write_imatrix(path, Imatrix({EXPERTS: GOOD}, (), 1, 0), legacy=True)
    with pytest.raises(UsageError, match=r"came from a \.dat"):
        write_imatrix(path, Imatrix({EXPERTS: GOOD}, (), 1, 0, legacy=True))
    with pytest.raises(OutputError, match="nowhere"):
        write_imatrix(tmp_path / "nowhere" / "stats", Imatrix({EXPERTS: GOOD}, (), 1, 512))
    assert not list(tmp_path.iterdir())
