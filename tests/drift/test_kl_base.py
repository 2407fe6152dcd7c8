"""The file's bytes against the format written down number by number, and files that are none."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from tests.oracle.kl_base import base_file, decoded, record

from quantkit.drift import kl_base
from quantkit.drift.kl_base import encode, file_bytes, is_kl_base, open_kl_base, record_bytes, write_kl_base
from quantkit.errors import CheckpointError, NonFiniteError, PlanRefusedError, UsageError

CONTEXT, CHUNKS = 9, 3  # scored are positions 4 to 7


def made(rng: np.random.Generator, n: int, n_vocab: int, spread: float = 4.0) -> np.ndarray:
    return (rng.standard_normal((n, n_vocab)) * spread).astype(np.float32)


@pytest.fixture
def logits() -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [made(rng, 4, 51, spread) for spread in (0.1, 4.0, 30.0)]


@pytest.fixture
def tokens() -> np.ndarray:
    return np.random.default_rng(4).integers(0, 51, (CHUNKS, CONTEXT))


@pytest.fixture
def file(tmp_path: Path, tokens: np.ndarray, logits: list[np.ndarray]) -> Path:
    return base_file(tmp_path / "base.kld", tokens, logits)


def assert_same_records(ours: bytes, theirs: bytes, n_vocab: int) -> None:
    """Equal, but that exp of two libraries may differ in its last bit, and so the lowest log-probability."""
    assert len(ours) == len(theirs) == record_bytes(n_vocab)
    own, other = struct.unpack_from("<ff", ours), struct.unpack_from("<ff", theirs)
    assert own[0] == other[0]
    assert own[1] == pytest.approx(other[1], abs=4e-6)
    assert ours[8:] == theirs[8:]


@given(
    arrays.arrays(
        np.float32,
        st.tuples(st.integers(1, 3), st.integers(1, 40)),
        elements=st.floats(-1e4, 1e4, width=32) | st.sampled_from([0.0, -0.0, 1e-40, 2e-40, -3e30, 3e30]),
    )
)
@settings(max_examples=50, deadline=None)
def test_records_and_the_way_back(logits: np.ndarray) -> None:
    for row, mine in zip(logits, encode(logits), strict=True):
        n_vocab = len(row)
        gap = float(row.max()) - max(float(row.min()), float(row.max()) - 16)
        if gap > 1e-30:  # below, llama.cpp divides by a subnormal
            assert_same_records(mine.tobytes(), record(row), n_vocab)
        wide = row.astype(np.float64)
        true = wide - wide.max() - np.log(np.exp(wide - wide.max()).sum())
        floor = true.max() - 16
        # half a step, and float32's rounding of logits of this size and of what is added to them
        bound = 16 / 65535 / 2 * 1.01 + 4e-6 + 2 * float(np.spacing(np.abs(row).max()))
        np.testing.assert_allclose(decoded(mine.tobytes(), n_vocab), np.maximum(true, floor), rtol=0, atol=bound)


def test_a_written_file_is_the_same(tmp_path: Path, file: Path, tokens: np.ndarray, logits: list[np.ndarray]) -> None:
    asked = []

    def given(chunk: int, first: int, stop: int) -> np.ndarray:
        asked.append((chunk, first, stop))
        return logits[chunk][first - 4 : stop - 4]

    path = tmp_path / "own.kld"
    write_kl_base(path, tokens, 51, given)
    own, other = path.read_bytes(), file.read_bytes()
    before = file_bytes(CHUNKS, CONTEXT, 51, records=False)
    assert asked == [(chunk, 4, 8) for chunk in range(CHUNKS)]
    assert len(own) == len(other) == file_bytes(CHUNKS, CONTEXT, 51)
    assert own[:before] == other[:before]
    size = record_bytes(51)
    for at in range(before, len(own), size):
        assert_same_records(own[at : at + size], other[at : at + size], 51)


def test_a_file_is_read(file: Path, tokens: np.ndarray, logits: list[np.ndarray]) -> None:
    base = open_kl_base(file)
    assert (base.context, base.n_vocab, base.n_scored, base.n_bytes) == (CONTEXT, 51, 4, file.stat().st_size)
    np.testing.assert_array_equal(base.tokens, tokens)
    for chunk, rows in enumerate(logits):
        wanted = np.array([decoded(record(row), 51) for row in rows])
        np.testing.assert_array_equal(base.log_probabilities(chunk), wanted)
        np.testing.assert_array_equal(base.log_probabilities(chunk, 1, 3), wanted[1:3])


def test_blocks_bound_what_is_in_memory(
    tmp_path: Path, tokens: np.ndarray, logits: list[np.ndarray], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kl_base, "BLOCK_BYTES", 4 * 51 * 3 + 1)
    sizes = []

    def given(chunk: int, first: int, stop: int) -> np.ndarray:
        sizes.append(stop - first)
        return logits[chunk][first - 4 : stop - 4]

    write_kl_base(tmp_path / "own.kld", tokens, 51, given)
    assert sizes == [3, 1] * CHUNKS
    own = open_kl_base(tmp_path / "own.kld")
    np.testing.assert_allclose(own.log_probabilities(2), open_kl_base(file).log_probabilities(2), atol=4e-6)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda b: b[:-1], "not written to its end"),
        (lambda b: b[: len(b) // 2], "chunks are whole"),
        (lambda b: b[:15], "ends in its header"),
        (lambda b: b[:4], "is no file of log-probabilities"),
        (lambda b: b + b"\0", "something was added"),
        (lambda b: b"GGUF" + b[4:], "is no file of log-probabilities"),
        (lambda b: b[:8] + struct.pack("<i", 2) + b[12:], "n_ctx 2"),
        (lambda b: b[:12] + struct.pack("<i", 53) + b[16:], "53 ids take"),
        (lambda b: b[:16] + struct.pack("<i", -1) + b[20:], "n_chunk -1"),
        (lambda b: b[:24] + struct.pack("<i", 51) + b[28:], "token 1 is 51"),
    ],
)
def test_what_is_refused(file: Path, change: object, word: str) -> None:
    file.write_bytes(change(file.read_bytes()))  # type: ignore[operator]
    with pytest.raises(CheckpointError) as caught:
        open_kl_base(file)
    assert word in str(caught.value)
    assert str(file) in str(caught.value)


def test_damaged_records_are_named(file: Path) -> None:
    content = bytearray(file.read_bytes())
    at = file_bytes(CHUNKS, CONTEXT, 51, records=False) + (4 + 2) * record_bytes(51)
    for damage in (struct.pack("<f", float("nan")), struct.pack("<f", 3.0), bytes(record_bytes(51))):
        file.write_bytes(bytes(content[:at]) + damage + bytes(content[at + len(damage) :]))
        with pytest.raises(CheckpointError, match="record 2 of chunk 1 is no distribution"):
            open_kl_base(file).log_probabilities(1)


def test_nothing_is_half_written(tmp_path: Path, tokens: np.ndarray, logits: list[np.ndarray]) -> None:
    path = tmp_path / "own.kld"
    for error, value in ((NonFiniteError, np.nan), (NonFiniteError, np.inf)):
        broken = [*logits[:2], logits[2].copy()]
        broken[2][1, 7] = value
        with pytest.raises(error, match="chunk 2, position 5"):
            write_kl_base(path, tokens, 51, lambda chunk, first, stop, broken=broken: broken[chunk])
        assert list(tmp_path.iterdir()) == []
    path.touch()
    with pytest.raises(PlanRefusedError, match="exists"):
        kl_base.check_writable(path, 1)
    with pytest.raises(PlanRefusedError, match="no such folder"):
        kl_base.check_writable(tmp_path / "none" / "own.kld", 1)
    with pytest.raises(PlanRefusedError, match="are free"):
        kl_base.check_writable(tmp_path / "large.kld", 1 << 60)


def test_which_files_are_such(file: Path, tmp_path: Path) -> None:
    assert is_kl_base(file)
    assert not is_kl_base(tmp_path)
    assert not is_kl_base(tmp_path / "none")
    with pytest.raises(UsageError, match="no such file"):
        open_kl_base(tmp_path / "none")
