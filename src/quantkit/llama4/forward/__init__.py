"""The forward pass of the text model as a stream: all tokens go through one layer, then through the next."""

from quantkit.llama4.forward.observer import Inputs, Observer, Routing
from quantkit.llama4.forward.stream import Stream
from quantkit.llama4.forward.weights import Matrix, Weights, open_weights

__all__ = ["Inputs", "Matrix", "Observer", "Routing", "Stream", "Weights", "open_weights"]
