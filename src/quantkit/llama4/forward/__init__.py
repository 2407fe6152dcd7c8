"""The forward pass of the text model as a stream: all tokens go through one layer, then through the next."""

from quantkit.llama4.forward.blocks import Blocks
from quantkit.llama4.forward.memory import Memory, estimate
from quantkit.llama4.forward.observer import Inputs, Observer, Outputs, Routing
from quantkit.llama4.forward.states import States
from quantkit.llama4.forward.stream import Stream
from quantkit.llama4.forward.team import Team, team_size
from quantkit.llama4.forward.weights import Matrix, Weights, open_weights

__all__ = [
    "Blocks",
    "Inputs",
    "Matrix",
    "Memory",
    "Observer",
    "Outputs",
    "Routing",
    "States",
    "Stream",
    "Team",
    "Weights",
    "estimate",
    "open_weights",
    "team_size",
]
