"""`lens render --from`: a picture drawn again, from the recipe inside it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import attnlens
from attnlens import __version__
from attnlens.render.films import film_named, films
from attnlens.render.films.animate import animate, check_fps
from attnlens.render.formats import format_named, formats
from attnlens.render.options import RenderOptions
from attnlens.render.recipes.recipe import from_text, identity, options_of, to_text
from attnlens.render.run import files
from attnlens.render.run.jobs import painter_of
from attnlens.render.run.products import products
from attnlens.render.views.open import open_view
from attnlens.render.views.view import View
from attnlens.schemas.errors import InputError
from attnlens.store.reader import Store

LARGEST = 1 << 30
"""Bytes of the largest file that is looked into."""


@dataclass(frozen=True, kw_only=True)
class AgainReport:
    """A picture drawn again: where it is, whether it has the bytes of the first one, and why it might not."""

    path: Path
    same: bool
    notes: tuple[str, ...]


def draw_again(
    picture: str | PathLike[str], store_path: str | PathLike[str], out_dir: str | PathLike[str]
) -> AgainReport:
    """Draw `picture` again from the store it was drawn from, into `out_dir`, under the name it was given first.

    Raises:
        InputError: the file holds no recipe, or the store is another one.
        AbsentError: the store no longer holds what the picture shows.
        StoreError: `store_path` is not a store, or is damaged.
    """
    data = _read(Path(picture))
    text = recipe_in(data, str(picture))
    recipe = from_text(text)
    if "diff" in recipe:
        raise InputError(
            f"{picture} is a picture of lens diff, of two captures: draw it by lens diff A B --from {picture}"
        )
    store = attnlens.open(store_path)
    _check_store(recipe, store, str(picture))
    options = options_of(recipe)
    return _report(recipe, _drawn(store, options, recipe, _now(text, recipe)), data, Path(out_dir))


def draw_diff_again(
    picture: str | PathLike[str], a: str | PathLike[str], b: str | PathLike[str], out_dir: str | PathLike[str]
) -> AgainReport:
    """Draw a picture of `lens diff` again from the two stores it was drawn from; raises as `draw_again` does.

    The captures are those that the recipe names.
    """
    from attnlens.render.diff.comparison import Comparison
    from attnlens.render.diff.view import DiffView

    data = _read(Path(picture))
    text = recipe_in(data, str(picture))
    recipe = from_text(text)
    about = recipe.get("diff")
    if not isinstance(about, dict):
        raise InputError(f"{picture} is a picture of one capture: draw it by lens render STORE --from {picture}")
    expected = {"store": str, "capture": str, "align": str, "limit": float | int}
    if any(not isinstance(about.get(key), kind) for key, kind in expected.items()) or not 0 < about["limit"] < math.inf:
        raise InputError("the recipe in the picture is damaged")
    stores = attnlens.open(a), attnlens.open(b)
    for store, wanted in zip(stores, (recipe, {**about, "model": about.get("model")}), strict=True):
        _check_store(wanted, store, str(picture))
    options = options_of(recipe)
    both = Comparison(stores[0][recipe["capture"]], stores[1][about["capture"]], about["align"])
    view = DiffView(both, options, float(about["limit"]))
    return _report(recipe, _match(view, options, _now(text, recipe)), data, Path(out_dir))


def recipe_in(data: bytes, name: str) -> str:
    """The recipe's text in the bytes of a picture.

    Raises:
        InputError: there is none.
    """
    readers = [*(film.recipe for film in films()), *(form.recipe for form in formats())]
    for read in readers:
        if (text := read(data)) is not None:
            return text
    raise InputError(
        f"{name} holds no recipe: it was not drawn by lens render, or something that re-encodes pictures removed it"
    )


def _report(recipe: dict[str, Any], found: tuple[str, bytes | None], data: bytes, folder: Path) -> AgainReport:
    """Write what was drawn, and compare it with the first picture's bytes."""
    name, drawn = found
    if drawn is None:
        raise InputError(
            f"the picture cannot be drawn again: this version ({__version__}) cuts the capture into other pictures "
            f"than {recipe['software']} did"
        )
    path = folder / name
    files.prepare(path.parent)
    files.write(path, drawn)
    return AgainReport(path=path, same=drawn == data, notes=_notes(recipe, same=drawn == data))


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > LARGEST:
            raise InputError(f"{path} is larger than any picture of lens render")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


def _check_store(recipe: dict[str, object], store: Store, picture: str) -> None:
    """Refuse a store that is not the one that the picture was drawn from."""
    wanted = str(recipe["store"])
    there = {name: identity(store[name]) for name in store.ids}
    name = str(recipe["capture"])
    if there.get(name) == wanted:
        return
    if other := next((other for other, found in there.items() if found == wanted), None):
        raise InputError(
            f"{picture} shows capture {name}, which is capture {other} of {store.path}: draw it by lens render"
        )
    found = f"its capture {name} is {_short(there[name])}" if name in there else f"it has no capture {name}"
    raise InputError(
        f"{picture} was drawn from another store than {store.path}: it shows capture {name} of model "
        f"{recipe.get('model')}, {_short(wanted)}; {found}"
    )


def _drawn(store: Store, options: RenderOptions, recipe: dict[str, Any], wanted: str) -> tuple[str, bytes | None]:
    """File name and bytes of what has the wanted recipe; no bytes where nothing has it."""
    view, painter = open_view(store[str(options.capture)], options), painter_of(options)
    if isinstance(shown := recipe.get("film"), dict):
        film, fps = film_named(str(shown.get("format"))), shown.get("fps")
        if not isinstance(fps, float | int):
            raise InputError(f"the recipe in the picture is damaged: fps is {fps!r}")
        check_fps(fps)
        film.check()
        for name, data in animate(view, painter, film, fps):
            if film.recipe(data) == wanted:
                return f"{name}{film.SUFFIX}", data
        return "", None
    return _match(view, options, wanted)


def _match(view: View, options: RenderOptions, wanted: str) -> tuple[str, bytes | None]:
    """File name and bytes of the product of a view that has the wanted recipe."""
    for unit in view.units:
        for product in products(view, unit, options):
            if to_text(product.recipe) == wanted:
                data = product.encode(painter_of(options))
                return f"{product.name}{format_named(options.format).SUFFIX}", data
    return "", None


def _now(text: str, recipe: dict[str, object]) -> str:
    """The recipe as this version would write it."""
    software = f"attnlens {__version__}"
    return text if recipe["software"] == software else to_text({**recipe, "software": software})


def _notes(recipe: dict[str, object], *, same: bool) -> tuple[str, ...]:
    if same:
        return ()
    software = f"attnlens {__version__}"
    if recipe["software"] != software:
        return (f"the bytes differ: it was drawn by {recipe['software']}, this is {software}",)
    return ("the bytes differ: matplotlib, the fonts or the compressor are of another version than they were",)


def _short(identity: str) -> str:
    return identity if len(identity) < 24 else f"{identity[:20]}…"
