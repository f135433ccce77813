"""From a name to a model and a tokenizer that can be captured."""

from __future__ import annotations

from attnlens.capture.models.load import load
from attnlens.capture.models.request import LoadedModel

__all__ = ["LoadedModel", "load"]
