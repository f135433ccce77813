"""Many prompts in one store: planned together, shared by the processes of a run, resumed after a kill.

What keeps the processes apart is the file system alone. Creating a capture's folder claims it; the lock of the run says
whether anybody is still at work. So a process that dies costs only the prompt that it was at; those that it finished in
the second before are published by others: see `adopt`.
"""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from attnlens.schemas.errors import InputError, Setting
from attnlens.schemas.metadata import Batch, BatchPrompt, CaptureMetadata, StoreMetadata
from attnlens.schemas.validate import CAPTURE_NAME
from attnlens.schemas.version import NAMESPACE
from attnlens.store.adopt import adopt, finished_document
from attnlens.store.commit import COORDINATES, CaptureFile, publish_captures
from attnlens.store.durable import flush, flush_way
from attnlens.store.exchange import put_back
from attnlens.store.faults import write_error
from attnlens.store.files import PARTIAL, clean, group_document, read_document, write_document
from attnlens.store.group import Group
from attnlens.store.heads import HeadShare
from attnlens.store.layout import MIB
from attnlens.store.lists import batches_of, with_batches, with_index
from attnlens.store.lock import refuse_busy
from attnlens.store.notices import tell
from attnlens.store.places import Folder
from attnlens.store.places.place import GROUP_DOCUMENT
from attnlens.store.replacement import MARK, Mode, folder_for, is_finished, unfinished
from attnlens.store.root import (
    OTHERWISE,
    current_entries,
    indexed,
    is_free,
    new_root,
    next_ids,
    read_root,
    write_root,
)
from attnlens.store.special import followed
from attnlens.store.target import Target
from attnlens.store.writer import CaptureWriter

MANY = 1000
"""Prompts beyond which it is not counted after each how many are done."""
ABANDONED = ("partial", None)
"""Status and error of a capture whose process died. All of it may have been written: see `adopt`."""
Wanted = Sequence[tuple[str, str]]
"""(prompt id, hash of what is asked) of each prompt, in order."""


class BatchWriter:
    """The captures of many prompts, being written. Made by `open_batch`."""

    def __init__(self, path: Path, target: Target, batch: Batch) -> None:
        self.path = path
        self.place = target.place
        self.batch = batch
        self._target = target
        self._finished: dict[str, bool] = {}
        self._counts: tuple[int, int] | None = None
        self._look_again = 0.0
        self._group: Group[CaptureFile] = Group(self._publish)
        self._ready: set[str] = set()
        """Captures that are finished, and not yet on the disk."""

    def pending(self) -> list[BatchPrompt]:
        """Prompts whose capture nobody has begun, in order."""
        return [prompt for prompt in self.batch.prompts if not (self.path / prompt.capture).exists()]

    def claim(self, name: str) -> bool:
        """Make the folder of capture `name`; False if another process of the run did so before.

        Raises:
            StoreError: the disk refuses.
        """
        try:
            (self.path / name).mkdir()
        except FileExistsError:
            return False
        except OSError as error:
            raise write_error(error, self.path, 0) from error
        return True

    def capture(
        self,
        metadata: CaptureMetadata,
        *,
        capacity: int,
        key_rows_hold: int = 64 * MIB,
        buffer_bytes: int = 64 * MIB,
        share: HeadShare | None = None,
    ) -> CaptureWriter:
        """Begin a capture that was claimed. As `StoreWriter.capture`, but the store's index is left for the end.

        Raises:
            StoreError: the disk refuses.
        """
        try:
            file = CaptureFile(
                self.path, metadata, capacity=capacity, key_rows_hold=key_rows_hold, claimed=True, share=share
            )
        except OSError as error:
            raise write_error(error, self.path, 0) from error
        return CaptureWriter(file, lambda: None, buffer_bytes, lambda: None, self._later)

    def _later(self, file: CaptureFile) -> None:
        """Mark a finished capture complete with the next group."""
        self._ready.add(file.metadata.id)
        self._group.add(file)

    def _publish(self, files: Sequence[CaptureFile]) -> None:
        try:
            publish_captures(files)
        except OSError as error:
            raise write_error(error, self.path, 0) from error
        self._ready.difference_update(file.metadata.id for file in files)

    def flush(self) -> None:
        """Return when every capture that this process has finished is on the disk.

        Raises:
            StoreError: the disk refuses.
        """
        self._group.wait()

    def has_begun(self, name: str) -> bool:
        """Whether capture `name` has a record of its own."""
        return (self.path / name / GROUP_DOCUMENT).exists()

    def fail(self, metadata: CaptureMetadata, message: str) -> None:
        """Record a claimed capture that cannot even begin: failed, without arrays.

        Raises:
            StoreError: the disk refuses.
        """
        failed = metadata.model_copy(update={"status": "failed", "error": message})
        values = clean(failed.model_dump(mode="json", exclude={"digest"}))
        try:
            write_document(self.path / metadata.id, group_document({NAMESPACE: values, "coordinates": COORDINATES}))
        except OSError as error:
            raise write_error(error, self.path, 0) from error

    def finished(self, *, exact: bool = True) -> tuple[int, int]:
        """How many prompts of the batch are complete, and how many have ended otherwise, whoever did them.

        Args:
            exact: False looks at most a twentieth of the time, since each look goes through all prompts: asked after
                each of many thousands, it would take longer than they do.
        """
        if self._counts is not None:
            return self._counts
        begun_at = time.monotonic()
        if exact or begun_at >= self._look_again:
            begun = {entry.name for entry in self.path.iterdir()}
            for prompt in self.batch.prompts:
                if (
                    prompt.capture in begun
                    and prompt.capture not in self._finished
                    and prompt.capture not in self._ready
                ):
                    status, error = _state(self.path / prompt.capture)
                    if status == "complete" or error is not None:
                        self._finished[prompt.capture] = status == "complete"
            now = time.monotonic()
            self._look_again = now + (20 * (now - begun_at) if len(self.batch.prompts) > MANY else 0.0)
        complete = sum(self._finished.values())
        return complete, len(self._finished) - complete

    def close(self) -> bool:
        """No more captures of this process. True if no other one is at work: then the store's index was written, and a
        store of which every prompt is complete has taken the place of the one that it replaces.

        Raises:
            StoreError: the disk refuses.
        """
        try:
            self._group.close()
        except BaseException:
            self._target.release()
            raise
        if not self._target.last():
            self._counts = self.finished()
            return False
        try:
            self.finished()
            adopt(self.path / prompt.capture for prompt in self.batch.prompts if prompt.capture not in self._finished)
            flush(self.path)  # the records of prompts that failed, too
            flush_way(self.path)
            write_root(self.path, indexed(self.path, read_root(Folder(self.path))), running=False)
            self._counts = self.finished()
            complete, wanted = self._counts[0], len(self.batch.prompts)
            if complete < wanted:
                self._target.keep(f"{wanted - complete} of {wanted} prompts are not complete")
            elif not self._target.publish():
                return False
            self.path = self._target.path
        except OSError as error:
            raise write_error(error, self.path, 0) from error
        finally:
            self._target.release()
        return True

    def wait(self) -> None:
        """After `close`: return when every other process of the run has closed the store, or died."""
        self._target.lock.wait()
        self._target.release()


def check_batch(
    path: str | PathLike[str], wanted: Wanted, settings: Mapping[str, Any], *, mode: Mode, run: str
) -> list[str]:
    """Everything that `open_batch` would refuse, without writing: for before the model is loaded.

    Args:
        path: of the store.
        wanted: the prompts.
        settings: what is known of the settings; those that the store has beside them are not compared.
        mode: as for `open_batch`.
        run: as for `open_batch`.

    Returns:
        Ids of the prompts that are complete already.

    Raises:
        InputError: as `open_batch`.
        StoreError: as `open_batch`.
    """
    target = _target(path)
    refuse_busy(target, run)
    begun = unfinished(target)
    if begun is not None and _joined(begun, wanted, run) is not None:  # by another process of this run
        target = begun
        refuse_busy(target, run)
    elif _joined(target, wanted, run) is None and not (mode == "replace" and is_finished(target)):
        target = folder_for(target, mode)
        refuse_busy(target, run)
    batch = _existing(target, wanted, settings, mode=mode, run=run)
    if batch is None or batch.run == run:  # what other processes of this run have done was not there before
        return []
    return [prompt.prompt_id for prompt in batch.prompts if _will_be_kept(target / prompt.capture)]


def open_batch(
    path: str | PathLike[str], wanted: Wanted, settings: Mapping[str, Any], *, mode: Mode, run: str, shared: bool
) -> BatchWriter:
    """Plan a capture for each prompt, or find those planned before.

    Args:
        path: of the store.
        wanted: the prompts.
        settings: what all of them share, model included.
        mode: new: nothing may be there; overwrite: replace the store there, by one beside it until every prompt is
            complete; append: add to it; resume: go on with the same prompts, taking away what is not complete (and
            begin, if nothing is there), in the replacement that a killed run has left, if there is one; replace:
            go on with such a replacement, or begin it.
        run: name of the run.
        shared: several processes give the same name and share the store; the first one opens it.

    Raises:
        InputError: something is there, other prompts or settings were given, or another run is writing.
        StoreError: what is there is no store of this version, or the disk refuses.
    """
    place = _target(path)
    try:
        target = Target(
            place,
            mode,
            run=run if shared else None,
            joined=lambda folder: _joined(folder, wanted, run) is not None,
        )
        folder = target.path
        try:
            if target.lock.exclusive:
                batch = _existing(folder, wanted, settings, mode=mode, run=run)
                metadata = new_root() if _is_new(folder) else read_root(Folder(folder))
                batch, waste = _prepare(folder, metadata, batch, wanted, settings, run)
                for half in folder.glob(f"{Path(GROUP_DOCUMENT).stem}.*{PARTIAL}"):
                    tell(f"removed {half}, which a run that was killed had left")
                    half.unlink(missing_ok=True)
                if shared:
                    target.share()
                if waste:
                    flush(folder)  # what is removed may be what a capture was before it was given arrays
                for unfinished in waste:
                    shutil.rmtree(unfinished, ignore_errors=True)
            else:
                batch = _required(folder, wanted, run)
        except BaseException:
            target.undo()
            raise
    except OSError as error:
        raise write_error(error, place, 0) from error
    return BatchWriter(folder, target, batch)


def _is_new(folder: Path) -> bool:
    """Whether a store is to be begun in a folder."""
    return is_free(folder) or not (folder / GROUP_DOCUMENT).exists()


def _target(path: str | PathLike[str]) -> Path:
    return followed(Path(path))


def _existing(path: Path, wanted: Wanted, settings: Mapping[str, Any], *, mode: Mode, run: str) -> Batch | None:
    """The batch that is gone on with; None if one is to be begun. `path`: where is written, as `folder_for` says."""
    if is_free(path):
        return None
    joined = _joined(path, wanted, run)
    if joined is not None:
        return joined
    match mode:
        case "new":
            raise InputError(
                f"{path} exists: give another ",
                Setting("store", "-o"),
                ", or ",
                Setting("resume=True", "--resume"),
                " to go on with it, ",
                *OTHERWISE,
            )
        case "append":
            read_root(Folder(path))
            return None
        case _ if not (path / GROUP_DOCUMENT).exists() and (path / MARK).exists():  # a replacement, just begun
            return None
        case _:
            return _same(path, _batches(path), wanted, settings)


def _joined(path: Path, wanted: Wanted, run: str) -> Batch | None:
    """The batch that another process of this run has put in place."""
    if is_free(path) or not (path / "zarr.json").exists():
        return None
    for batch in _batches(path):
        if batch.run == run and _hashes(batch) == list(wanted):
            return batch
    return None


def _batches(path: Path) -> list[Batch]:
    return batches_of(Folder(path), read_root(Folder(path)))


def _required(path: Path, wanted: Wanted, run: str) -> Batch:
    batch = _joined(path, wanted, run)
    if batch is None:
        raise InputError(f"the processes of this run were given different prompts for {path}")
    return batch


def _same(path: Path, batches: Sequence[Batch], wanted: Wanted, settings: Mapping[str, Any]) -> Batch:
    """The batch of these prompts and settings.

    Raises:
        InputError: there is none; says how the last one differs.
    """
    if not batches:
        raise InputError(
            f"cannot resume {path}: it was not made from many prompts; give another ", Setting("store", "-o")
        )
    differences = [_difference(batch, wanted, settings) for batch in batches]
    for batch, difference in zip(batches, differences, strict=True):
        if difference is None:
            return batch
    raise InputError(
        f"cannot resume {path}: {differences[-1]}; give the same again, or another ", Setting("store", "-o")
    )


def _difference(batch: Batch, wanted: Wanted, settings: Mapping[str, Any]) -> str | None:
    """How a batch differs from what is asked, in words; None if it does not."""
    for key in sorted(settings.keys() & batch.settings.keys()):
        was, found = batch.settings[key], settings[key]
        if was == found:
            continue
        if isinstance(was, list) and isinstance(found, list):  # of long lists, only what differs
            gone = [f"no longer {item!r}" for item in was if item not in found]
            if changes := gone + [f"now {item!r}" for item in found if item not in was]:
                return f"{key}: {', '.join(changes)}"
        return f"{key} was {was!r}, now it is {found!r}"
    before, now = dict(_hashes(batch)), dict(wanted)
    for name in now:
        if name not in before:
            return f"prompt {name!r} is new, {len(before)} prompts were given before"
    for name in before:
        if name not in now:
            return f"prompt {name!r} is missing"
    for name in now:
        if now[name] != before[name]:
            return f"prompt {name!r} is not what it was (its text, or how it goes on)"
    return None if list(before) == list(now) else "the prompts are in another order"


def _prepare(
    path: Path, metadata: StoreMetadata, batch: Batch | None, wanted: Wanted, settings: Mapping[str, Any], run: str
) -> tuple[Batch, list[Path]]:
    """Plan the batch in the store's zarr.json; returns it, and folders of unfinished captures, out of the way.

    Nobody else writes, so what is not complete never will be.
    """
    put_back(path)
    before = batches_of(Folder(path), metadata)
    again: set[str] = set()
    waste = [entry for entry in path.iterdir() if entry.is_dir() and entry.name.endswith(PARTIAL)]
    for entry in waste:
        tell(f"removing {entry}, which a run that was killed had left")
    if batch is None:
        taken = [*metadata.planned, *(entry.name for entry in path.iterdir() if CAPTURE_NAME.fullmatch(entry.name))]
        names = next_ids(taken, len(wanted))
        prompts = [
            BatchPrompt(capture=name, prompt_id=prompt_id, sha256=digest)
            for name, (prompt_id, digest) in zip(names, wanted, strict=True)
        ]
        changed = Batch(settings=dict(settings), prompts=prompts, run=run)
        batches = [*before, changed]
        metadata = metadata.model_copy(update={"planned": [*metadata.planned, *names]})
    else:
        changed = batch.model_copy(update={"run": run})
        batches = [changed if other is batch or other == batch else other for other in before]
        folders = [path / prompt.capture for prompt in batch.prompts]
        adopt(folder for folder in folders if _state(folder) == ABANDONED)
        for prompt in batch.prompts:
            status, error = _state(path / prompt.capture)
            kept = status == "complete" or (batch.run == run and error is not None)
            if kept:
                continue
            again.add(prompt.capture)
            if (path / prompt.capture).exists():
                waste.append(_away(path / prompt.capture))
    metadata = with_index(metadata, current_entries(Folder(path), metadata, changed=again) or None)
    write_root(path, with_batches(metadata, batches), running=True)
    return changed, waste


def _will_be_kept(folder: Path) -> bool:
    """Whether a capture is complete, or will be as soon as somebody adopts it."""
    state = _state(folder)
    return state[0] == "complete" or (state == ABANDONED and finished_document(folder) is not None)


def _away(folder: Path) -> Path:
    """Rename a folder to what every reader ignores, in one step."""
    return folder.rename(folder.with_name(f"{folder.name}.{secrets.token_hex(4)}{PARTIAL}"))


def _state(folder: Path) -> tuple[str | None, str | None]:
    """Status of a capture and why it ended, as its zarr.json says; None where that cannot be read."""
    try:
        ours = read_document(folder)["attributes"][NAMESPACE]
        status, error = ours.get("status"), ours.get("error")
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None, None
    return (status if isinstance(status, str) else None), (error if isinstance(error, str) else None)


def _hashes(batch: Batch) -> list[tuple[str, str]]:
    return [(prompt.prompt_id, prompt.sha256) for prompt in batch.prompts]
