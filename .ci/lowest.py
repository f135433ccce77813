"""Prints, as pip constraints, the lowest versions that pyproject.toml admits of what attnlens itself imports.

torch stays at the version of constraints.txt: the build of its lower bound brings 6 GB of CUDA with it. That bound was
tried by hand, with these versions.
"""

import re
import tomllib
from pathlib import Path

root = Path(__file__).parent.parent
project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
for requirement in [*project["dependencies"], *project["optional-dependencies"]["capture"]]:
    name, lowest = re.match(r"([\w.-]+)>=([\d.]+)", requirement).groups()
    if name != "torch":
        print(f"{name}=={lowest}")
for line in (root / "constraints.txt").read_text().splitlines():
    if line.startswith("torch=="):
        print(line)
