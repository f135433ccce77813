"""A store that is to replace another one is written beside it, and takes its place when it is complete.

`run.zarr` is replaced by what is written to `run.new.zarr`. The file `replaces.partial` in there says so: it names the
store that is to be replaced, with the sha256 of its zarr.json, so that nothing else is ever taken for a replacement or
deleted as what was replaced.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
from glob import escape
from pathlib import Path
from typing import Literal

from attnlens.schemas.errors import InputError, Setting, StoreError
from attnlens.schemas.version import NAMESPACE
from attnlens.store.durable import flush_names
from attnlens.store.exchange import BEFORE, take_place
from attnlens.store.files import PARTIAL, read_document, read_plain, walk, write_atomic
from attnlens.store.notices import tell
from attnlens.store.places.place import GROUP_DOCUMENT
from attnlens.store.root import is_free, replaceable

MARK = f"replaces{PARTIAL}"
REPLACED = f".replaced{PARTIAL}"
"""Ending of a store that was replaced and is being deleted."""
Mode = Literal["new", "overwrite", "append", "resume", "replace"]
"""`new`: nothing may be there; `overwrite`: replace the store there; `append`: add to it; `resume`: go on with what a
killed run left; `replace`: go on with an unfinished replacement, or begin one."""


def mode_of(*, overwrite: bool, append: bool, resume: bool) -> Mode:
    """What to do with a store that is there.

    Raises:
        InputError: two of them were asked for that do not go together.
    """
    if overwrite and resume and not append:
        return "replace"
    wanted: dict[Mode, bool] = {"overwrite": overwrite, "append": append, "resume": resume}
    chosen = [mode for mode, asked_for in wanted.items() if asked_for]
    if len(chosen) > 1:
        raise InputError(Setting(chosen[0]), " and ", Setting(chosen[1]), " were given; expected one of them")
    return chosen[0] if chosen else "new"


def beside(place: Path) -> Path:
    """Where the replacement of the store at `place` is written."""
    return place.with_name(f"{place.stem}.new{place.suffix}")


def unfinished(place: Path) -> Path | None:
    """The replacement of the store at `place` that a run has begun and not finished; None if there is none."""
    folder = beside(place)
    return folder if _mark(folder).get("replaces") == place.name else None


def standing(folder: Path) -> str:
    """How far a replacement is: "2 of 8 captures complete"."""
    complete, planned = _count(folder)
    return f"{complete} of {planned} captures complete"


def has_batches(folder: Path) -> bool:
    """Whether a replacement was begun with many prompts."""
    try:
        about = read_document(folder)["attributes"][NAMESPACE]
        return bool(about.get("batches") or (about.get("lists") or {}).get("batches"))
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False


def folder_for(place: Path, mode: Mode) -> Path:
    """Where a run of this mode writes, so that the store at `place` stays. Writes nothing.

    Raises:
        InputError: an unfinished replacement must not be passed over, or something else has its name.
    """
    folder, left = beside(place), unfinished(place)
    if left is not None and mode in ("resume", "replace"):
        if mode == "resume" and not is_free(place) and _mark(left).get("sha256") != _hash(place):
            raise InputError(
                f"{place} has changed since {left} was begun to replace it ({standing(left)}): give ",
                Setting("overwrite=True", "--overwrite"),
                " too to replace it all the same, or move one of them away",
            )
        return left
    if left is not None and (mode != "overwrite" or _count(left)[0] or not _removable(left)):
        raise InputError(
            f"an unfinished replacement of {place} is in {left} ({standing(left)}): ",
            Setting("resume=True", "--resume"),
            f" goes on with it; to discard it, delete {left}",
        )
    if mode not in ("overwrite", "replace") or is_free(place):
        return place
    replaceable(place)
    if left is None and not is_free(folder) and not _is_old(folder, place):
        raise InputError(
            f"{folder} is in the way: the replacement of {place} is written there; move it away, or give another ",
            Setting("store", "-o"),
        )
    return folder


def begin(folder: Path, place: Path, *, afresh: bool) -> None:
    """Mark the locked folder as the replacement of the store at `place`, `afresh` without what a killed run has left.

    Raises:
        OSError: the disk refuses.
    """
    if afresh and unfinished(place) is not None:
        tell(f"removed {folder}, where a replacement of {place} was begun and not finished ({standing(folder)})")
        for entry in folder.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
        (folder / GROUP_DOCUMENT).unlink(missing_ok=True)
    mark = {"replaces": place.name, "sha256": _hash(place)}
    write_atomic(folder / MARK, json.dumps(mark).encode())


def publish(folder: Path, place: Path) -> None:
    """Put the complete store in `folder` at `place`, then delete what was there.

    Raises:
        StoreError: what is at `place` is no longer what was to be replaced; both are kept.
        OSError: the system refuses; both are kept.
    """
    if not is_free(place) and _mark(folder).get("sha256") != _hash(place):
        raise StoreError(f"{place} has changed meanwhile and is kept; the new store is complete, in {folder}")
    take_place(folder, place, _aside(place) / BEFORE / place.name)
    _remove(folder, place)
    (place / MARK).unlink(missing_ok=True)


def settle(place: Path) -> bool:
    """Delete what a killed run had replaced and not yet deleted. Nobody else may be writing. True if there was a run
    that was killed there.
    """
    for aside in sorted(place.parent.glob(f".{escape(place.name)}.*{REPLACED}")):
        if aside.is_dir() and not aside.is_symlink():
            tell(f"removed {aside}, what a run that was killed had left of the store that was at {place}")
            shutil.rmtree(aside, ignore_errors=True)
    mark = _mark(place)
    if not mark:
        return False
    old = beside(place)
    if old.exists() and _is_old(old, place):
        tell(f"removed {old}, the store that {place} has replaced")
        _remove(old, place)
    (place / MARK).unlink(missing_ok=True)
    return True


def is_finished(place: Path) -> bool:
    """Whether the store at `place` has replaced another one, by a run that was killed as it cleaned up."""
    return _mark(place).get("replaces") == place.name


def _is_old(folder: Path, place: Path) -> bool:
    """Whether in `folder` is the store that the one at `place` has replaced."""
    mark = _mark(place)
    return mark.get("replaces") == place.name and not _mark(folder) and _hash(folder) == mark.get("sha256")


def replaced_bytes(folder: Path, place: Path) -> int | None:
    """Bytes of the store at `place` that stays until the one in `folder` is complete; None if that is none."""
    return None if folder == place or is_free(place) else sum(path.lstat().st_size for _, path in walk(place))


def announce(folder: Path, place: Path) -> None:
    """Say where a store is written that is to replace the one at `place`, and what the old one takes till then."""
    size = replaced_bytes(folder, place)
    if size is not None:
        free = shutil.disk_usage(place.parent).free
        tell(
            f"writing to {folder}, which takes the place of {place} when it is complete; both need room until then: "
            f"{place} has {size / 1e6:,.1f} MB, {free / 1e6:,.0f} MB are free"
        )


def _remove(old: Path, place: Path) -> None:
    """Delete a store that was replaced, first by its name, so that no half of it is ever taken for a store."""
    aside = _aside(place)
    old.rename(aside)
    flush_names(aside)  # or a power cut may give what is left of it its old name again
    shutil.rmtree(aside, ignore_errors=True)


def _aside(place: Path) -> Path:
    """A name for what was at `place`. Only who has the store's lock uses such a name, or takes it away."""
    return place.with_name(f".{place.name}.{secrets.token_hex(8)}{REPLACED}")


def give_back(place: Path) -> None:
    """Put the store back that a run, killed between two renames, has taken from `place`."""
    for before in sorted(place.parent.glob(f".{escape(place.name)}.*{REPLACED}/{BEFORE}/{escape(place.name)}")):
        if not place.exists():
            before.rename(place)
            flush_names(before, place)
            tell(f"put {place} back in its place, from which a run that was killed had taken it")


def _mark(folder: Path) -> dict[str, str | None]:
    try:
        found = json.loads(read_plain(folder / MARK))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _hash(store: Path) -> str | None:
    """sha256 of a store's own zarr.json; None where there is none."""
    try:
        return hashlib.sha256(read_plain(store / GROUP_DOCUMENT)).hexdigest()
    except OSError:
        return None


def _count(folder: Path) -> tuple[int, int]:
    """Captures of a store that are complete, and that were planned."""
    try:
        planned = list(read_document(folder)["attributes"][NAMESPACE]["planned"])
    except (OSError, ValueError, LookupError, TypeError):
        return 0, 0
    return sum(_is_complete(folder / str(name)) for name in planned), len(planned)


def _is_complete(capture: Path) -> bool:
    try:
        return bool(read_document(capture)["attributes"][NAMESPACE]["status"] == "complete")
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _removable(folder: Path) -> bool:
    """Whether nothing is in a replacement but what a run wrote."""
    if not (folder / GROUP_DOCUMENT).exists():
        return all(entry.name.endswith(PARTIAL) for entry in folder.iterdir())
    try:
        replaceable(folder)
    except InputError:
        return False
    return True
