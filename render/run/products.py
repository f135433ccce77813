"""What a unit of a view becomes: a picture for each scene, or pages with several scenes on each."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from attnlens.render.attention.heads import EACH
from attnlens.render.formats import format_named
from attnlens.render.options import RenderOptions

if TYPE_CHECKING:
    from attnlens.render.formats import Rasteriser
    from attnlens.render.views.view import View

_WINDOW = re.compile(r"_[0-9]+$")
_HEAD = re.compile(r"_h[0-9]+$")


@dataclass(frozen=True, kw_only=True, eq=False)
class Product:
    """A file before it is drawn: its name without ending, its recipe, and how a painter makes its bytes."""

    name: str
    recipe: Mapping[str, Any]
    encode: Callable[[Rasteriser], bytes]


def names(view: View, unit: int, options: RenderOptions) -> tuple[str, ...]:
    """Names of a unit's files, without ending. Reads nothing."""
    return tuple(_pages(view.stems(unit), options)) if options.sheet else view.stems(unit)


def products(view: View, unit: int, options: RenderOptions, wanted: Container[str] | None = None) -> Iterator[Product]:
    """Those of a unit's files that are wanted (None: all)."""
    form = format_named(options.format)
    if not options.sheet:
        for name, scene in view.scenes(unit, wanted):
            yield Product(name=name, recipe=scene.recipe, encode=partial(form.encode, scene))
        return
    pages = {
        name: stems for name, stems in _pages(view.stems(unit), options).items() if wanted is None or name in wanted
    }
    found = dict(view.scenes(unit, frozenset(stem for stems in pages.values() for stem in stems)))
    for name, stems in pages.items():
        scenes = [found[stem] for stem in stems]
        recipe = {**scenes[0].recipe, "page": [scene.recipe.get("columns") for scene in scenes]}
        yield Product(
            name=name,
            recipe=recipe,
            encode=lambda painter, scenes=scenes, recipe=recipe: form.page(scenes, painter, recipe),  # type: ignore[misc]
        )


def _pages(stems: tuple[str, ...], options: RenderOptions) -> dict[str, tuple[str, ...]]:
    """Page → the pictures on it: all windows of a query; of a picture per head, all heads of a window."""
    found: dict[str, list[str]] = {}
    for stem in stems:
        part = _HEAD if options.heads == EACH else _WINDOW
        page = part.sub("", stem) if len(stems) > 1 else stem
        found.setdefault(f"{page}_sheet", []).append(stem)
    return {page: tuple(members) for page, members in found.items()}
