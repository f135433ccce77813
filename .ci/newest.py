"""Prints the newest Python of this machine (from 3.11 on), pyenv's or the system's; nothing if this one is it."""

import os
import subprocess
import sys
from pathlib import Path

LATEST = 14
"""The minor version of the last Python that the dependencies have wheels for."""


def main() -> None:
    roots = [Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"]
    found = [path for root in roots for path in root.glob("3.*/bin/python")]
    for folder in map(Path, os.environ["PATH"].split(os.pathsep)):
        found += (folder / f"python3.{minor}" for minor in range(11, LATEST + 1))
    best = max(filter(None, map(version, found)), default=None)
    if best is not None and best[0] > sys.version_info[:3]:
        print(best[1])


def version(path: Path) -> tuple[tuple[int, ...], str] | None:
    """(version, path) of an interpreter that runs; None for pyenv's shims of versions that are not chosen."""
    if not path.exists() or "shims" in path.parts:
        return None
    code = "import sys, venv, ensurepip; print(*sys.version_info[:3])"
    done = subprocess.run([path, "-c", code], capture_output=True, text=True, check=False)
    numbers = tuple(map(int, done.stdout.split())) if done.returncode == 0 else ()
    return (numbers, str(path)) if (3, 11) <= numbers[:2] <= (3, LATEST) else None


main()
