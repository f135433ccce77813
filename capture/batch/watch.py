"""Progress of one prompt among many: its stages become the note beside the bar that counts prompts."""

from __future__ import annotations

from collections.abc import Callable

from attnlens.progress import Progress


class PromptProgress:
    """Tells `outer` which prompt is at which stage, and how many have failed so far."""

    def __init__(self, outer: Progress, prompt_id: str, failed: Callable[[], int]) -> None:
        self._outer = outer
        self._id = prompt_id if len(prompt_id) <= 24 else f"{prompt_id[:23]}…"
        self._failed = failed
        self._stage, self._total, self._done = "", 0, 0

    def stage(self, name: str, total: int | None = None, unit: str = "") -> None:
        """A stage of this prompt begins."""
        self._stage, self._total, self._done = name, total or 0, 0
        self._tell()

    def advance(self, amount: int = 1, note: str = "") -> None:
        """`amount` more units of the stage are done."""
        self._done += amount
        self._tell()

    def end(self) -> None:
        """The prompt is over; the stage of all prompts goes on."""

    def _tell(self) -> None:
        count = f" {self._done}/{self._total}" if self._total else ""
        failed = self._failed()
        self._outer.advance(0, note=f"{self._id}: {self._stage}{count}" + (f", {failed} failed" if failed else ""))
