"""One capture on the disk: its arrays, its metadata, and the order in which they are written.

Arrays first, the capture's zarr.json last: `committed` never promises a row that is not in every array.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from attnlens.schemas.arrays import LENS_ROWS, READINGS, TIMELINE, ArraySpec
from attnlens.schemas.metadata import CaptureMetadata, LayerInfo
from attnlens.schemas.version import NAMESPACE
from attnlens.store import layout
from attnlens.store.columns import Column, TextColumn
from attnlens.store.create import CountingStore, create_array, write_digests
from attnlens.store.durable import flush, flush_names
from attnlens.store.files import (
    clean,
    clean_text,
    document_bytes,
    group_document,
    read_document,
    remove_partials,
    stage,
    write_document,
)
from attnlens.store.front import write_front
from attnlens.store.heads import RETRY_SECONDS, HeadRows, HeadShare, Others
from attnlens.store.lanes import LaneSink
from attnlens.store.manifest import document_digest, file_hashes, listed, manifest_hash
from attnlens.store.places.place import GROUP_DOCUMENT
from attnlens.store.planned import planned_arrays
from attnlens.store.shards import ShardedRows
from attnlens.store.sinks import AttentionSink, DepthSink, ReductionSink, ValueSink
from attnlens.store.vectors import VectorSink

COMMIT_SECONDS = 2.0
"""A row is committed at the latest so long after it was handed over."""
COORDINATES = "token_text token_special"
"""The CF attribute that makes xarray show these arrays as coordinates."""


class CaptureFile:
    """The writing end of one capture, used by one thread. Creating it writes the planned capture."""

    def __init__(
        self,
        root: Path,
        metadata: CaptureMetadata,
        *,
        capacity: int,
        key_rows_hold: int,
        claimed: bool = False,
        share: HeadShare | None = None,
    ) -> None:
        """`claimed`: the capture's folder was made before, to keep other processes away from it. `share`: other
        processes write the attention of their own heads; this is the first of them.
        """
        self.metadata = metadata
        self.folder = root / metadata.id
        self._share = share
        self._others = Others(self.folder, share) if share is not None else None
        self.fed = 0
        self.oldest: float | None = None
        self._complete: tuple[CaptureMetadata, Path] | None = None
        """What the capture will be, and the file that is to be its zarr.json."""
        self.attended = self.ahead = 0
        """Rows whose attention was handed over, and how many of these are in the files, committed or not."""
        self._store = CountingStore(root)
        self._capacity = capacity
        self.folder.mkdir(exist_ok=claimed)
        self._write_metadata()
        self._arrays: dict[str, zarr.Array[Any]] = {}
        self._create(key_rows_hold)
        self._open_sinks(key_rows_hold)

    @property
    def bytes_written(self) -> int:
        """Bytes put into files of this capture, rewritten ones counted each time."""
        return self._store.written

    @property
    def held_bytes(self) -> int:
        """Memory of rows that wait for others before they can be written."""
        return sum(buffer.nbytes for sink in self._sinks for buffer in sink.buffers)

    # What the model's thread hands over, already in this thread.

    def tokens(self, ids: Sequence[int], texts: Sequence[str], raw: Sequence[bytes], special: Sequence[bool]) -> None:
        """Append to the timeline."""
        self._token_id.extend(ids)
        self._token_text.extend(texts)
        self._token_special.extend(special)
        for part in raw:
            self._bytes.extend(part)
            self._offset.extend([len(self._bytes)])

    def vocabulary(self, ids: Sequence[int], texts: Sequence[str]) -> None:
        """Append entries of the vocabulary."""
        self._vocabulary_id.extend(ids)
        self._vocabulary_text.extend(texts)

    def attention(self, layer: int, first_query: int, first_key: int, weights: NDArray[np.float16]) -> None:
        """Rows (head, query, key) of one layer."""
        self._attention.add(layer, first_query, first_key, weights)

    def vectors(self, first_token: int, layers: Sequence[int], queries: NDArray[Any], keys: NDArray[Any]) -> None:
        """Queries and keys, each (layer, token, head, feature), of the layers named."""
        self._queries.add(first_token, layers, queries)
        self._keys.add(first_token, layers, keys)

    def layers(self, table: Sequence[LayerInfo]) -> None:
        """The per-layer table as the prompt's pass showed it; on disk with the next commit."""
        model = self.metadata.model.model_copy(update={"layers": list(table)})
        self.metadata = self.metadata.model_copy(update={"model": model})

    def reductions(self, layer: int, first_query: int, first_key: int, *values: NDArray[np.float16]) -> None:
        """Maximum and mean over heads, each (query, key), of one layer."""
        self._reductions.add(layer, first_query, first_key, values)

    def lens(self, first_token: int, depths: slice, arrays: Mapping[str, NDArray[Any]]) -> None:
        """What the lens read from some depths of some tokens."""
        for name, values in arrays.items():
            self._lens[name].add(first_token, depths, values)

    def tracked(self, texts: Sequence[str]) -> None:
        """Texts of the tracked tokens."""
        self._arrays["tracked_text"][:] = np.asarray(
            [clean_text(text) for text in texts], dtype=np.dtypes.StringDType()
        )

    def lanes(self, first_row: int, lanes: slice, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Rows of arrays along layers or depths."""
        for name, values in arrays.items():
            sink = self._lanes[name] if name in self._lanes else self._lens[name]
            sink.add(first_row, lanes, values)

    def model_probability(self, first_token: int, values: NDArray[np.float32]) -> None:
        """The model's own probability of the tokens that came next."""
        self._model_probability.add(first_token, values)

    def rows(self, count: int) -> None:
        """Everything of the first `count` rows has been handed over."""
        if count > self.fed:
            self.oldest = self.oldest or time.monotonic()
            self.fed = count

    def attention_rows(self, count: int) -> None:
        """Attention of the first `count` rows, and what comes with it, has been handed over."""
        self.attended = max(self.attended, count)

    # What this thread does with it.

    def write_ahead(self) -> None:
        """Write attention of rows whose readings are still to come, so that it need not wait in memory."""
        if self._share is None and self.attended > self.ahead:
            for sink in self._attention_sinks:
                sink.commit(self.ahead, self.attended)
            self.ahead = self.attended

    def commit(self) -> None:
        """Write every row handed over, then say so in the capture's zarr.json."""
        start, stop = self.metadata.committed, self.fed
        if self._others is not None and stop > start:
            stop = max(start, min(stop, self._others.rows()))
        if stop == start:
            if self.oldest is not None:  # others are late: ask again in a moment
                self.oldest = max(self.oldest, time.monotonic() - COMMIT_SECONDS + RETRY_SECONDS)
            return
        for column in self._columns:
            column.flush()
        for sink in self._sinks:
            begin = max(start, self.ahead) if sink in self._attention_sinks else start
            if stop > begin:
                sink.commit(begin, stop)
        self.ahead = max(self.ahead, stop)
        self._model_probability.commit()
        self._update(status="partial", committed=stop, n_fed=stop, n_token=max(len(self._token_id), stop))
        self.oldest = None if stop == self.fed else time.monotonic()

    def finish(self, update: Mapping[str, Any]) -> None:
        """Commit, cut the arrays to the timeline, prove them by a manifest; the capture is ready to be published."""
        if self._others is not None:
            self._others.wait(self.fed)
        self.commit()
        for column in self._columns:
            column.flush()
        self._model_probability.commit()
        self._cut()
        remove_partials(self.folder)
        known = write_digests(self._store, self.metadata.id, self.folder)
        names = listed(self.folder)
        hashes = file_hashes(self.folder, names, known)
        for name, values in (("manifest_file", names), ("manifest_sha256", hashes)):
            array = create_array(self._store, self.metadata.id, name, (len(values),), layout.list_layout(len(values)))
            array[:] = np.asarray(values, dtype=np.dtypes.StringDType())
        metadata, document = self._described(
            self._changed(
                **{"n_fed": self.fed, "n_token": len(self._token_id), **update},
                status="complete",
                committed=self.fed,
                manifest=manifest_hash(dict(zip(names, hashes, strict=True))),
                front=write_front(self.folder),
            )
        )
        self._complete = metadata, stage(self.folder / GROUP_DOCUMENT, document_bytes(document))

    @property
    def ready(self) -> bool:
        """Whether the capture is finished and not yet published."""
        return self._complete is not None

    def publish(self) -> None:
        """Mark the capture complete. Everything in its folder must be on the disk."""
        assert self._complete is not None
        self.metadata, document = self._complete
        document.replace(self.folder / GROUP_DOCUMENT)
        self._complete = None

    def abandon(self, message: str) -> None:
        """Keep what was committed and say why it ends there."""
        self._complete = None
        self._update(status="partial" if self.metadata.committed else "failed", error=message)
        remove_partials(self.folder)

    def _update(self, **changes: Any) -> None:
        """Replace the metadata, in the file first."""
        self._write_metadata(self._changed(**changes))

    def _changed(self, **changes: Any) -> CaptureMetadata:
        return CaptureMetadata.model_validate({**self.metadata.model_dump(mode="json"), **clean(_plain(changes))})

    def _write_metadata(self, metadata: CaptureMetadata | None = None) -> None:
        metadata, document = self._described(metadata or self.metadata)
        write_document(self.folder, document)
        self.metadata = metadata

    def _described(self, metadata: CaptureMetadata) -> tuple[CaptureMetadata, dict[str, Any]]:
        """The metadata with its digest, if it has one, and the zarr.json that says so."""
        values = clean(metadata.model_dump(mode="json", exclude={"digest"}))
        attributes: dict[str, Any] = {NAMESPACE: values, "coordinates": COORDINATES}
        if metadata.status == "complete":
            names = sorted(path.name for path in self.folder.iterdir() if path.is_dir())
            document = group_document(attributes, {name: read_document(self.folder / name) for name in names})
            values["digest"] = document_digest(document)
        else:
            document = group_document(attributes)
        return metadata.model_copy(update={"digest": values.get("digest")}), document

    def _create(self, key_rows_hold: int) -> None:
        """Create every array of the table that this capture wants, and fill the coordinates."""
        about = self.metadata
        self._specs: dict[str, ArraySpec] = {}
        self._orders: dict[str, layout.AttentionOrder] = {}
        groups = self._share.count if self._share is not None else 1
        plans = planned_arrays(about, capacity=self._capacity, key_rows_hold=key_rows_hold, head_groups=groups)
        for planned in plans:
            spec, name = planned.spec, planned.spec.name
            array = create_array(
                self._store, about.id, name, planned.shape, planned.layout, spec=spec, model_dtype=planned.model_dtype
            )
            if spec.axes == (name,):
                first = about.n_prompt - 1 if name == "generated" else 0
                array[:] = np.arange(first, first + planned.shape[0], dtype=np.int32)
            self._specs[name], self._arrays[name], self._orders[name] = spec, array, planned.order
        if "tracked_id" in self._arrays:
            self._arrays["tracked_id"][:] = np.asarray(about.tracked, np.int32)

    def _open_sinks(self, key_rows_hold: int) -> None:
        arrays, about = self._arrays, self.metadata
        layers = [info.index for info in about.model.layers if info.kind != "none"]
        self._token_id = self._column("token_id")
        self._token_text = self._column("token_text")
        self._token_special = self._column("token_special")
        self._bytes = self._column("token_bytes")
        self._offset = self._column("token_byte_offset")
        self._offset.extend([0])
        self._columns = [self._token_id, self._token_text, self._token_special, self._bytes, self._offset]
        self._model_probability = ValueSink(arrays["model_probability"])
        self._sinks: list[AttentionSink | ReductionSink | DepthSink | LaneSink | VectorSink] = []
        self._attention_sinks: list[AttentionSink | ReductionSink | LaneSink | VectorSink]
        if about.attention == "dense":
            rows = self._sharded("attention_weight", 2, keep_tail=False)
            if self._share is not None:
                heads = self._share.heads(about.model.n_head)
                rows = HeadRows(arrays["attention_weight"], self.folder.parent, heads, self._store.count)
            self._attention = AttentionSink(rows, self._orders["attention_weight"], about.n_prompt, layers)
            self._sinks.append(self._attention)
        if about.attention == "qk":
            hold, own = key_rows_hold // 2, [index for index in layers if about.model.layers[index].key_source is None]
            self._queries = VectorSink("attention_q", self._sharded("attention_q", 0), layers, self.folder, hold)
            self._keys = VectorSink("attention_k", self._sharded("attention_k", 0), own, self.folder, hold)
            self._sinks += [self._queries, self._keys]
        if about.attention is not None:
            maximum, mean = self._sharded("attention_max", 0), self._sharded("attention_mean", 0)
            self._reductions = ReductionSink(maximum, mean, about.n_prompt - 1, layers)
            self._sinks.append(self._reductions)
        if about.lens is not None:
            self._lens = {name: DepthSink(name, self._sharded(name, 1), about.lens_first) for name in READINGS}
            self._sinks.extend(self._lens.values())
            self._vocabulary_id = self._column("vocabulary_id")
            self._vocabulary_text = self._column("vocabulary_text")
            # Texts before ids: wherever the process dies, each id that is in a file has its text in one.
            self._columns += [self._vocabulary_text, self._vocabulary_id]
        self._lanes = {spec.name: self._lane_sink(spec, layers) for spec in self._specs.values() if _in_lanes(spec)}
        self._sinks.extend(self._lanes.values())
        self._attention_sinks = [
            sink for sink in self._sinks if isinstance(sink, AttentionSink | ReductionSink | VectorSink)
        ]
        if "value_norm" in self._lanes:
            self._attention_sinks.append(self._lanes["value_norm"])

    def _lane_sink(self, spec: ArraySpec, layers: Sequence[int]) -> LaneSink:
        axis = next(number for number, axis in enumerate(spec.axes) if axis in TIMELINE)
        early = self._orders[spec.name] == "layers"
        rows = self._sharded(spec.name, axis, keep_tail=not early)
        needed = layers if spec.axes[0] == "layer" else range(rows.shape[0])
        n_prompt = self.metadata.n_prompt if early else 0
        origin = self.metadata.lens_first if (spec.base or spec.name) in LENS_ROWS else 0
        return LaneSink(spec.name, rows, axis, needed, n_prompt=n_prompt, origin=origin)

    def _column(self, name: str) -> Column:
        kind = TextColumn if self._specs[name].dtype == "string" else Column
        return kind(self._arrays[name], self.folder.parent, self._store.count)

    def _sharded(self, name: str, axis: int, *, keep_tail: bool = True) -> ShardedRows:
        root, array = self.folder.parent, self._arrays[name]
        return ShardedRows(array, root, axis, keep_tail=keep_tail, wrote=self._store.count)

    def _cut(self) -> None:
        """Make every array as long as what it holds."""
        length = len(self._token_id)
        for column in self._columns:
            column.cut()
        sizes: dict[str, int] = {str(axis): length for axis in TIMELINE} | {
            "generated": length - self.metadata.n_prompt + 1
        }
        columns = {"token_id", "token_text", "token_special"}
        for name, array in self._arrays.items():
            axes = self._specs[name].axes
            if name not in columns and any(axis in sizes for axis in axes):
                array.resize(tuple(sizes.get(axis, size) for axis, size in zip(axes, array.shape, strict=True)))


def publish_captures(files: Sequence[CaptureFile]) -> None:
    """Mark captures complete that are ready: what they hold is on the disk before, and the mark when this returns.

    Raises:
        OSError: the disk refuses.
    """
    flush(*(file.folder for file in files))
    for file in files:
        file.publish()
    flush_names(*(file.folder / GROUP_DOCUMENT for file in files))


def _in_lanes(spec: ArraySpec) -> bool:
    """Whether the array is one of those that not every capture has, along layers or depths."""
    return len(spec.axes) > 1 and (spec.presence == "evidence" or spec.base is not None)


def _plain(value: Any) -> Any:
    """Metadata records inside an update as JSON values."""
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
