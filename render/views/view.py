"""What a run draws of one capture, unit by unit. A unit is what is read at once: a query, or a block of map rows."""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import Protocol

from attnlens.render.scene import Scene


class View(Protocol):
    """The pictures of one capture."""

    @property
    def units(self) -> tuple[int, ...]:
        """Units in the order in which they are drawn."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the largest picture."""

    def stems(self, unit: int) -> tuple[str, ...]:
        """Names of a unit's pictures, without ending. Reads nothing."""

    def scenes(self, unit: int, wanted: Container[str] | None = None) -> Iterator[tuple[str, Scene]]:
        """Those of a unit's pictures that are wanted (None: all), each with its stem. Reads the store once.

        Raises:
            AbsentError: the store does not hold what the pictures need.
            StoreError: it is damaged.
        """
