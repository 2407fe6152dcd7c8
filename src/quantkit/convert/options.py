"""Those arguments of `plan` that shape every output alike."""

from __future__ import annotations

from dataclasses import dataclass

from quantkit.kernels.codec import Weighting


@dataclass(frozen=True)
class Options:
    """As `plan` documents them; sizes in bytes."""

    pure: bool
    tensor_types: tuple[tuple[str, str], ...]
    token_embedding_type: str | None
    output_tensor_type: str | None
    split_max_bytes: int | None
    allow_missing_imatrix: bool
    weighting: Weighting | None
    contexts: tuple[int, ...]
    bandwidth_gb_s: float

    def overrides(self) -> list[str]:
        """As text, for provenance and the journal."""
        texts = [f"{pattern}={name}" for pattern, name in self.tensor_types]
        texts += [f"token_embd={self.token_embedding_type}"] if self.token_embedding_type else []
        return texts + ([f"output={self.output_tensor_type}"] if self.output_tensor_type else [])
