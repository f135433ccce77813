"""`lens migrate`: a store of an older format version as one of this version. The old one is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from attnlens.progress import Progress, Silent
from attnlens.schemas.errors import InputError, StoreError
from attnlens.schemas.problems import Problem, summary
from attnlens.schemas.version import FORMAT, FORMAT_VERSION, NAMESPACE
from attnlens.store.files import is_partial
from attnlens.store.places import Place, open_place, stem_of
from attnlens.store.root import root_attributes
from attnlens.store.tools.copy import copy_file
from attnlens.store.tools.output import new_store
from attnlens.store.verify import verify

Check = Callable[[Place], list[Problem]]
"""Everything that is wrong with a store of one version: damage must not be vouched for by a new manifest."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """From format version `source` to `target`. `changes`: what becomes different, a line each for people.

    `apply` changes a copy of the store, which is a folder and no one else's.
    """

    source: int
    target: int
    changes: tuple[str, ...]
    apply: Callable[[Path], None]


READERS: Mapping[int, Check] = {1: lambda place: verify(place.name).problems}
"""Format version → what checks a store of it. A release that makes a new version adds one."""
STEPS: tuple[Step, ...] = ()
"""From each older version to a later one. Version 1 is the first."""


@dataclass(frozen=True, kw_only=True)
class MigrateReport:
    """From which version to which, what changes, and where the new store is: None if none was written."""

    version: int
    target: int
    changes: list[str] = field(default_factory=list)
    path: Path | None = None


def migrate(
    store: str | PathLike[str],
    output: str | PathLike[str] | None = None,
    *,
    dry_run: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> MigrateReport:
    """Write a store of an older format version as one of this version.

    Args:
        store: The store, packed or not; it is not touched.
        output: The new one, `NAME-format-1.zarr` if None.
        dry_run: Say what would change, and write nothing.
        overwrite: Replace a store that is there.
        progress: Where files are counted.

    Raises:
        InputError: something is at `output`.
        StoreError: there is no way to this version, the store is damaged, or the disk refuses.
    """
    progress = progress or Silent()
    place = open_place(store)
    version = _version(place)
    steps = _way(place, version)
    if steps and (problems := READERS[version](place)):
        raise StoreError(f"{place} (format version {version}) is damaged, nothing was written: {summary(problems)}")
    changes = [f"{step.source} → {step.target}: {change}" for step in steps for change in step.changes]
    if dry_run or not steps:
        return MigrateReport(version=version, target=FORMAT_VERSION, changes=changes)
    path = Path(output) if output is not None else Path(f"{stem_of(store)}-format-{FORMAT_VERSION}.zarr")
    if path.suffix == ".zip":
        raise InputError(f"-o {path}: migrate writes a folder; `lens pack` makes one file of it")
    with new_store(path, overwrite=overwrite) as temporary:
        _copy(place, temporary, progress)
        for step in steps:
            step.apply(temporary)
        if problems := verify(temporary).problems:
            raise StoreError(
                f"{place}: from format version {version} to {FORMAT_VERSION} it did not come out whole, nothing was "
                f"kept: {summary(problems)}"
            )
    return MigrateReport(version=version, target=FORMAT_VERSION, changes=changes, path=path)


def _version(place: Place) -> int:
    ours: Any = root_attributes(place)[NAMESPACE]
    if not isinstance(ours, Mapping) or ours.get("format") != FORMAT:
        raise StoreError(f"{place} is not an attnlens store: its attributes do not say format {FORMAT!r}")
    version = ours.get("version")
    if not isinstance(version, int) or isinstance(version, bool):
        raise StoreError(f"{place}: format version is {version!r}, expected a number up to {FORMAT_VERSION}")
    return version


def _way(place: Place, version: int) -> list[Step]:
    """The steps from a version to this one, none if it is this one.

    Raises:
        StoreError: there is no way.
    """
    found: list[Step] = []
    at = version
    while at != FORMAT_VERSION:
        step = next((step for step in STEPS if step.source == at and at < step.target <= FORMAT_VERSION), None)
        if step is None or version not in READERS:
            remedy = "upgrade attnlens" if version > FORMAT_VERSION else "read it with the attnlens that wrote it"
            known = ", ".join(map(str, sorted(READERS)))
            raise StoreError(
                f"{place} has format version {version}, and there is no way to version {FORMAT_VERSION} (known: "
                f"{known}): {remedy}"
            )
        found.append(step)
        at = step.target
    return found


def _copy(place: Place, folder: Path, progress: Progress) -> None:
    names = [name for name in place.files() if not is_partial(name)]
    progress.stage("copying", len(names), "files")
    for name in names:
        copy_file(place, name, folder / name)
        progress.advance()
    progress.end()
