"""What a conversion will do: typed, complete before the first payload byte, and printable as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

SCHEMA = 1


@dataclass(frozen=True)
class Fallback:
    """A tensor whose columns do not divide by the block of the type that was wanted.

    Args:
        tensor: GGUF name.
        wanted, type: format names; what the recipe asks for and what fits.
        extra_bytes: size with `type` less size with `wanted` (blocks rounded up).
        reason: a sentence.
    """

    tensor: str
    wanted: str
    type: str
    extra_bytes: int
    reason: str


@dataclass(frozen=True)
class TensorPlan:
    """One tensor of one output.

    Args:
        name: GGUF name.
        shape: numpy order, (n,), (rows, cols) or (experts, rows, cols).
        type: format name, for instance "q4_k".
        n_bytes: size without padding.
        importance: "" (none), "imatrix", or "missing" (allowed by `allow_missing_imatrix`).
    """

    name: str
    shape: tuple[int, ...]
    type: str
    n_bytes: int
    importance: str = ""


@dataclass(frozen=True)
class FileSize:
    """One file that will be written (several per output when it is split)."""

    path: Path
    n_bytes: int
    n_tensors: int


@dataclass(frozen=True)
class RuntimeNeed:
    """What it takes to run an output at one context length.

    Args:
        context: tokens.
        weight_bytes, kv_cache_bytes: resident bytes; the cache in f16.
        bytes_per_token: weights read for one generated token (active experts only) plus the whole KV cache.
        tokens_per_second_bound: stated bandwidth over `bytes_per_token`: no machine with it can be faster.
    """

    context: int
    weight_bytes: int
    kv_cache_bytes: int
    bytes_per_token: int
    tokens_per_second_bound: float


@dataclass(frozen=True)
class OutputPlan:
    """One GGUF (with all its splits).

    Args:
        kind: "model" or "mmproj".
        recipe: what was asked for, for instance "q4_k_m".
        path: as given, `{type}` filled in; the files' own names (splits) are in `files`.
        n_bytes: of all files, headers included.
        tensor_bytes: payload without header and padding.
        n_weights: elements of all tensors.
        bits_per_weight, nominal_bits_per_weight: tensor bits over weights; nominal is without fallbacks.
    """

    kind: str
    recipe: str
    path: Path
    files: tuple[FileSize, ...]
    tensors: tuple[TensorPlan, ...]
    fallbacks: tuple[Fallback, ...]
    n_bytes: int
    tensor_bytes: int
    n_weights: int
    bits_per_weight: float
    nominal_bits_per_weight: float
    runtime: tuple[RuntimeNeed, ...] = ()

    def by_type(self) -> dict[str, tuple[int, int, int]]:
        """Type -> (number of tensors, weights, bytes), largest share of bytes first."""
        table: dict[str, tuple[int, int, int]] = {}
        for tensor in self.tensors:
            count, weights, n_bytes = table.get(tensor.type, (0, 0, 0))
            elements = 1
            for extent in tensor.shape:
                elements *= extent
            table[tensor.type] = (count + 1, weights + elements, n_bytes + tensor.n_bytes)
        return dict(sorted(table.items(), key=lambda item: -item[1][2]))


@dataclass(frozen=True)
class DiskNeed:
    """Bytes still to be claimed in one folder, and free bytes there; `already_bytes` is what unfinished files hold."""

    folder: Path
    needed_bytes: int
    free_bytes: int
    already_bytes: int = 0

    @property
    def fits(self) -> bool:
        return self.needed_bytes <= self.free_bytes

    @property
    def text(self) -> str:
        """Both numbers as a phrase."""
        return f"{self.free_bytes:,} bytes are free, and {self.needed_bytes:,} are needed"


@dataclass(frozen=True)
class Plan:
    """Everything that `convert` will do, known from headers alone.

    Args:
        checkpoint: folder of the source.
        source_bytes: payload bytes that will be read (each once, whatever the number of outputs).
        n_slabs: pieces in which they are read.
        peak_ram_bytes: estimate above the interpreter: slab buffers, output buffers, importance, headers.
        available_ram_bytes: what the machine can give now; None where it cannot be known.
        warnings: sentences (allowed mismatches, missing importance).
        allowed_mismatches: reasons why the runtime will compute this checkpoint otherwise than intended.
    """

    checkpoint: Path
    source_fingerprint: str
    source_bytes: int
    n_slabs: int
    threads: int
    outputs: tuple[OutputPlan, ...]
    disk: tuple[DiskNeed, ...]
    peak_ram_bytes: int
    available_ram_bytes: int | None
    imatrix: str | None = None
    imatrix_sha256: str | None = None
    warnings: tuple[str, ...] = ()
    allowed_mismatches: tuple[str, ...] = ()
    work: Any = field(default=None, repr=False, compare=False)  # what the walk needs; not part of the public shape

    def to_json(self) -> dict[str, Any]:
        """A plain dict for `json.dumps`; `schema` is raised when a key changes its meaning or goes away."""
        outputs = []
        for output in self.outputs:
            entry = asdict(output)
            entry["types"] = {
                name: {"tensors": count, "weights": weights, "bytes": n_bytes}
                for name, (count, weights, n_bytes) in output.by_type().items()
            }
            outputs.append(entry)
        plain = {
            "schema": SCHEMA,
            "checkpoint": self.checkpoint,
            "source_fingerprint": self.source_fingerprint,
            "source_bytes": self.source_bytes,
            "n_slabs": self.n_slabs,
            "threads": self.threads,
            "outputs": outputs,
            "disk": [asdict(need) for need in self.disk],
            "peak_ram_bytes": self.peak_ram_bytes,
            "available_ram_bytes": self.available_ram_bytes,
            "imatrix": self.imatrix,
            "imatrix_sha256": self.imatrix_sha256,
            "warnings": self.warnings,
            "allowed_mismatches": self.allowed_mismatches,
        }
        result: dict[str, Any] = _plain(plain)
        return result


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
