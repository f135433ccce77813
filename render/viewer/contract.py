"""What Python and the browser must agree on, taken from the Python side and written as `js/contract.js`."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import matplotlib
import numpy as np

from attnlens.render.attention.scales import FLOOR, LEFT_OVER, SCALES
from attnlens.render.look.colour import GRID, ON_DARK, ON_LIGHT, THEMES
from attnlens.render.text.emoji import SEQUENCE
from attnlens.render.text.legible import LIMIT
from attnlens.render.text.texts import TEXTS
from attnlens.schemas.arrays import ARRAY, READINGS, TRACKED
from attnlens.schemas.version import FORMAT, FORMAT_VERSION
from attnlens.store.places.place import WHOLE

READS = (
    "token_id", "token_text", "token_special", "token_bytes", "token_byte_offset", "vocabulary_id", "vocabulary_text",
    *READINGS, *TRACKED, "model_probability", "attention_weight", "attention_max", "attention_mean", "attention_q",
    "attention_k", "value_norm",
)  # fmt: skip
"""Arrays that the page reads."""

PROOF = ("manifest_file", "manifest_sha256", "chunk_sha256")
"""Arrays with which it compares files that come from any web server."""

MAPS = ("coolwarm", "cividis", "viridis", "magma", "RdBu_r")
"""Colour maps that the page can choose from; the last one is for differences."""


def contract() -> str:
    """The text of `contract.js`."""
    values = {
        "FORMAT": FORMAT,
        "VERSION": FORMAT_VERSION,
        "ARRAYS": {
            name: {"axes": ARRAY[name].axes, "dtype": ARRAY[name].dtype, "presence": ARRAY[name].presence}
            for name in (*READS, *PROOF)
        },
        "SCALES": {
            name: {"label": scale.label, "bar": scale.bar, "range": scale.range, "ticks": scale.ticks}
            for name, scale in SCALES.items()
        },
        "TEXTS": {name: text.label for name, text in TEXTS.items()},
        "FLOOR": FLOOR,
        "LEFT_OVER": LEFT_OVER,
        "LIMIT": LIMIT,
        "EMOJI": SEQUENCE.pattern,
        "WHOLE": WHOLE,
        "MAPS": {name: _table(name) for name in MAPS},
        "THEMES": {
            name: {"paper": theme.paper, "ink": theme.ink, "faint": theme.faint, "hatch": theme.hatch}
            for name, theme in THEMES.items()
        },
        "GRID": GRID,
        "ON_LIGHT": ON_LIGHT,
        "ON_DARK": ON_DARK,
    }
    lines = [f"export const {name} = {json.dumps(value)};" for name, value in values.items()]
    return "\n".join(["// Written by render/viewer/contract.py: `make viewer`.", *lines, ""])


def _table(name: str) -> str:
    """A colormap's colours, 256 × rgb, as base64."""
    colours = matplotlib.colormaps[name](np.arange(256), bytes=True)[:, :3]
    return base64.b64encode(colours.astype(np.uint8).tobytes()).decode()


if __name__ == "__main__":
    (Path(__file__).parents[1] / "js" / "contract.js").write_text(contract(), encoding="utf-8")
