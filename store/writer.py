"""Writing a store: the model's thread hands rows over and goes on; another thread writes and commits them."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from attnlens.schemas.errors import InputError, Setting, StoreError
from attnlens.schemas.metadata import CaptureMetadata, LayerInfo, StoreMetadata
from attnlens.store.commit import COMMIT_SECONDS, CaptureFile, publish_captures
from attnlens.store.durable import flush, flush_way
from attnlens.store.faults import write_error
from attnlens.store.heads import HeadsFile, HeadShare
from attnlens.store.late import Numbers, arrived
from attnlens.store.layout import MIB
from attnlens.store.lock import refuse_busy
from attnlens.store.places import Folder
from attnlens.store.queue import ByteQueue
from attnlens.store.replacement import Mode, folder_for, has_batches, is_finished, mode_of
from attnlens.store.root import check_free, indexed, is_free, new_root, next_ids, read_root, write_root
from attnlens.store.special import followed
from attnlens.store.target import Target
from attnlens.store.tidy import tidy

COMMIT_ROWS = 8
Job = Callable[[CaptureFile | HeadsFile], None]


class StoreWriter:
    """A store being written, one capture after another. Nothing is on disk before the first capture begins."""

    def __init__(self, place: Path, path: Path, metadata: StoreMetadata, *, exists: bool, mode: Mode) -> None:
        self.place = place
        self.path = path
        """Where it is written: at `place`, or beside the store there until it has replaced that."""
        self._metadata = metadata
        self._exists = exists
        self._mode = mode

    @classmethod
    def create(
        cls, path: str | PathLike[str], *, overwrite: bool = False, append: bool = False, resume: bool = False
    ) -> StoreWriter:
        """Prepare a new store at `path`, or `append` to the one that is there, or `overwrite` it: beside it then, until
        a capture is complete. `resume`: do what a killed run that was to overwrite it has left undone.

        Raises:
            InputError: something is at `path` and neither was asked for, or it is not an attnlens store.
            StoreError: the store to append to has another format version or is damaged.
        """
        target = followed(Path(path))
        if append and target.is_file():
            raise InputError(f"{path} is packed: unpack it by `lens unpack`, then add to that")
        refuse_busy(target)
        mode: Mode = "append" if append else mode_of(overwrite=overwrite, append=False, resume=resume)
        if mode == "resume" and is_finished(target):
            mode = "replace"
        folder = folder_for(target, mode)
        if mode == "resume" and folder == target and not is_free(target):
            raise InputError(
                Setting("resume=True", "--resume"),
                f": there is no unfinished replacement of {path}, and a capture of one prompt is made in one go; give ",
                Setting("overwrite=True", "--overwrite"),
                " to replace it, or many prompts with --prompts FILE",
            )
        if mode in ("resume", "replace") and folder != target and has_batches(folder):
            raise InputError(f"{folder} was begun with --prompts FILE: give that again, or delete {folder}")
        if append and target.exists():
            return cls(target, target, read_root(Folder(target)), exists=True, mode=mode)
        if folder == target:
            check_free(target)
        return cls(target, folder, new_root(), exists=False, mode=mode)

    def new_id(self) -> str:
        """Name of the next capture's group: "0000", "0001", …"""
        if not self._exists:
            return next_ids(self._metadata.planned, 1)[0]
        self._metadata = read_root(Folder(self.path))  # another run may have added to it
        return next_ids([*self._metadata.planned, *(entry.name for entry in self.path.iterdir())], 1)[0]

    def capture(
        self,
        metadata: CaptureMetadata,
        *,
        capacity: int,
        key_rows_hold: int = 64 * MIB,
        buffer_bytes: int = 64 * MIB,
        share: HeadShare | None = None,
    ) -> CaptureWriter:
        """Begin a capture of up to `capacity` tokens, planned on disk when this returns.

        Args:
            metadata: Status "planned", `id` from `new_id`.
            capacity: Prompt and new tokens together; arrays are cut to the real length at the end.
            key_rows_hold: Bytes of prompt rows that may wait in memory for their last layer.
            buffer_bytes: Bytes of rows that may wait, in the queue and for other rows, before the model has to.
            share: Other processes write the attention of their own heads, by `write_heads`; this is the first of them.

        Raises:
            InputError: the path was taken meanwhile, or `capacity` is shorter than the prompt.
            StoreError: the disk refuses.
        """
        if metadata.status != "planned" or metadata.committed:
            raise InputError(f"capture {metadata.id} begins with status {metadata.status}, expected planned")
        if capacity < metadata.n_prompt:
            raise InputError(f"capacity {capacity} is less than the prompt's {metadata.n_prompt} tokens")
        try:
            target = Target(self.place, self._mode, afresh=not self._exists)
            self.path = target.path
            try:
                tidy(self.path)
                if not self._exists:
                    target.require_free()
                if metadata.id != self.new_id():
                    raise InputError(f"capture id {metadata.id} is not the next one of {self.path}, {self.new_id()}")
                planned = [*self._metadata.planned, metadata.id]
                self._metadata = write_root(
                    self.path, self._metadata.model_copy(update={"planned": planned}), running=True
                )
                file = CaptureFile(self.path, metadata, capacity=capacity, key_rows_hold=key_rows_hold, share=share)
            except BaseException:
                target.undo()
                raise
        except OSError as error:
            raise write_error(error, self.place, 0) from error
        self._exists = True
        self._mode = "replace" if target.replaces else "append"
        return CaptureWriter(file, lambda: self._index(target, file), buffer_bytes, lambda: self._release(target, file))

    def _index(self, target: Target, file: CaptureFile) -> None:
        """Bring the list of captures in the store's zarr.json up to date; a complete store takes its place."""
        self._metadata = write_root(self.path, indexed(self.path, self._metadata), running=False)
        flush_way(self.path)
        if target.replaces and file.metadata.status == "complete":
            target.publish()
            self.path, self._mode = self.place, "append"

    def _release(self, target: Target, file: CaptureFile) -> None:
        """Let other writers in. A replacement that is not complete stays beside, if there is anything in it."""
        if target.replaces and file.metadata.committed == 0:
            target.discard()
            self._exists, self._metadata = False, new_root()
        elif target.replaces:
            target.keep(f"capture {file.metadata.id} is not complete")
        target.release()


def write_heads(
    path: str | PathLike[str],
    metadata: CaptureMetadata,
    share: HeadShare,
    *,
    capacity: int,
    key_rows_hold: int = 64 * MIB,
    buffer_bytes: int = 64 * MIB,
) -> CaptureWriter:
    """Write the attention of some heads of a capture that the first of several processes has begun, with the same
    arguments. The writer that is returned takes everything and writes nothing else.

    Raises:
        StoreError: the disk refuses.
    """
    try:
        file = HeadsFile(Path(path), metadata, share, capacity=capacity, key_rows_hold=key_rows_hold)
    except OSError as error:
        raise write_error(error, Path(path), 0) from error
    return CaptureWriter(file, lambda: None, buffer_bytes, lambda: None)


class CaptureWriter:
    """One capture being written. Calls copy nothing and return at once, unless the queue is full.

    Arrays that are handed over must not be changed afterwards. The writing thread waits for those that are late. Every
    call raises StoreError once writing has failed.
    As a context manager: leaving it on an exception, or without `finish`, keeps what was committed and says so.
    """

    def __init__(
        self,
        file: CaptureFile | HeadsFile,
        index: Callable[[], None],
        buffer_bytes: int,
        release: Callable[[], None],
        publish: Callable[[CaptureFile], None] | None = None,
    ) -> None:
        """`index`: brings the store's list of captures up to date; `release`: lets other writers into the store;
        `publish`: takes the finished capture and marks it complete, some time later; None to do so before `finish`
        returns.
        """
        self._publish = publish
        self._file = file
        self._index = index
        self._release = release
        self._queue: ByteQueue[Job | None] = ByteQueue(buffer_bytes)
        self._error: BaseException | None = None
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="attnlens-writer", daemon=True)
        self._thread.start()

    @property
    def committed(self) -> int:
        """Rows that are safe on disk."""
        return self._file.metadata.committed

    @property
    def bytes_written(self) -> int:
        """Bytes written so far; a tail that is written again counts again."""
        return self._file.bytes_written

    @property
    def queue_bytes(self) -> int:
        """Bytes that wait to be written."""
        return self._queue.bytes

    @property
    def fill(self) -> float:
        """How much of the buffer is taken, 1 is all: by what waits to be written and by rows that wait for others."""
        return self._queue.fill

    @property
    def metadata(self) -> CaptureMetadata:
        """The metadata as it is on disk."""
        return self._file.metadata

    def tokens(self, ids: Sequence[int], texts: Sequence[str], raw: Sequence[bytes], special: Sequence[bool]) -> None:
        """Append tokens to the timeline: id, display text, exact bytes, whether special."""
        if not len(ids) == len(texts) == len(raw) == len(special):
            raise ValueError(f"tokens: {len(ids)} ids, {len(texts)} texts, {len(raw)} bytes, {len(special)} flags")
        self._put(lambda file: file.tokens(ids, texts, raw, special), 64 * len(ids))

    def vocabulary(self, ids: Sequence[int], texts: Sequence[str]) -> None:
        """Append vocabulary entries. Each id is sent once, before the lens rows that use it are committed."""
        if len(ids) != len(texts):
            raise ValueError(f"vocabulary: {len(ids)} ids, {len(texts)} texts")
        self._put(lambda file: file.vocabulary(ids, texts), 64 * len(ids))

    def attention(self, layer: int, first_query: int, first_key: int, weights: NDArray[np.float16]) -> None:
        """Attention of one layer: `weights` (head, query, key), float16.

        Rows first_query …, columns first_key …; all other columns of these rows are 0. A row of a layer comes in one
        call with all its heads.
        """
        self._put(lambda file: file.attention(layer, first_query, first_key, weights), weights.nbytes)

    def attention_of_layers(self, layers: Sequence[int], first_query: int, first_key: int, weights: Numbers) -> None:
        """As `attention`, of several layers at once: `weights` (layer, head, query, key).

        One call wakes the writing thread once; the two threads have but one Python to share.
        """

        def job(file: CaptureFile | HeadsFile) -> None:
            for layer, rows in zip(layers, arrived(weights), strict=True):
                file.attention(layer, first_query, first_key, rows)

        self._put(job, weights.nbytes)

    def vectors(self, first_token: int, layers: Sequence[int], queries: Numbers, keys: Numbers) -> None:
        """Queries and keys of the tokens first_token … in the layers named, each (layer, token, head, feature).

        In the capture's `attention_dtype`, bfloat16 as its bits in uint16, in their own order. Keys of a layer that
        uses those of another are passed over.
        """
        size = queries.nbytes + keys.nbytes
        self._put(lambda file: file.vectors(first_token, layers, arrived(queries), arrived(keys)), size)

    def layers(self, table: Sequence[LayerInfo]) -> None:
        """The per-layer table as the prompt's pass showed it, before the first row is committed."""
        self._put(lambda file: file.layers(table), 0)

    def reductions(
        self,
        layer: int,
        first_query: int,
        first_key: int,
        maximum: NDArray[np.float16],
        mean: NDArray[np.float16],
    ) -> None:
        """Maximum and mean over heads (query, key), float16, of queries ≥ n_prompt - 1."""
        size = maximum.nbytes + mean.nbytes
        self._put(lambda file: file.reductions(layer, first_query, first_key, maximum, mean), size)

    def reductions_of_layers(
        self,
        layers: Sequence[int],
        first_query: int,
        first_key: int,
        maximum: Numbers,
        mean: Numbers,
    ) -> None:
        """As `reductions`, of several layers at once: each (layer, query, key)."""

        def job(file: CaptureFile | HeadsFile) -> None:
            for layer, highest, middle in zip(layers, arrived(maximum), arrived(mean), strict=True):
                file.reductions(layer, first_query, first_key, highest, middle)

        self._put(job, maximum.nbytes + mean.nbytes)

    def lens(self, first_token: int, depths: slice, arrays: Mapping[str, NDArray[Any]]) -> None:
        """What the lens reads: lens_token, lens_probability (depth, token, rank), lens_entropy, next_rank,
        next_probability (depth, token), of tokens first_token … and the depths named.
        """
        size = sum(values.nbytes for values in arrays.values())
        self._put(lambda file: file.lens(first_token, depths, arrays), size)

    def tracked(self, texts: Sequence[str]) -> None:
        """Display texts of the tokens that the metadata's `tracked` lists, in its order."""
        self._put(lambda file: file.tracked(texts), 64 * len(texts))

    def lanes(self, first_row: int, lanes: slice, arrays: Mapping[str, Numbers]) -> None:
        """Rows from `first_row` on of arrays along layers or depths, of some of these.

        Each array (lane, …) has its rows along its axis token or key, as in the table of arrays.
        """
        size = sum(values.nbytes for values in arrays.values())

        def job(file: CaptureFile | HeadsFile) -> None:
            file.lanes(first_row, lanes, {name: arrived(values) for name, values in arrays.items()})

        self._put(job, size)

    def model_probability(self, first_token: int, values: NDArray[np.float32]) -> None:
        """The probability (token) that the model's own output gave to the token that came next."""
        self._put(lambda file: file.model_probability(first_token, values), values.nbytes)

    def attention_rows(self, count: int) -> None:
        """Attention, queries, keys and value norms of rows < `count` have been handed over, readings maybe not yet."""
        self._put(lambda file: file.attention_rows(count), 0)

    def rows(self, count: int) -> None:
        """Everything of rows < `count` has been handed over; they may be committed."""
        self._put(lambda file: file.rows(count), 0)

    def finish(self, metadata_update: Mapping[str, Any] | None = None) -> None:
        """Write everything, mark the capture complete with these metadata fields, update the store's index.

        Raises:
            StoreError: it could not all be written; what was committed is kept.
        """
        update = dict(metadata_update or {})
        self._put(lambda file: file.finish(update), 0)
        self._end()
        if self._error is not None:
            raise self._error

    def fail(self, message: str) -> None:
        """Commit what was handed over, keep it, record `message`. Does nothing after `finish`; never raises."""
        if not self._ended:
            self._queue.put(lambda file: self._abandon(file, message), 0)
            self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.fail("the capture ended early")
        elif isinstance(error, KeyboardInterrupt):
            self.fail("interrupted")
        else:
            self.fail(f"{type(error).__name__}: {error}")

    def _put(self, job: Job, size: int) -> None:
        if self._ended:
            raise self._error or StoreError(f"capture {self._file.metadata.id} is closed")
        if not self._queue.put(job, size):
            self._end()
            raise self._error or StoreError(f"capture {self._file.metadata.id} is closed")

    def _end(self) -> None:
        self._queue.put(None, 0)
        self._thread.join()
        self._ended = True

    def _run(self) -> None:
        """The writing thread: take jobs, commit in time, stop at None or at the first error."""
        file = self._file
        try:
            while True:
                wait = None if file.oldest is None else max(0.0, file.oldest + COMMIT_SECONDS - time.monotonic())
                with contextlib.suppress(TimeoutError):
                    job = self._queue.get(wait)
                    if job is None:
                        break
                    job(file)
                due = file.oldest is not None and time.monotonic() - file.oldest >= COMMIT_SECONDS
                # At multiples of 8, where chunks of several rows end, so that none is written twice.
                if due or file.fed // COMMIT_ROWS > file.metadata.committed // COMMIT_ROWS:
                    file.commit()
                if file.attended // COMMIT_ROWS > file.ahead // COMMIT_ROWS:
                    file.write_ahead()
                self._queue.keep(file.held_bytes)
            self._close(file)
        except Exception as error:  # noqa: BLE001 - handed to the model's thread, whatever it is
            self._error = write_error(error, file.folder.parent, file.metadata.committed)
            self._give_up(str(self._error))
        finally:
            self._release()
            self._queue.close()

    def _close(self, file: CaptureFile | HeadsFile) -> None:
        """Publish a finished capture; what an unfinished one has kept is on the disk when this returns, too."""
        if isinstance(file, HeadsFile):
            return
        if file.ready and self._publish is not None:
            self._publish(file)
            return
        if file.ready:
            publish_captures([file])
        elif self._publish is None:
            flush(file.folder)
        self._index()

    def _abandon(self, file: CaptureFile | HeadsFile, message: str) -> None:
        if file.metadata.status != "complete" and not file.ready:
            file.commit()
            file.abandon(message)

    def _give_up(self, message: str) -> None:
        """After an error: say in the store what happened, if the disk still lets us."""
        try:
            if self._file.metadata.status != "complete":  # only the index, or the last flush, has failed
                self._file.abandon(message)
            self._index()
        except (OSError, ValueError):
            return
