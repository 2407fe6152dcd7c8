"""What quantization did to a model: output, routing, activations and weights of candidates against a reference."""

from quantkit.drift.output import OutputComparison, TokenScores

__all__ = ["OutputComparison", "TokenScores"]
