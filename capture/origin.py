"""Where a model came from and what was done to it before it ran: what a store records and the model cannot say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from attnlens.schemas.metadata import Adapter, LeftOut


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What to record about a model.

    Attributes:
        id: its name; None: the model's own.
        revision: commit of a hub model.
        quantization: what the weights went through; None: what the model's config says.
        tokenizer: name of the tokenizer, where it does not come with the model.
        left_out: tensors of the checkpoint that the model does not use, and why that is right.
        adapters: adapters that were loaded with the model.
        label: free text that tells this run from others.
    """

    id: str | None = None
    revision: str | None = None
    quantization: dict[str, Any] | None = None
    tokenizer: str | None = None
    left_out: tuple[LeftOut, ...] = ()
    adapters: tuple[Adapter, ...] = ()
    label: str | None = None
