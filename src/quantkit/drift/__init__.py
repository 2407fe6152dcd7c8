"""What quantization did to a model: output, routing and hidden states of candidates against a reference.

The room itself can be called, so that both `quantkit.drift(...)` and `from quantkit.drift import drift` work.
"""

import sys
from types import ModuleType
from typing import Any

from quantkit.drift.base_walk import KlBaseFacts
from quantkit.drift.clusters import Clusters, clusters
from quantkit.drift.differences import Difference
from quantkit.drift.figures import DeltaP, Figures, Flips, Interval, Kld, Perplexity
from quantkit.drift.findings import Finding
from quantkit.drift.intervals import Mean, mean, share
from quantkit.drift.loss import Loss
from quantkit.drift.models import Identity
from quantkit.drift.outcome import Outcome, outcome
from quantkit.drift.output import OutputComparison, TokenScores
from quantkit.drift.progress import Progress
from quantkit.drift.provenance import Blas, Machine, Options, Statistics
from quantkit.drift.result import SCHEMA, Candidate, Domain, Drift, Routing, TensorDrift, TextFacts, WeightError
from quantkit.drift.routing import LayerRouting, RouterDrift
from quantkit.drift.run import drift
from quantkit.drift.sample import Sample
from quantkit.drift.states import StateError
from quantkit.drift.walk import Walked, walk
from quantkit.drift.watch import ExpertDrift, LayerDrift

__all__ = [
    "SCHEMA",
    "Blas",
    "Candidate",
    "Clusters",
    "DeltaP",
    "Difference",
    "Domain",
    "Drift",
    "ExpertDrift",
    "Figures",
    "Finding",
    "Flips",
    "Identity",
    "Interval",
    "KlBaseFacts",
    "Kld",
    "LayerDrift",
    "LayerRouting",
    "Loss",
    "Machine",
    "Mean",
    "Options",
    "Outcome",
    "OutputComparison",
    "Perplexity",
    "Progress",
    "RouterDrift",
    "Routing",
    "Sample",
    "StateError",
    "Statistics",
    "TensorDrift",
    "TextFacts",
    "TokenScores",
    "Walked",
    "WeightError",
    "clusters",
    "drift",
    "mean",
    "outcome",
    "share",
    "walk",
]


class _Room(ModuleType):
    def __call__(self, *arguments: Any, **options: Any) -> Drift:
        return drift(*arguments, **options)


sys.modules[__name__].__class__ = _Room
