"""What the page shows is what plain zarr reads, and what render draws."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from PIL import Image

import attnlens
from attnlens.render.look.colour import THEMES, Colours
from attnlens.render.options import RenderOptions
from attnlens.render.scene import Scene
from attnlens.render.text.legible import legible, legible_bytes
from attnlens.render.views.map_view import MapView
from attnlens.render.views.query_view import QueryView
from render_store import WORDS, make
from viewer_page import Page, chromium, serving

LAYERS, HEADS, PROMPT, GENERATED = 4, 6, 14, 9


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("values") / "run.zarr"
    rng = np.random.default_rng(3)
    norms = rng.random((LAYERS, HEADS, PROMPT + GENERATED)).astype(np.float32)
    norms[2] = np.nan
    make(
        path, n_layer=LAYERS, n_head=HEADS, n_prompt=PROMPT, n_generated=GENERATED, without_attention=(2,), n_kv_head=2,
        value_norm=norms, ids=[int(number) for number in rng.integers(0, 12, PROMPT + GENERATED)],
    )  # fmt: skip
    root = json.loads((path / "zarr.json").read_text())
    del root["consolidated_metadata"]  # it does not know of the value norms
    (path / "zarr.json").write_text(json.dumps(root))
    return path


@pytest.fixture(scope="module")
def page(store: Path) -> Iterator[Page]:
    with serving(store) as server, chromium() as browser:
        page = Page(browser, server.url)
        yield page
        assert page.wrong == []
        page.close()


def test_200_random_cells_show_what_plain_zarr_reads(store: Path, page: Page) -> None:
    group = zarr.open_group(store / "0000", mode="r")
    read: dict[str, Any] = {name: np.asarray(array[...]) for name, array in group.arrays()}
    texts = dict(zip(read["vocabulary_id"].tolist(), read["vocabulary_text"].tolist(), strict=True))
    rng = np.random.default_rng(11)
    for _ in range(20):
        query = int(rng.integers(0, PROMPT + GENERATED - 1))
        head = int(rng.integers(0, HEADS))
        heads = str(rng.choice(["max", str(head)]))
        page.set(view="cells", query=query, heads=heads, at=None)
        for _ in range(10):
            row, column = int(rng.integers(0, LAYERS + 1)), int(rng.integers(0, query + 1))
            shown = page.hover(row, column)
            if row < LAYERS:
                weights = read["attention_weight"][row, :, query, column]
                value = weights[head] if heads != "max" else weights.max()
                told = "this layer has none" if row == 2 else np.format_float_positional(value, trim="-")
                assert told == "this layer has none" or np.float16(shown["attention"]) == value
                assert row != 2 or shown["attention"] == told
            ranks = shown["lens"].splitlines()
            assert len(ranks) == 2
            for rank, line in enumerate(ranks):
                word, _, chance = line.rpartition(" ")
                assert np.float32(chance) == read["lens_probability"][row, column, rank]
                plain = texts[int(read["lens_token"][row, column, rank])]
                assert word == legible(plain)
            assert np.float32(shown["entropy"].split()[0]) == read["lens_entropy"][row, column]
            told = shown["next came"].rpartition(" rank ")[2]
            assert told == f"{read['next_rank'][row, column]}, probability 0.5"


def scene(store: Path, options: RenderOptions) -> Scene:
    """What render draws of one query, all columns in one window."""
    view = (MapView if options.map else QueryView)(attnlens.open(store)[0], options)
    return next(iter(view.scenes(view.units[0])))[1]


def levels(page: Page) -> list[list[int]]:
    found: list[list[int]] = page.js(
        """() => { const { scene } = attnlens.view.board;
          return Array.from({ length: scene.nRow }, (_, row) =>
            Array.from({ length: scene.nColumn }, (_, column) => scene.level(row, column))); }"""
    )
    return found


@pytest.mark.parametrize("scale", ["raw", "log", "rank", "drop-sink", "value-norm"])
def test_colours_are_those_of_render(store: Path, page: Page, scale: str) -> None:
    cases = [
        "max",
        "mean",
        "min",
        "median",
        "3",
        "0,2-4:mean",
        "kv-group:1",
        "kv-group:1:mean",
        "top:2:entropy",
        "top:1:induction",
    ]
    for heads in [*cases, *(["rollout"] if scale != "value-norm" else [])]:
        for query in (0, 7, PROMPT + 3):
            drawn = scene(store, RenderOptions(queries=str(query), heads=heads, scale=scale, window=99))
            expected = as_levels(drawn)
            page.set(view="cells", query=query, heads=heads, scale=scale, text="token", at=None)
            found = np.array(levels(page))
            assert found.shape == expected.shape
            assert (found == expected).all(), (heads, scale, query)


def as_levels(drawn: Scene) -> np.ndarray[Any, Any]:
    """Places 0 … 255 in the colour map of a scene's values, as matplotlib finds them; -1 for none."""
    low, high = drawn.scale
    with np.errstate(invalid="ignore"):
        place = np.clip(np.floor((drawn.matrix - low) / (high - low) * np.float32(256)), 0, 255)
    return np.where(np.isnan(drawn.matrix), -1, place)


@pytest.mark.parametrize("text", ["token", "probability", "top-k", "entropy", "next-rank", "weight"])
def test_texts_are_those_of_render(store: Path, page: Page, text: str) -> None:
    for query in (5, PROMPT + 2):
        drawn = scene(store, RenderOptions(queries=str(query), text=text, window=99))
        page.set(view="cells", query=query, heads="max", scale="raw", text=text, at=None)
        page.js(
            "() => attnlens.side.lens.ensure(['lens_token', 'lens_probability', 'lens_entropy', 'next_rank'], 0, 99)"
        )
        found = page.js(
            """() => { const { scene } = attnlens.view.board;
              return Array.from({ length: scene.nRow }, (_, row) =>
                Array.from({ length: scene.nColumn }, (_, column) => scene.text(row, column))); }"""
        )
        assert found == [list(row) for row in drawn.labels]


@pytest.mark.parametrize("scale", ["raw", "log", "drop-sink", "value-norm"])
def test_maps_are_those_of_render(store: Path, page: Page, scale: str) -> None:
    n_row = PROMPT + GENERATED - 1
    for name, heads, what in (("1.3", "max", "1.3"), ("1.reduced", "mean", "1"), ("0.reduced", "top:2:entropy", "0")):
        drawn = scene(
            store,
            RenderOptions(queries="all", map=what, heads=heads if what.isdigit() else "max", scale=scale, window=99),
        )
        page.set(view="map", map=name, heads=heads, scale=scale, cell=12, from_=0, at=None)
        page.js(
            """async () => { const { board } = attnlens.view; board.zoom(3); board.pan(-999, -999);
              const rows = Array.from({ length: board.scene.nRow }, (_, row) => row);
              for (let i = 0; i < 300 && !rows.every(board.scene.has); i++)
                await new Promise((done) => setTimeout(done, 10)); }"""
        )
        found = np.array(levels(page))
        future = np.triu(np.ones((n_row, n_row), bool), 1)
        expected = np.where(future, -2, as_levels(drawn))
        assert (found == expected).all()


def test_a_saved_png_has_the_cell_colours_of_render(store: Path, page: Page) -> None:
    query = PROMPT + 4
    for cmap, scale in (("coolwarm", "raw"), ("cividis", "log"), ("viridis", "drop-sink")):
        drawn = scene(store, RenderOptions(queries=str(query), cmap=cmap, scale=scale, window=99))
        page.set(view="cells", query=query, heads="max", scale=scale, cmap=cmap, text="token", at=None)
        page.js("() => { attnlens.view.board.zoom(30); attnlens.view.board.pan(-999); }")
        picture, frame = saved(page)
        fills = Colours(cmap).fill(drawn.matrix, drawn.scale)
        hatch = THEMES["light"].hatch
        for row in range(drawn.matrix.shape[0]):
            for column in range(drawn.matrix.shape[1]):
                x = round(2 * (frame["left"] + (column - frame["x"]) * frame["w"])) + 4
                y = round(2 * (frame["top"] + (row - frame["y"]) * frame["h"])) + 4
                colour = tuple(picture[y, x].tolist())
                if np.isnan(drawn.matrix[row, column]):
                    assert colour in hatch
                else:
                    assert colour == tuple(fills[row, column].tolist())


def saved(page: Page) -> tuple[np.ndarray[Any, Any], dict[str, float]]:
    """The PNG that "Save PNG" gives, and where its cells are."""
    frame = page.js("() => attnlens.controls.frame()")
    with page.page.expect_download() as waiting:
        page.page.click("text=Save PNG")
    path = waiting.value.path()
    return np.asarray(Image.open(io.BytesIO(Path(path).read_bytes())).convert("RGB")), frame


def test_tokens_are_spelled_as_render_spells_them(store: Path, page: Page) -> None:
    """Letter for letter, over all of Unicode that is anyone's: one character each, and in a row."""
    rng = np.random.default_rng(5)
    characters = [chr(code) for code in rng.integers(0, 0x110000, 3000) if not 0xD800 <= code < 0xE000]
    characters += [chr(code) for code in range(0x500)]
    emoji = [
        "\U0001f469\u200d\U0001f469",
        "a\U0001f1e9\U0001f1ea\U0001f1e9",
        "1\ufe0f\u20e3",
        "\u2764\ufe0f\u0301",
        "x\u200dy",
    ]
    texts = [
        *emoji,
        *WORDS,
        *characters,
        *("".join(rng.choice(characters, 4)) for _ in range(500)),
        "\ufeffx",
        "a  b   c",
        "x" * 97,
        " " * 9,
    ]
    raw = [rng.integers(0, 256, int(size)).astype(np.uint8).tobytes() for size in rng.integers(1, 8, 800)] + [
        b"\xe2\x82",
        b"\xf0\x9f\x98\x80",
    ]
    newer = page.js("(texts) => texts.map((text) => attnlens.legible(text))", texts)
    import unicodedata

    old = [any(unicodedata.category(character) == "Cn" for character in text) for text in texts]  # assigned since
    assert [found for found, skip in zip(newer, old, strict=True) if not skip] == [
        legible(text) for text, skip in zip(texts, old, strict=True) if not skip
    ]
    spelled = page.js(
        "(all) => all.map((bytes) => attnlens.legibleBytes(Uint8Array.from(bytes), ''))", [list(one) for one in raw]
    )
    for one, found in zip(raw, spelled, strict=True):
        if not any(unicodedata.category(character) == "Cn" for character in one.decode("utf-8", "replace")):
            assert found == legible_bytes(one, "")
