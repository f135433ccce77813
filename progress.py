"""How long work reports itself. The work knows this protocol only; what a person sees is made in `console`."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """A sequence of stages, each with a count that grows."""

    def stage(self, name: str, total: int | None = None, unit: str = "") -> None:
        """Begin a stage (`loading`, `prefill`, `decode`, `pictures`), ending the one before. `total` None: unknown."""

    def advance(self, amount: int = 1, note: str = "") -> None:
        """`amount` more units are done; `note` replaces the text beside the bar, for example bytes written."""

    def end(self) -> None:
        """The last stage is over."""


class Silent:
    """Reports nothing."""

    def stage(self, name: str, total: int | None = None, unit: str = "") -> None:
        """Nothing."""

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Nothing."""

    def end(self) -> None:
        """Nothing."""
