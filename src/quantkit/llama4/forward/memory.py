"""How much memory a stream will take, from headers alone."""

from __future__ import annotations

from dataclasses import dataclass

from quantkit.errors import PlanRefusedError
from quantkit.llama4.forward.blocks import Blocks
from quantkit.llama4.forward.layer_weights import attention_names, unit_names
from quantkit.llama4.forward.weights import PIECE_ROWS, Weights

_LIBRARIES = 120 << 20  # the interpreter, numpy and BLAS


@dataclass(frozen=True)
class Memory:
    """Bytes.

    Args:
        states: of the hidden states, and of the sums beside them where a token goes to several experts.
        working: of everything else, the process included.
    """

    states: int
    working: int

    def keeps_states(self, max_ram_bytes: int | None) -> bool:
        """Whether the states fit in as well. PlanRefusedError when not even the rest does."""
        if max_ram_bytes is None:
            return True
        if self.working > max_ram_bytes:
            raise PlanRefusedError(
                f"{max_ram_bytes:,} bytes of memory are allowed, and {self.working:,} are needed beside hidden states",
                hint="Allow more, or take fewer threads or a shorter context.",
            )
        return self.states + self.working <= max_ram_bytes


def estimate(weights: Weights, n_sequences: int, context: int, blocks: Blocks, n_threads: int) -> Memory:
    """What a stream over so many tokens takes at most."""
    hp = weights.hp
    n_tokens = n_sequences * context
    copies = 1 if hp.n_experts_used == 1 or not hp.moe_layers else 2
    dense = [layer for layer in range(hp.n_layers) if layer not in hp.moe_layers]

    def held(names: list[str]) -> int:
        return sum(weights.n_bytes(name) for name in names)

    attention = max(held(attention_names(layer)) for layer in range(hp.n_layers))
    units = [held(unit_names(layer, "")) for layer in dense[:1]]
    # shared, one expert at work and one on its way
    units += [held(unit_names(layer, "_shexp")) + 2 * held(unit_names(layer, "_exps")) for layer in hp.moe_layers[:1]]
    width = max([hp.expert_width] * bool(hp.moe_layers) + [hp.dense_width] * bool(dense))
    at_once = min(n_tokens, blocks.tokens)
    queries, keys = hp.n_heads * hp.head_dim, hp.n_kv_heads * hp.head_dim
    longest = min(context, hp.attention_chunk_size or context) if all(hp.is_chunked) else context
    arrays = at_once * (4 * hp.hidden_size + 2 * width + 2 * queries) + 2 * max(at_once, longest) * keys
    group = hp.n_heads // hp.n_kv_heads
    scores = 3 * min(blocks.queries, context) * group * min(blocks.keys, context)
    panel = PIECE_ROWS * max(width, hp.hidden_size, queries)
    floats = arrays + n_threads * max(scores, panel)
    working = attention + max(units) + weights.reading_bytes + 4 * floats + _LIBRARIES
    return Memory(copies * n_tokens * hp.hidden_size * 4, working)
