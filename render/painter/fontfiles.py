"""Which font files there are: those inside matplotlib, and those of the extra `fonts` where it is installed.

Fonts are named by file and never searched for on the machine, so that a picture does not depend on what else is
installed. DejaVu comes first, so that a text it can draw looks the same with the extra and without.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path

import matplotlib

REGULAR = "DejaVuSans.ttf"
BOLD = "DejaVuSans-Bold.ttf"

CJK = ("noto_cjk_sans_otc", "NotoSansCJK-Regular.ttc", 2)
"""Package, file, and the face of simplified Chinese: each face has every character, in a region's own shapes."""

SCRIPTS = "manimgx_fonts"
"""Package with one Noto font a script."""


@cache
def bundled(name: str) -> str:
    """The file of a font inside matplotlib."""
    return str(Path(matplotlib.get_data_path(), "fonts", "ttf", name))


@cache
def extras() -> tuple[tuple[str, int], ...]:
    """Files of the extra `fonts` and the face in each, in the order in which they are asked for a character."""
    found: list[tuple[str, int]] = []
    if folder := _folder(SCRIPTS):
        plain = [path for path in folder.glob("Noto*.ttf") if "Italic" not in path.name]
        # Fonts of symbols last: they hold letters of other scripts for want of anything better.
        found += [(str(path), 0) for path in sorted(plain, key=lambda path: ("Symbol" in path.name, path.name))]
    package, name, face = CJK
    if (folder := _folder(package)) and (folder / name).is_file():
        found.append((str(folder / name), face))
    return tuple(found)


def _folder(package: str) -> Path | None:
    """Where a package lies, without importing it."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        return None
    return Path(next(iter(found.submodule_search_locations)))
