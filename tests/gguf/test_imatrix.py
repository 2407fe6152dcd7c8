"""Reading both formats: the same importances, and nothing malformed is believed."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from tests.gguf.imatrix_file import write_imatrix_dat, write_imatrix_gguf

from quantkit.errors import CheckpointError
from quantkit.gguf import read_imatrix, shrink

EXPERTS = "blk.0.ffn_down_exps.weight"
MATRIX = "blk.0.attn_q.weight"


def statistics() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(5)
    counts = np.array([1000.0, 0.0, 3.0, 512.0])
    sums = rng.random((4, 6)) * counts[:, None]
    return {EXPERTS: (sums, counts), MATRIX: (rng.random((1, 8)) * 1515, np.array([1515.0]))}


@pytest.mark.parametrize("write", [write_imatrix_gguf, write_imatrix_dat])
def test_the_importance_of_a_matrix_is_its_mean_square(tmp_path: Path, write: object) -> None:
    entries = statistics()
    imatrix = read_imatrix(write(tmp_path / "stats", entries))  # type: ignore[operator]
    assert set(imatrix.entries) == {EXPERTS, MATRIX}
    found = imatrix.importance(MATRIX, 1, 8)
    assert found is not None
    np.testing.assert_allclose(found, entries[MATRIX][0] / 1515, rtol=1e-6)
    assert imatrix.importance("blk.1.attn_q.weight", 1, 8) is None


def test_experts_are_shrunk_by_their_counts(tmp_path: Path) -> None:
    entries = statistics()
    sums, counts = entries[EXPERTS]
    found = read_imatrix(write_imatrix_gguf(tmp_path / "stats", entries)).importance(EXPERTS, 4, 6)
    assert found is not None
    assert (found.dtype, found.shape) == (np.float32, (4, 6))
    expected = shrink(sums.astype(np.float32), counts)
    np.testing.assert_allclose(found, expected.means, rtol=1e-6)
    np.testing.assert_allclose(found[1], expected.pooled, rtol=1e-6)  # which saw nothing
    distances = np.abs(found - sums / np.maximum(counts, 1)[:, None]).max(axis=1)
    assert distances[2] > 10 * distances[[0, 3]].max()  # three tokens, against hundreds


def test_a_dat_file_has_no_counts_to_shrink_by(tmp_path: Path) -> None:
    entries = statistics()
    found = read_imatrix(write_imatrix_dat(tmp_path / "stats", entries)).importance(EXPERTS, 4, 6)
    sums, counts = entries[EXPERTS]
    means = sums / np.where(counts > 0, counts, 1)[:, None]
    means[1] = means[[0, 2, 3]].mean(axis=0)  # the expert that saw nothing: the mean over the others
    assert found is not None
    np.testing.assert_allclose(found, means, rtol=1e-6)


def test_many_tokens_for_every_expert_leave_the_importance_as_it_is(tmp_path: Path) -> None:
    """As far as experts differ at all: here by a third, with 100,000 tokens each."""
    rng = np.random.default_rng(8)
    counts = rng.integers(80_000, 120_000, 16).astype(np.float64)
    means = rng.lognormal(0, 2, 256) * rng.gamma(9, 1 / 9, (16, 256))
    imatrix = read_imatrix(write_imatrix_gguf(tmp_path / "a.gguf", {EXPERTS: (means * counts[:, None], counts)}))
    found = imatrix.importance(EXPERTS, 16, 256)
    assert found is not None
    assert np.abs(found / means - 1).max() < 0.01
    assert np.abs(found / means - 1).mean() < 0.0005


def test_what_a_file_says_about_itself(tmp_path: Path) -> None:
    new = read_imatrix(write_imatrix_gguf(tmp_path / "a.gguf", statistics()))
    assert (new.datasets, new.chunk_count, new.chunk_size, new.legacy) == (("wiki.txt", "code.txt"), 7, 512, False)
    old = read_imatrix(write_imatrix_dat(tmp_path / "a.dat", statistics()))
    assert (old.datasets, old.chunk_count, old.chunk_size, old.legacy) == (("wiki.txt",), 7, 0, True)
    bare = read_imatrix(write_imatrix_dat(tmp_path / "b.dat", statistics(), trailer=False))
    assert (bare.datasets, bare.chunk_count) == ((), 0)


def test_sums_and_counts_are_exact(tmp_path: Path) -> None:
    entries = statistics()
    entry = read_imatrix(write_imatrix_gguf(tmp_path / "a.gguf", entries)).entries[EXPERTS]
    assert (entry.sums.dtype, entry.counts.dtype) == (np.float32, np.float64)  # sums as the file has them
    assert np.array_equal(entry.sums, entries[EXPERTS][0].astype(np.float32))
    assert entry.counts.tolist() == [1000, 0, 3, 512]


def test_one_count_for_all_experts_is_shared(tmp_path: Path) -> None:
    """What llama-imatrix makes of a .dat: a GGUF whose experts lie in one row, with one count."""
    sums = np.arange(1.0, 25.0).reshape(1, 24)
    imatrix = read_imatrix(write_imatrix_gguf(tmp_path / "a.gguf", {EXPERTS: (sums, np.array([4.0]))}))
    found = imatrix.importance(EXPERTS, 4, 6)
    assert found is not None
    assert np.array_equal(found, (sums / 4).reshape(4, 6).astype(np.float32))


@pytest.mark.parametrize("write", [write_imatrix_gguf, write_imatrix_dat])
def test_an_entry_that_saw_nothing_is_no_entry(tmp_path: Path, write: object) -> None:
    entries = {EXPERTS: (np.zeros((4, 6)), np.zeros(4)), MATRIX: statistics()[MATRIX]}
    if write is write_imatrix_dat:
        del entries[EXPERTS]  # that tool skips such entries
    assert read_imatrix(write(tmp_path / "a", entries)).importance(EXPERTS, 4, 6) is None  # type: ignore[operator]


def test_a_zero_column_stays_zero(tmp_path: Path) -> None:
    sums = np.ones((2, 4))
    sums[:, 1] = 0
    imatrix = read_imatrix(write_imatrix_gguf(tmp_path / "a.gguf", {EXPERTS: (sums, np.array([2.0, 0.0]))}))
    found = imatrix.importance(EXPERTS, 2, 4)
    assert found is not None
    assert found.tolist() == [[0.5, 0, 0.5, 0.5]] * 2


@pytest.mark.parametrize("write", [write_imatrix_gguf, write_imatrix_dat])
def test_another_size_is_refused_by_name_and_sizes(tmp_path: Path, write: object) -> None:
    imatrix = read_imatrix(write(tmp_path / "a", statistics()))  # type: ignore[operator]
    for experts, cols in ((4, 7), (3, 6), (1, 6)):
        with pytest.raises(CheckpointError, match=f"{EXPERTS} has 24 values .* {experts * cols} input columns"):
            imatrix.importance(EXPERTS, experts, cols)


def test_another_cut_of_the_same_size_is_refused(tmp_path: Path) -> None:
    imatrix = read_imatrix(write_imatrix_gguf(tmp_path / "a", statistics()))
    with pytest.raises(CheckpointError, match="24 values for 4 experts, and the weight has 24 input columns for 2"):
        imatrix.importance(EXPERTS, 2, 12)


@pytest.mark.parametrize("write", [write_imatrix_gguf, write_imatrix_dat])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -1.0])
def test_impossible_sums_are_refused(tmp_path: Path, write: object, value: float) -> None:
    entries = statistics()
    entries[EXPERTS][0][2, 3] = value
    with (
        np.errstate(invalid="ignore"),
        pytest.raises(CheckpointError, match=f"{EXPERTS} holds .* at index 15 of its sums"),
    ):
        read_imatrix(write(tmp_path / "a", entries))  # type: ignore[operator]


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_impossible_counts_are_refused(tmp_path: Path, value: float) -> None:
    entries = statistics()
    entries[EXPERTS][1][1] = value
    with pytest.raises(CheckpointError, match=f"{EXPERTS} holds .* at index 1 of its counts"):
        read_imatrix(write_imatrix_gguf(tmp_path / "a", entries))


@pytest.mark.parametrize("write", [write_imatrix_gguf, write_imatrix_dat])
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, write: object) -> None:
    options = {"extra": False} if write is write_imatrix_gguf else {"trailer": False}
    path = write(tmp_path / "a", statistics(), **options)  # type: ignore[operator]
    data = path.read_bytes()
    end = len(data) - 32 if write is write_imatrix_gguf else len(data)  # the GGUF's last padding may go
    for length in range(0, end, 3):
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError):
            read_imatrix(path)


def test_a_dat_file_of_nonsense_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.dat"
    good = write_imatrix_dat(path, statistics()).read_bytes()
    name = len(EXPERTS)
    for data, says in (
        (struct.pack("<i", 0), r"number of entries is 0 \(byte 0\)"),
        (struct.pack("<i", -5), r"number of entries is -5 \(byte 0\)"),
        (struct.pack("<ii", 1, -1), r"length of the name of entry 1 of 1 is -1 \(byte 4\)"),
        (
            struct.pack("<ii", 1, 2**31 - 1),
            r"the name of entry 1 of 1 is 2147483647 bytes long, and 0 are left \(byte 8\)",
        ),
        (struct.pack("<ii", 1, 2) + b"\xff\xfe" + bytes(8), r"is not UTF-8 \(byte 8\)"),
        (good[: 8 + name] + struct.pack("<ii", 0, 4), r"number of calls of .* is 0"),
        (good[: 8 + name] + struct.pack("<ii", 1, 0), r"number of values of .* is 0"),
        (good + b"!", "the file goes on after its end"),
        (struct.pack("<i", 2) + good[4 : 4 + 4 + name + 8 + 96] * 2, "stands there twice"),
    ):
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=says):
            read_imatrix(path)


def gguf_file(path: Path, tensors: dict[str, np.ndarray], **fields: object) -> Path:
    writer = gguf.GGUFWriter(path, "")
    writer.kv_data = [{}]
    for key, value in fields.items():
        key = key.replace("_", ".", 1)
        add = {str: writer.add_string, list: writer.add_array, int: writer.add_uint32}[type(value)]
        add(key, value)
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_of_another_kind_is_refused(tmp_path: Path) -> None:
    sums, counts = np.ones((2, 3), np.float32), np.ones((2, 1), np.float32)
    about = {"general_type": "imatrix", "imatrix_datasets": ["x"], "imatrix_chunk_count": 1, "imatrix_chunk_size": 8}
    for i, (tensors, fields, says) in enumerate(
        (
            (
                {"a.in_sum2": sums, "a.counts": counts},
                about | {"general_type": "model"},
                "of type 'model', not an imatrix",
            ),
            ({"a.in_sum2": sums, "a.counts": counts}, {"general_type": "imatrix"}, "has no imatrix.datasets"),
            ({"a.in_sum2": sums, "a.counts": counts}, about | {"imatrix_chunk_count": "7"}, "chunk_count is '7'"),
            ({"a.in_sum2": sums}, about, "a has no counts"),
            ({"a.in_sum2": sums, "a.counts": counts, "b.counts": counts}, about, "b has counts without sums"),
            ({"a.stats": sums}, about, "no entries"),
            ({"a.in_sum2": sums.astype(np.float16), "a.counts": counts}, about, "a.in_sum2 is f16"),
            (
                {"a.in_sum2": sums, "a.counts": np.ones((3, 1), np.float32)},
                about,
                r"sums of shape \[2, 3\] and 3 counts",
            ),
        )
    ):
        with pytest.raises(CheckpointError, match=says):
            read_imatrix(gguf_file(tmp_path / f"{i}.gguf", tensors, **fields))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot read the imatrix .*nowhere"):
        read_imatrix(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="cannot read the imatrix"):
        read_imatrix(tmp_path)
