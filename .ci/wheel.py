"""Fails if the wheel holds anything but the package, or lacks a part of it. Prints its size."""

import sys
import zipfile
from pathlib import Path

wheel = Path(sys.argv[1])
names = zipfile.ZipFile(wheel).namelist()
root = Path(__file__).parent.parent
parts = ("commands", "capture", "render", "store", "schemas")
wanted = {str(file.relative_to(root)) for part in parts for file in (root / part).rglob("*.py")}
wanted |= {f"render/viewer/{name}" for name in ("index.html", "app.js", "app.css")}
wanted |= {file.name for file in root.glob("*.py")} | {"py.typed"}
found = {name.removeprefix("attnlens/") for name in names if ".dist-info/" not in name}
assert found == wanted, f"missing {sorted(wanted - found)}, not wanted {sorted(found - wanted)}"
assert any(name.endswith("licenses/LICENSE") for name in names), "no license"
print(f"{wheel.name}: {wheel.stat().st_size / 1000:.0f} kB, {len(found)} files")
