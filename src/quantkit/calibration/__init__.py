"""Text -> tokens -> layer stream -> statistics of each expert's own inputs, and which experts have too few."""

from quantkit.calibration.collector import Collector
from quantkit.calibration.cost import Cost
from quantkit.calibration.rounds import Calibration, Round, ShortExpert
from quantkit.calibration.run import calibrate
from quantkit.calibration.savepoint import forget, is_published
from quantkit.calibration.text import DEFAULT_NAME, Document, default_documents, documents
from quantkit.calibration.tokens import Encoder, TokenSource, checkpoint_encoder, token_source
from quantkit.calibration.watch import Progress

__all__ = [
    "DEFAULT_NAME",
    "Calibration",
    "Collector",
    "Cost",
    "Document",
    "Encoder",
    "Progress",
    "Round",
    "ShortExpert",
    "TokenSource",
    "calibrate",
    "checkpoint_encoder",
    "default_documents",
    "documents",
    "forget",
    "is_published",
    "token_source",
]
