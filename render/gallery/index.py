"""The gallery of a run: which page lists which pictures, under which labels."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from attnlens.render.formats import format_named
from attnlens.render.gallery import pages
from attnlens.render.options import RenderOptions
from attnlens.render.run import files
from attnlens.render.run.products import names
from attnlens.render.text.cells import Tokens
from attnlens.store.naming import model_name

if TYPE_CHECKING:
    from attnlens.render.views.view import View
    from attnlens.store.reader import Capture


def write_index(folder: Path, capture: Capture, view: View, options: RenderOptions) -> None:
    """Write the page of one capture's pictures into their folder.

    Raises:
        InputError: it cannot be written.
    """
    suffix = format_named(options.format).SUFFIX
    tokens = Tokens(capture).texts if options.map is None else None
    entries = []
    for unit in view.units:
        stems = names(view, unit, options)
        label = stems[0] if tokens is None else f"{unit} {tokens[unit]}"
        entries.append(pages.Entry(label=label, files=tuple(f"{stem}{suffix}" for stem in stems)))
    files.write(folder / pages.NAME, pages.page(_title(capture), entries))


def write_contents(folder: Path, captures: Iterable[Capture]) -> None:
    """Write the page over several captures, each of which has a folder of its name.

    Raises:
        InputError: it cannot be written.
    """
    listed = [(capture.id, f"{_title(capture)}: {capture.metadata.prompt[:200]}") for capture in captures]
    files.write(folder / pages.NAME, pages.contents("captures", listed))


def _title(capture: Capture) -> str:
    return f"{model_name(capture.metadata)} · capture {capture.id}"
