"""Prints, as pip constraints, the lowest versions that pyproject.toml admits of what attnlens itself imports."""

import re
import tomllib
from pathlib import Path

root = Path(__file__).parent.parent
project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
for requirement in [*project["dependencies"], *project["optional-dependencies"]["capture"]]:
    name, lowest = re.match(r"([\w.-]+)>=([\d.]+)", requirement).groups()
    print(f"{name}=={lowest}")
