"""The viewer inside a notebook: a frame that holds page and store, may run its script, and can do nothing else."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlencode

from attnlens.render.viewer.single import page
from attnlens.store.places import stem_of
from attnlens.store.reader import Capture

LARGEST = 20 * 2**20
"""Bytes of a page in a notebook, which keeps it in its file, and loads all of it whenever it is opened."""
INSTEAD = "look at it with `lens view`, or make it smaller with `lens crop --lite` (or --tokens, --layers, --heads)"


@dataclass(frozen=True)
class Frame:
    """What a notebook shows: `_repr_html_` is a sandboxed frame without network or access to the notebook."""

    page: str
    height: int
    title: str

    def __repr__(self) -> str:
        """One line: a notebook keeps the text of an output beside its HTML."""
        return f"<{self.title}: a page of {len(self.page) / 2**20:.1f} MiB for a notebook>"

    def _repr_html_(self) -> str:
        page = html.escape(self.page).encode("ascii", "xmlcharrefreplace").decode()  # whatever the notebook's encoding
        return (
            f'<iframe srcdoc="{page}" sandbox="allow-scripts allow-downloads" title="attnlens" '
            f'style="width:100%;height:{self.height}px;border:0"></iframe>'
        )


def frame(capture: Capture, state: Mapping[str, object], height: int = 720) -> Frame:
    """One capture, to be shown in a notebook.

    Args:
        capture: Which.
        state: What to begin with, by the names of the page's address: query, heads, scale, text, view …
        height: Pixels.

    Raises:
        InputError: the capture is too large to stand in a notebook.
    """
    text = page(capture.place, [capture], state=urlencode(state), frame=True, largest=LARGEST, instead=INSTEAD)
    return Frame(text.decode(), height, f"capture {capture.id} of {stem_of(str(capture.place))}")
