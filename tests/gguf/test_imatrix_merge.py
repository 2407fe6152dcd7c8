"""Merged statistics are those of one run over all the text, whatever the order; what cannot be added up is refused."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.gguf.imatrix_file import write_imatrix_dat, write_imatrix_gguf

from quantkit.errors import CheckpointError, UsageError
from quantkit.gguf import Imatrix, ImatrixEntry, coverage, merge_imatrix, read_imatrix, write_imatrix
from quantkit.gguf.legacy_imatrix import read_legacy

EXPERTS = "blk.0.ffn_down_exps.weight"
MATRIX = "blk.0.attn_q.weight"


def collected(x: np.ndarray, ids: np.ndarray, w: np.ndarray, *, dataset: str, chunk_size: int) -> Imatrix:
    """The statistics of tokens x (n, cols) that went to experts `ids`, weighted by w."""
    hot = np.eye(3)[ids]
    scaled = x * w[:, None]
    return Imatrix(
        {
            EXPERTS: ImatrixEntry(hot.T @ scaled**2, hot.sum(axis=0), hot.T @ scaled, hot.T @ w, hot.T @ w**2),
            MATRIX: ImatrixEntry((x**2).sum(axis=0)[None], np.array([float(len(x))]), x.sum(axis=0)[None]),
        },
        (dataset,),
        len(x) // chunk_size,
        chunk_size,
    )


def assert_close(a: Imatrix, b: Imatrix) -> None:
    assert (set(a.datasets), a.chunk_count, a.chunk_size) == (set(b.datasets), b.chunk_count, b.chunk_size)
    assert set(a.entries) == set(b.entries)
    for name, entry in a.entries.items():
        other = b.entries[name]
        assert np.array_equal(entry.counts, other.counts)
        for field in ("sums", "inputs", "router_sums", "router_squares"):
            one, two = getattr(entry, field), getattr(other, field)
            assert (one is None) == (two is None)
            if one is not None:
                assert one.dtype == np.float64
                np.testing.assert_allclose(one, two, rtol=1e-13, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.lists(st.integers(1, 6), min_size=3, max_size=5))
def test_order_and_grouping_do_not_matter_and_the_whole_is_as_if_collected_at_once(
    seed: int, chunks: list[int]
) -> None:
    rng = np.random.default_rng(seed)
    n = 16 * sum(chunks)
    x, ids, w = rng.standard_normal((n, 7)) * 100, rng.integers(0, 3, n), rng.random(n)
    ends = np.cumsum([16 * count for count in chunks])
    parts = [
        collected(
            x[end - 16 * count : end],
            ids[end - 16 * count : end],
            w[end - 16 * count : end],
            dataset=f"text {i}",
            chunk_size=16,
        )
        for i, (end, count) in enumerate(zip(ends, chunks, strict=True))
    ]
    whole = merge_imatrix(parts)
    assert whole.datasets == tuple(f"text {i}" for i in range(len(parts)))
    assert_close(whole, merge_imatrix(parts[::-1]))
    assert_close(whole, merge_imatrix([merge_imatrix(parts[:2]), *parts[2:]]))
    assert_close(whole, merge_imatrix([parts[0], merge_imatrix(parts[1:])]))
    assert_close(merge_imatrix(parts[:1]), parts[0])
    at_once = collected(x, ids, w, dataset="text 0", chunk_size=16)
    assert_close(replace(whole, datasets=("text 0",)), at_once)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{i}.gguf" for i in range(len(parts))]
        for path, part in zip(paths, parts, strict=True):
            write_imatrix(path, part)
        read = merge_imatrix([read_imatrix(path, inputs=True) for path in paths])
        for name, entry in read.entries.items():
            assert np.array_equal(entry.counts, whole.entries[name].counts)
            np.testing.assert_allclose(entry.sums, whole.entries[name].sums, rtol=1e-7)
            np.testing.assert_allclose(entry.inputs, whole.entries[name].inputs, rtol=1e-5, atol=1e-4)


def imatrix(**changes: object) -> Imatrix:
    entries = {
        EXPERTS: ImatrixEntry(np.ones((2, 4)), np.ones(2)),
        MATRIX: ImatrixEntry(np.ones((1, 4)), np.ones(1)),
    }
    return replace(Imatrix(entries, ("a",), 10, 512, path=Path("first.gguf")), **changes)  # type: ignore[arg-type]


def test_chunks_of_other_sizes_keep_the_number_of_tokens() -> None:
    merged = merge_imatrix([imatrix(), imatrix(chunk_count=3, chunk_size=2048), imatrix(chunk_count=1, chunk_size=768)])
    assert (merged.chunk_count, merged.chunk_size) == (10 * 2 + 3 * 8 + 3, 256)
    assert merge_imatrix([imatrix(), imatrix()]).chunk_count == 20


def test_what_not_all_files_have_the_sum_has_not() -> None:
    entry = imatrix().entries[EXPERTS]
    with_it = replace(entry, inputs=np.ones((2, 4)), router_sums=np.ones(2), router_squares=np.ones(2))
    full = imatrix(entries={**imatrix().entries, EXPERTS: with_it})
    found = merge_imatrix([full, imatrix()]).entries[EXPERTS]
    assert (found.inputs, found.router_sums, found.router_squares) == (None, None, None)
    assert merge_imatrix([full, full]).entries[EXPERTS].router_sums is not None


def ones(experts: int, cols: int, counts: int) -> ImatrixEntry:
    return ImatrixEntry(np.ones((experts, cols)), np.ones(counts))


@pytest.mark.parametrize(
    ("name", "entry", "says"),
    [
        (
            EXPERTS,
            ones(2, 5, 2),
            r"second.gguf: blk.*down_exps.* 2 counts and 2 × 5 sums, and in first.gguf 2 and 2 × 4",
        ),
        (EXPERTS, ones(3, 4, 3), "3 counts and 3 × 4"),
        (EXPERTS, ones(2, 4, 1), "1 counts and 2 × 4"),
        ("blk.7.attn_q.weight", ones(1, 4, 1), r"first.gguf has no blk\.7\.attn_q\.weight, which second.gguf has"),
    ],
)
def test_other_tensors_are_refused_by_file_and_name(name: str, entry: ImatrixEntry, says: str) -> None:
    other = imatrix(entries={**imatrix().entries, name: entry}, path=Path("second.gguf"))
    with pytest.raises(CheckpointError, match=says):
        merge_imatrix([imatrix(), other])
    with pytest.raises(CheckpointError):
        merge_imatrix([other, imatrix()])


def test_estimates_and_dat_files_are_refused(tmp_path: Path) -> None:
    write_imatrix(tmp_path / "shrunk.gguf", imatrix().as_shrunk())
    raw = {EXPERTS: (np.ones((2, 4)), np.ones(2)), MATRIX: (np.ones((1, 4)), np.ones(1))}
    old = write_imatrix_dat(tmp_path / "old.dat", raw)
    good = read_imatrix(write_imatrix_gguf(tmp_path / "good.gguf", raw))
    for path, says in (
        (tmp_path / "shrunk.gguf", "shrunk.gguf is marked as shrunk"),
        (old, rf"old.dat is a .dat file.*{EXPERTS}"),
    ):
        for order in ([good, read_imatrix(path)], [read_imatrix(path), good], [read_imatrix(path)]):
            with pytest.raises(UsageError, match=says):
                merge_imatrix(order)
    with pytest.raises(UsageError, match="no imatrix to merge"):
        merge_imatrix([])


def test_dat_files_without_experts_are_added_up(tmp_path: Path) -> None:
    """As llama-imatrix's loader does it, `values[i] += stored[i] * chunk_size` and `counts += calls * chunk_size`: the
    sums and counts of the run, since every token comes to every matrix and chunks are whole."""
    rng = np.random.default_rng(0)
    raw = [
        {MATRIX: (rng.random((1, 8)) * 1e5, np.array([n])), "output.weight": (rng.random((1, 4)) * 1e3, np.array([n]))}
        for n in (256.0 * 3, 256.0 * 7)
    ]
    old = [read_imatrix(write_imatrix_dat(tmp_path / f"{i}.dat", one, chunk_size=256)) for i, one in enumerate(raw)]
    new = [read_imatrix(write_imatrix_gguf(tmp_path / f"{i}.gguf", one, chunk_size=256)) for i, one in enumerate(raw)]
    expected = merge_imatrix(new)
    for files in (old, [old[0], new[1]], [new[0], old[1]]):
        found = merge_imatrix(files, legacy_chunk_size=256)
        assert (found.legacy, found.chunk_size, found.chunk_count) == (False, 256, 14)
        for name, entry in expected.entries.items():
            np.testing.assert_array_equal(found.entries[name].counts, entry.counts)
            # the mean, its product with the calls and the sum in the GGUF are float32 each: 2**-24 three times
            np.testing.assert_allclose(found.entries[name].sums, entry.sums, rtol=3.01 * 2.0**-24)
    stored, n_calls = read_legacy(tmp_path / "0.dat")[0][MATRIX]
    alone = merge_imatrix(old[:1], legacy_chunk_size=256).entries[MATRIX]
    np.testing.assert_array_equal(alone.sums, stored.astype(np.float64) * 256)
    assert alone.counts.tolist() == [n_calls * 256]
    with pytest.raises(UsageError, match="chunks of 0"):
        merge_imatrix(old, legacy_chunk_size=0)


def test_coverage_counts_tokens_effective_sizes_and_shares() -> None:
    counts = np.array([30.0, 0.0, 10.0])
    squares = np.array([10.0, 0.0, 4.0])
    experts = ImatrixEntry(np.ones((3, 4)), counts, None, np.array([15.0, 0.0, 6.0]), squares)
    entries = {
        "blk.11.ffn_gate_exps.weight": experts,
        "blk.11.ffn_down_exps.weight": experts,
        "blk.2.ffn_gate_exps.weight": ImatrixEntry(np.zeros((3, 4)), np.zeros(3)),
        "blk.2.ffn_gate_shexp.weight": ImatrixEntry(np.ones((1, 4)), np.ones(1)),
        MATRIX: ImatrixEntry(np.ones((1, 4)), np.ones(1)),
    }
    second, eleventh = coverage(imatrix(entries=entries))
    assert (second.layer, eleventh.layer) == (2, 11)
    assert second.tokens.tolist() == second.shares.tolist() == second.effective.tolist() == [0, 0, 0]
    assert eleventh.tokens.tolist() == [30, 0, 10]
    assert eleventh.shares.tolist() == [0.75, 0, 0.25]
    assert eleventh.effective.tolist() == [22.5, 0, 9]  # (Σw)² / Σw²
    assert coverage(merge_imatrix([imatrix(entries=entries)] * 2))[1].tokens.tolist() == [60, 0, 20]


def test_weights_of_one_size_leave_the_counts_as_effective() -> None:
    counts = np.array([9.0, 4.0])
    entry = ImatrixEntry(np.ones((2, 4)), counts, None, counts * 0.7, counts * 0.7**2)
    np.testing.assert_allclose(entry.effective_counts, counts)
    assert ImatrixEntry(np.ones((2, 4)), counts).effective_counts.tolist() == [9, 4]
    assert coverage(imatrix(entries={EXPERTS: ImatrixEntry(np.ones((1, 8)), np.ones(1))})) == []
