"""What quantization did to a model: output, routing, activations and weights of candidates against a reference."""

from quantkit.drift.clusters import Clusters, clusters
from quantkit.drift.intervals import Mean, mean, share
from quantkit.drift.output import OutputComparison, TokenScores

__all__ = ["Clusters", "Mean", "OutputComparison", "TokenScores", "clusters", "mean", "share"]
