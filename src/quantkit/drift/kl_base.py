"""llama.cpp's file of a model's log-probabilities, which llama-perplexity writes with --kl-divergence-base.

Little endian: "_logits_"; int32 n_ctx, n_vocab, n_chunk; int32 tokens of all chunks; then, of each chunk, one record
for each position from n_ctx/2 to n_ctx - 2: float32 scale and lowest log-probability, n_vocab uint16 codes, and one
more where n_vocab is odd. A code stands for lowest + scale * code; the lowest is that of a logit 16 below the largest.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from quantkit.errors import CheckpointError, NonFiniteError, PlanRefusedError, UsageError
from quantkit.kernels.atomic_file import atomic_file

Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.uint16]
Ids = npt.NDArray[np.int64]

MAGIC = b"_logits_"
FLOOR = 16.0  # nats below the largest logit: none is lower, and less likely tokens do not count in KLD
BLOCK_BYTES = 128 << 20  # of float32 logits that are in memory at a time
_HEADER_BYTES = len(MAGIC) + 12
_N_CODES = 65535
_SUM_ERROR = 1e-3  # of a distribution, by 16 bits; the floor adds exp(-16) a token at most


@dataclass(frozen=True)
class KlBase:
    """An open description of such a file; records are read when they are asked for.

    Args:
        path: of the file.
        n_vocab: ids in a record.
        tokens: as the text has them, without BOS at the beginning of chunks, int64 (chunks, context).
    """

    path: Path
    n_vocab: int
    tokens: Ids

    @property
    def context(self) -> int:
        return int(self.tokens.shape[1])

    @property
    def n_scored(self) -> int:
        """Records of a chunk."""
        return scored_in_chunk(self.context)

    @property
    def n_bytes(self) -> int:
        return file_bytes(len(self.tokens), self.context, self.n_vocab)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what comes before the records, and of scale and lowest value of each chunk's first record."""
        size = file_bytes(len(self.tokens), self.context, self.n_vocab, records=False)
        digest = hashlib.sha256()
        with _reading(self.path), self.path.open("rb") as file:
            digest.update(file.read(size))
            for chunk in range(len(self.tokens)):
                file.seek(size + chunk * self.n_scored * record_bytes(self.n_vocab))
                digest.update(file.read(8))
        return digest.hexdigest()

    def log_probabilities(self, chunk: int, first: int = 0, stop: int | None = None) -> Floats:
        """Of records `first` to `stop` of a chunk, decoded as llama-perplexity does: float32 (records, n_vocab).

        Raises:
            CheckpointError: the file ends too early, or a record is no distribution.
        """
        stop = self.n_scored if stop is None else stop
        size = record_bytes(self.n_vocab)
        start = file_bytes(len(self.tokens), self.context, self.n_vocab, records=False)
        with _reading(self.path), self.path.open("rb") as file:
            file.seek(start + (chunk * self.n_scored + first) * size)
            content = file.read((stop - first) * size)
        if len(content) < (stop - first) * size:
            raise CheckpointError(f"{self.path}: ends in the records of chunk {chunk}", hint=_TRUNCATED)
        records = np.frombuffer(content, "<u2").reshape(stop - first, size // 2)
        scale, lowest = np.ascontiguousarray(records[:, :4]).view("<f4").T[:, :, None]
        with np.errstate(over="ignore", invalid="ignore"):
            found: Floats = records[:, 4 : 4 + self.n_vocab] * scale
            found += lowest
            total = np.exp(found).sum(axis=1, dtype=np.float64)
        wrong = ~(np.abs(total - 1) < _SUM_ERROR + self.n_vocab * np.exp(-FLOOR)) | (scale[:, 0] < 0)
        if wrong.any():
            at = int(np.argmax(wrong))
            raise CheckpointError(
                f"{self.path}: record {first + at} of chunk {chunk} is no distribution: its probabilities add up to "
                f"{total[at]:.6g}",
                hint="The file is damaged, or was not written to its end; write it again.",
            )
        return found


_TRUNCATED = "It was not written to its end, or not copied whole; write or fetch it again."


def scored_in_chunk(context: int) -> int:
    """The second half but for the last position, which has no next token."""
    return context - 1 - context // 2


def record_bytes(n_vocab: int) -> int:
    return 2 * (2 * ((n_vocab + 1) // 2) + 4)


def file_bytes(n_chunks: int, context: int, n_vocab: int, *, records: bool = True) -> int:
    """Of a whole file, or of what comes before its records."""
    before = _HEADER_BYTES + 4 * n_chunks * context
    return before + (n_chunks * scored_in_chunk(context) * record_bytes(n_vocab) if records else 0)


def is_kl_base(path: str | os.PathLike[str]) -> bool:
    """Whether this is a file that begins as such a file does."""
    path = Path(path)
    if not path.is_file():
        return False
    with _reading(path), path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def open_kl_base(path: str | os.PathLike[str]) -> KlBase:
    """Check all that comes before the records, and the size.

    Raises:
        UsageError: there is no such file.
        CheckpointError: it is another kind of file, or damaged, or was not written to its end.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"{path}: there is no such file")
    with _reading(path), path.open("rb") as file:
        n_bytes = os.fstat(file.fileno()).st_size
        header = file.read(_HEADER_BYTES)
        if header[: len(MAGIC)] != MAGIC:
            raise CheckpointError(
                f"{path}: is no file of log-probabilities: it begins with {header[: len(MAGIC)]!r}",
                hint="llama-perplexity --kl-divergence-base writes one, and so does quantkit drift --write-kl-base.",
            )
        if len(header) < _HEADER_BYTES:
            raise CheckpointError(f"{path}: ends in its header", hint=_TRUNCATED)
        context, n_vocab, n_chunks = np.frombuffer(header, "<i4", 3, len(MAGIC)).tolist()
        if context < 3 or n_vocab < 1 or n_chunks < 1:
            raise CheckpointError(f"{path}: has n_ctx {context}, n_vocab {n_vocab} and n_chunk {n_chunks}")
        expected = file_bytes(n_chunks, context, n_vocab)
        if n_bytes != expected:
            size = file_bytes(1, context, n_vocab) - file_bytes(1, context, n_vocab, records=False)
            whole = max(0, n_bytes - file_bytes(n_chunks, context, n_vocab, records=False)) // size
            what = f"has {n_bytes:,} bytes, and {n_chunks:,} chunks of {context} tokens and {n_vocab:,} ids take"
            held = f"; {whole:,} chunks are whole" if whole < n_chunks else ""
            hint = _TRUNCATED if n_bytes < expected else "It is not of this format, or something was added to it."
            raise CheckpointError(f"{path}: {what} {expected:,}{held}", hint=hint)
        tokens = np.frombuffer(file.read(4 * n_chunks * context), "<i4").astype(np.int64).reshape(n_chunks, context)
    outside = (tokens < 0) | (tokens >= n_vocab)
    if outside.any():
        at = int(np.argmax(outside.reshape(-1)))
        raise CheckpointError(f"{path}: token {at} is {tokens.reshape(-1)[at]}, of a vocabulary of {n_vocab:,}")
    return KlBase(path, n_vocab, tokens)


def check_writable(path: Path, n_bytes: int) -> None:
    """What would stop a file of so many bytes, before anything is computed.

    Raises:
        PlanRefusedError: it exists, its folder does not, or the disk is too full.
    """
    if path.exists():
        raise PlanRefusedError(f"{path}: exists", hint="Delete it, or give another name.")
    if not path.absolute().parent.is_dir():
        raise PlanRefusedError(f"{path.absolute().parent}: there is no such folder")
    place = os.statvfs(path.absolute().parent) if hasattr(os, "statvfs") else None
    if place is not None and place.f_bavail * place.f_frsize < n_bytes:
        free = place.f_bavail * place.f_frsize
        hint = "Take fewer --tokens, or another disk."
        raise PlanRefusedError(f"{path}: takes {n_bytes:,} bytes, and {free:,} are free", hint=hint)


def write_kl_base(path: Path, tokens: Ids, n_vocab: int, logits: Callable[[int, int, int], Floats]) -> None:
    """Write the file, a block of records at a time; it has its name when it is whole.

    Args:
        tokens: as the text has them (chunks, context).
        logits: of a chunk's positions `first` to `stop`, float32 (positions, n_vocab).

    Raises:
        NonFiniteError: a logit is NaN or infinite.
        OutputError: writing failed.
    """
    n_chunks, context = tokens.shape
    with atomic_file(path) as file:
        file.write(MAGIC + np.array([context, n_vocab, n_chunks], "<i4").tobytes())
        file.write(np.ascontiguousarray(tokens, "<i4").data)
        for chunk in range(n_chunks):
            for first, stop in record_blocks(context, n_vocab):
                found = logits(chunk, first, stop)
                if not np.isfinite(found).all():
                    at = first + int(np.argmin(np.isfinite(found).all(axis=1)))
                    raise NonFiniteError(f"logits of chunk {chunk}, position {at} are not all finite")
                file.write(encode(found).data)


def record_blocks(context: int, n_vocab: int) -> Iterator[tuple[int, int]]:
    """(first, stop) of a chunk's scored positions, as many at a time as fit into memory."""
    step = max(1, BLOCK_BYTES // (4 * n_vocab))
    for first in range(context // 2, context - 1, step):
        yield first, min(context - 1, first + step)


def encode(logits: Floats) -> Codes:
    """Finite logits, float32 (n, n_vocab), as records (n, record_bytes / 2)."""
    n, n_vocab = logits.shape
    highest = logits.max(axis=1, keepdims=True)
    lowest = np.maximum(logits.min(axis=1, keepdims=True), highest - np.float32(FLOOR))
    log_sum = np.log(np.exp(logits - highest).sum(axis=1, keepdims=True, dtype=np.float64)).astype(np.float32)
    scale = (highest - lowest) / np.float32(_N_CODES)
    records = np.zeros((n, record_bytes(n_vocab) // 2), "<u2")
    records[:, :2] = scale.astype("<f4").view("<u2")
    records[:, 2:4] = (lowest - highest - log_sum).astype("<f4").view("<u2")
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        steps = np.maximum(logits - lowest, 0) * (1 / scale)
    # where all logits are equal there is no step; where they differ by less than 1e-33, no inverse of one
    records[:, 4 : 4 + n_vocab] = np.minimum(np.nan_to_num(np.rint(steps, out=steps), copy=False), _N_CODES)
    return records


class _reading:
    """OSError as an error that names the file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise CheckpointError(f"{self._path}: cannot be read: {error.strerror or error}") from error
