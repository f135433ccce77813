"""Options of a run put to one capture: what heads, scale and text mean there. All views share it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from attnlens.render.attention.heads import EACH, Heads, each_head, select_heads
from attnlens.render.attention.scales import select_scale
from attnlens.render.attention.source import Merge, Source, check_source, timeline
from attnlens.render.options import RenderOptions
from attnlens.render.recipes.recipe import of_run
from attnlens.render.scene import Subject
from attnlens.render.text.cells import Cells, Tokens
from attnlens.render.text.texts import check_text, select_text
from attnlens.render.views.evidence import Style
from attnlens.schemas.errors import AbsentError
from attnlens.schemas.ranges import parse_ranges
from attnlens.store.naming import model_name

if TYPE_CHECKING:
    from attnlens.store.reader import Capture


class Settings:
    """Checked when it is made; what costs a read is read when it is first used.

    Raises:
        InputError: an option is not known, or not to this model.
        AbsentError: the capture lacks an array that one of them needs.
    """

    def __init__(self, capture: Capture, options: RenderOptions, *, heads: str, text: str) -> None:
        self._capture, self._options = capture, options
        model = capture.metadata.model
        self.heads: tuple[Heads, ...] = (
            each_head(model.n_head) if heads == EACH else (select_heads(heads, model.n_head, model.layers),)
        )
        self.scale = select_scale(options.scale)
        self.text = select_text(text)
        check_source(capture, self.heads, self.scale)
        check_text(capture, self.text, text, options.lens)

    def source(self, layers: tuple[int, ...], merge: Merge | None = None) -> Source:
        """Attention of some layers, its keys put together by `merge`."""
        return Source(self._capture, layers=layers, heads=self.heads, scale=self.scale, merge=merge)

    @cached_property
    def tokens(self) -> Tokens:
        """Texts of the timeline."""
        return Tokens(self._capture)

    @cached_property
    def cells(self) -> Cells:
        """Texts of cells."""
        return Cells(self._capture, self.tokens, self.text, timeline(self._capture), self._options.lens)

    @cached_property
    def subjects(self) -> tuple[Subject, ...]:
        """What holds for all pictures, for each reduction of the head axis."""
        metadata = self._capture.metadata
        absent = None if metadata.lens is not None else metadata.lens_absent or "none was stored"
        return tuple(
            Subject(
                model=model_name(metadata),
                capture=self._capture.id,
                status=metadata.status,
                n_prompt=self._capture.n_prompt,
                n_layer=metadata.model.n_layer,
                special=frozenset(self.tokens.special.nonzero()[0].tolist()),
                lens_absent=absent,
                reduction=heads.label,
            )
            for heads in self.heads
        )

    @cached_property
    def style(self) -> Style:
        """Colours and words that all pictures share."""
        scale = self.scale
        return Style(
            colormap=self._options.cmap,
            theme=self._options.theme,
            scale=scale.range,
            scale_name=scale.label,
            text_name=self.text.label + (f", lens {self._options.lens}" if self._options.lens else ""),
            bar=scale.bar,
            ticks=scale.ticks,
            recipe=of_run(self._capture, self._options),
        )


def select_tokens(text: str | None, capture: Capture) -> Sequence[int] | None:
    """The columns that `--tokens` names, upwards; None for all. Of a cropped store those that it has.

    Raises:
        InputError: it names none.
    """
    line = timeline(capture)
    if text is None and line.kept is None:
        return None
    chosen = range(line.n_row) if text is None else parse_ranges(text, line.n_row, option="--tokens", thing="token")
    if there := tuple(filter(line.has, chosen)):
        return there
    raise AbsentError(f"--tokens {text or 'all'}: capture {capture.id} was cropped to other tokens")
