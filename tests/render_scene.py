"""Scenes made up for tests, and texts that are hard on every format."""

from __future__ import annotations

import unicodedata
from typing import Any

import numpy as np

from attnlens.render.scene import Prediction, Scene, Subject
from attnlens.render.text.legible import legible

HOSTILE = ["$\\frac$", "$$", "\x00", "\n", "\t\r", "\u202e\u05e9\u05dc\u05d5\u05dd", "\u0645\u0631\u062d\u0628\u0627",
           "\U0001f469\u200d\U0001f469\u200d\U0001f467", "\U0001f3c3\u200d\u2642\ufe0f", "1\ufe0f\u20e3",
           "\U0001f469\u200d" * 30,
           "\ud83d", "x" * 300, "W" * 12, "\u4e2d\u56fd\u8bdd" * 9,
           "e" + "\u0301" * 9, "\u0e01\u0e33", "\ufdfa", "\ufdfd", "<svg onload=alert(1)>",
           "</text><script>alert(1)</script>", "]]><!--", "&amp;&#0;", "\"'><img src=x onerror=alert(1)>",
           "\\", "^_{", "{}%#&~", "\U0001d54f",
           "\U00012031", "\u0489", "\u20dd", "\ufffe", "\U0001ffff", "%PDF-1.4 endstream endobj", "(\\))"]  # fmt: skip


def blocks() -> list[str]:
    """Some characters of every 256 code points that hold any."""
    found = []
    for start in range(0, 0x110000, 256):
        there = [chr(code) for code in range(start, start + 256) if unicodedata.category(chr(code)) != "Cn"]
        if there:
            found.append("".join(there[:: max(1, len(there) // 3)][:3]))
    return found


def scene(
    texts: list[list[str]] | None = None,
    *,
    shape: tuple[int, int] = (4, 8),
    start: int = 3,
    raw: bool = False,
    **changes: Any,
) -> Scene:
    """Rows of a model of few layers, columns from `start`; the last column is the query. Of five rows, row 3 is NaN."""
    n_row, n_column = shape
    stop = start + n_column
    rng = np.random.default_rng(7)
    matrix = rng.random(shape, np.float32)
    matrix[-1] = 0
    if n_row > 4:
        matrix[3] = np.nan
    texts = texts or [[f"t{row}.{column}" for column in range(n_column)] for row in range(n_row)]
    values: dict[str, Any] = {
        "subject": Subject(
            model="made/up",
            capture="0000",
            status="complete",
            n_prompt=start + n_column - 2,
            n_layer=n_row - 1,
            special=frozenset({start + 1}),
            lens_absent=None,
            reduction="max over 9 heads",
        ),
        "query": stop - 1,
        "token": "·Bob",
        "predicted": Prediction(text="'s", probability=0.9296),
        "next": None,
        "rows": tuple(range(n_row)),
        "columns": tuple(range(start, stop)),
        "matrix": matrix,
        "labels": tuple(tuple(text if raw or not text else legible(text) for text in row) for row in texts),
        "colormap": "coolwarm",
        "recipe": {"recipe": 1, "columns": f"{start}-{stop - 1}", "quotes": "</recipe>&'\"\u4e2d\ud83d"},
    }
    return Scene(**{**values, **changes})


def grid(texts: list[str], n_column: int = 32, every: int = 1) -> list[list[str]]:
    """Texts in rows of cells, so many cells apart (the others are empty), and an empty row at the end."""
    n_row = -(-len(texts) * every // n_column) * every + 1
    rows = [["" for _ in range(n_column)] for _ in range(n_row)]
    places = [(row, column) for row in range(0, n_row - 1, every) for column in range(0, n_column, every)]
    for (row, column), text in zip(places, texts, strict=False):
        rows[row][column] = text
    return rows
