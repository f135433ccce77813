"""Which views of a capture there are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attnlens.render.choice.windows import check_window
from attnlens.render.options import RenderOptions
from attnlens.render.views.map_view import MapView
from attnlens.render.views.query_view import QueryView
from attnlens.render.views.view import View
from attnlens.schemas.errors import AbsentError

if TYPE_CHECKING:
    from attnlens.store.reader import Capture


def open_view(capture: Capture, options: RenderOptions) -> View:
    """What `options` ask for of a capture. Everything is checked here, before anything is drawn.

    Raises:
        InputError: an option cannot be used with this capture.
        AbsentError: the capture does not hold what was asked for.
        StoreError: it is damaged.
    """
    check_window(options.window, options.step)
    about = capture.metadata
    if about.attention is None:
        raise AbsentError(f"capture {capture.id} holds no attention: {about.attention_absent or 'none was stored'}")
    return QueryView(capture, options) if options.map is None else MapView(capture, options)
