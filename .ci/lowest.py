"""Prints, as pip constraints, the lowest versions that pyproject.toml admits of what attnlens itself imports.

torch stays at the version of constraints.txt, since the build of its lower bound brings 6 GB of CUDA with it; with
--torch it is the lowest as well (make oldest).
"""

import re
import sys
import tomllib
from pathlib import Path

OTHERS = ("test", "check", "bench")
"""Extras of developers."""

root = Path(__file__).parent.parent
project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
extras = project["optional-dependencies"]
asked = [*project["dependencies"], *(one for name in extras if name not in OTHERS for one in extras[name])]
for requirement in asked:
    name, lowest = re.match(r"([\w.-]+)>=([\d.]+)", requirement).groups()
    if name != "torch" or "--torch" in sys.argv:
        print(f"{name}=={lowest}")
if "--torch" not in sys.argv:
    print(next(line for line in (root / "constraints.txt").read_text().splitlines() if line.startswith("torch==")))
