"""What a store holds, as plain data. Reads metadata only, and does not import zarr."""

from __future__ import annotations

import dataclasses
from contextlib import suppress
from dataclasses import dataclass
from os import PathLike
from typing import Any

from attnlens.schemas.arrays import ARRAYS, group_of, wanted
from attnlens.schemas.errors import StoreError
from attnlens.store.descriptions import raw_bytes
from attnlens.store.naming import model_name
from attnlens.store.places import Place
from attnlens.store.reader import Capture, open_store


@dataclass(frozen=True, kw_only=True)
class ArrayInfo:
    """One array: its axes with their sizes, and its bytes in memory and on disk."""

    name: str
    axes: dict[str, int]
    dtype: str
    unit: str
    raw_bytes: int
    stored_bytes: int


@dataclass(frozen=True, kw_only=True)
class CaptureDescription:
    """One capture. `lens`: the first of `lenses`. `tracked`: ids. `absent`: what it does not hold, and why.

    `name`: what its model is called wherever it is named (`store.naming`). `label`, `notes`, `tools`, `continued` and
    `seam` as in the metadata.
    """

    id: str
    prompt_id: str | None
    status: str
    error: str | None
    name: str
    label: str | None
    notes: list[str]
    model: dict[str, Any]
    prompt: str
    completion: str
    tools: list[dict[str, Any]] | None
    continued: bool
    seam: str | None
    n_prompt: int
    n_generated: int
    n_token: int
    n_fed: int
    committed: int
    attention: str | None
    attention_dtype: str | None
    attention_choice: str | None
    lens: str | None
    lenses: list[str]
    tracked: list[int]
    layers: dict[str, int]
    sampling: dict[str, Any]
    device: str
    created: str
    versions: dict[str, str]
    timings: dict[str, float]
    self_checks: list[dict[str, Any]]
    arrays: list[ArrayInfo]
    absent: dict[str, str]
    crop: dict[str, Any] | None
    raw_bytes: int
    stored_bytes: int


@dataclass(frozen=True, kw_only=True)
class StoreDescription:
    """A store: who wrote it, how large it is, and its captures. `not_begun`: how many more were planned."""

    path: str
    format: str
    version: int
    created: str
    writer: str
    files: int
    stored_bytes: int
    raw_bytes: int
    captures: list[CaptureDescription]
    not_begun: int = 0

    def to_json(self) -> dict[str, Any]:
        """The description as JSON values."""
        return dataclasses.asdict(self)


def describe(path: str | PathLike[str], capture: str | None = None) -> StoreDescription:
    """What the store at `path` holds, or of its captures the one with this name or prompt id.

    Raises:
        AbsentError: there is no such capture.
        StoreError: it is not a store, is damaged, or has another format version.
    """
    store = open_store(path)
    wanted = store.ids if capture is None else [store.find(capture)]
    captures = [_capture(store.place, store.open(name)) for name in wanted]
    try:
        sizes = list(store.place.files().values())
    except StoreError:  # a folder on a server that cannot list files
        sizes = []
    about = store.metadata
    return StoreDescription(
        path=str(path),
        format=about.format,
        version=about.version,
        created=about.created,
        writer=about.writer,
        files=len(sizes),
        stored_bytes=sum(sizes),
        raw_bytes=sum(capture.raw_bytes for capture in captures),
        captures=captures,
        not_begun=len(about.planned) - len(store.ids),
    )


def _capture(place: Place, capture: Capture) -> CaptureDescription:
    about = capture.metadata
    stored: dict[str, int] = {}
    with suppress(StoreError):
        for path, size in place.files(capture.id).items():
            array = path.split("/", 2)[1]
            stored[array] = stored.get(array, 0) + size
    arrays = [_array(capture, name, stored.get(name, 0)) for name in capture.names]
    kinds = [layer.kind for layer in about.model.layers]
    return CaptureDescription(
        id=capture.id,
        prompt_id=about.prompt_id,
        status=about.status,
        error=about.error,
        name=model_name(about),
        label=about.label,
        notes=about.notes,
        model=about.model.model_dump(mode="json", exclude={"layers", "config"}),
        prompt=about.prompt,
        completion=about.completion,
        tools=about.tools,
        continued=about.continued,
        seam=about.seam,
        n_prompt=about.n_prompt,
        n_generated=max(0, about.n_token - about.n_prompt),
        n_token=about.n_token,
        n_fed=about.n_fed,
        committed=about.committed,
        attention=about.attention,
        attention_dtype=about.attention_dtype,
        attention_choice=about.attention_choice,
        lens=about.lens.name if about.lens else None,
        lenses=capture.lens_names,
        tracked=about.tracked,
        layers={kind: kinds.count(kind) for kind in dict.fromkeys(kinds)},
        sampling=about.sampling.model_dump(mode="json"),
        device=about.device,
        created=about.created,
        versions=about.versions,
        timings=about.timings,
        self_checks=[check.model_dump(mode="json") for check in about.self_checks],
        arrays=arrays,
        absent=_absent(capture),
        crop=about.crop.model_dump(mode="json") if about.crop else None,
        raw_bytes=sum(array.raw_bytes for array in arrays),
        stored_bytes=sum(stored.values()),
    )


def _array(capture: Capture, name: str, stored: int) -> ArrayInfo:
    found = capture.descriptions[name]
    shape = capture.shape_of(name)
    return ArrayInfo(
        name=name,
        axes={str(axis): size for axis, size in zip(found.axes, shape, strict=True)},
        dtype=found.dtype,
        unit=capture.specs[name].unit if name in capture.specs else "",
        raw_bytes=raw_bytes(found.dtype, shape),
        stored_bytes=stored,
    )


def _absent(capture: Capture) -> dict[str, str]:
    """What is not there and why; not what nobody asked for, nor the other way to keep attention where there is one."""
    about = capture.metadata
    complete = about.status == "complete"
    encodings = {"dense", "qk"} if about.attention is not None else {"qk"}
    absent = {
        group_of(spec.name): capture.why_absent(spec.name)
        for spec in ARRAYS
        if spec.name not in capture
        and spec.presence not in encodings | {"proof"}
        and (spec.presence != "evidence" or group_of(spec.name) in about.absent)
        and not wanted(
            spec, mode=about.attention, lens=about.lens is not None, complete=complete, evidence=about.evidence
        )
    }
    for layer in about.model.layers:
        if layer.kind == "none":
            absent[f"layer {layer.index}"] = "this layer has no attention"
    if about.n_fed < about.n_token:
        first, last = about.n_fed, about.n_token - 1
        rows = f"row {last}" if first == last else f"rows {first} … {last}"
        absent[rows] = "not fed to the model"
    return absent
