"""Checking metadata and array descriptions against the contract: every problem at once, no I/O.

Not checked here: values inside arrays, files, hashes. `store.verify` does that. Arrays and metadata fields that the
contract does not know are allowed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from attnlens.schemas.arrays import ARRAY, MODEL_DTYPES, TIMELINE, ArraySpec, specs, wanted
from attnlens.schemas.metadata import LABEL_LIMIT, BatchPrompt, CaptureMetadata, ListFiles, StoreMetadata
from attnlens.schemas.problems import Kind, Problem
from attnlens.schemas.qk import qk_problems, vector_shape
from attnlens.schemas.version import FORMAT, FORMAT_VERSION, NAMESPACE

CAPTURE_NAME = re.compile(r"[0-9]{4,12}")
"""Name of a capture's group."""
LENS_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
"""Name of a further lens, which its arrays have behind theirs."""
DIGEST = re.compile(r"[0-9a-f]{64}")
"""A sha256."""
LIST_FOLDER = re.compile(r"(index|batches)-[0-9a-f]{16}")
"""Name of the group in which a list of the store is kept."""
LIST_FILE = re.compile(r"zarr\.json|[a-z][a-z0-9_]{0,39}/(zarr\.json|c/[0-9]{1,9})")
"""Path of a file in such a group."""


AnyModel = TypeVar("AnyModel", bound=BaseModel)


@dataclass(frozen=True, kw_only=True)
class ArrayDescription:
    """What an array's own metadata say. `chunk` is what one read decodes; `shard` is a file, None without shards."""

    shape: tuple[int, ...]
    dtype: str
    axes: tuple[str | None, ...]
    chunk: tuple[int, ...]
    shard: tuple[int, ...] | None = None


def version_problem(attributes: Mapping[str, Any]) -> Problem | None:
    """The one problem of a store in another format or format version, or None."""
    ours = attributes.get(NAMESPACE)
    if not isinstance(ours, Mapping):
        return Problem(where="", kind="format", message=f"not an attnlens store: no attribute {NAMESPACE!r}")
    if ours.get("format") != FORMAT:
        found = ours.get("format")
        return Problem(where="", kind="format", message=f"not an attnlens store: format is {found!r}, not {FORMAT!r}")
    version = ours.get("version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        return Problem(where="", kind="format", message=f"format version is {version!r}, expected {FORMAT_VERSION}")
    if version == FORMAT_VERSION:
        return None
    reads = f"store has format version {version}, this attnlens reads version {FORMAT_VERSION}"
    remedy = (
        "upgrade attnlens to read it"
        if version > FORMAT_VERSION
        else "read it with the attnlens version that wrote it, or capture again"
    )
    return Problem(where="", kind="format", message=f"{reads}: {remedy}")


def validate_store(attributes: Mapping[str, Any]) -> list[Problem]:
    """Problems of the attributes of the store's group. A foreign or other version is the only problem reported."""
    return read_store(attributes)[1]


def read_store(attributes: Mapping[str, Any]) -> tuple[StoreMetadata | None, list[Problem]]:
    """The metadata of a store, looked at once since they may be long, and their problems; None where there are some."""
    other = version_problem(attributes)
    if other is not None:
        return None, [other]
    about, problems = _read(StoreMetadata, attributes[NAMESPACE], "")
    planned = attributes[NAMESPACE].get("planned")
    names = [name for name in planned if isinstance(name, str)] if isinstance(planned, list) else []
    if len(set(names)) != len(names):
        problems.append(_at("", "metadata", "planned: a capture is named twice"))
    for name in names:
        if not CAPTURE_NAME.fullmatch(name):
            problems.append(
                _at("", "metadata", f"planned: {_short(name)} is no capture name, expected 4 or more digits")
            )
    if about is not None and not problems:
        prompts = [prompt for batch in about.batches for prompt in batch.prompts]
        messages = batch_problems(prompts, set(names))
        if about.lists is not None:
            messages += _list_problems("index", about.lists.index) + _list_problems("batches", about.lists.batches)
        problems += [_at("", "metadata", message) for message in messages]
    return (None if problems else about), problems


def _list_problems(kind: str, about: ListFiles | None) -> list[str]:
    """What is wrong with the names of the arrays of a list: they become paths, so nothing else is let through."""
    if about is None:
        return []
    found = LIST_FOLDER.fullmatch(about.folder)
    if found is None or found[1] != kind:
        return [f"lists.{kind}: {_short(about.folder)} is no folder of it, expected {kind}- and 16 hexadecimal digits"]
    names = [name for name in about.files if not LIST_FILE.fullmatch(name)]
    names += [name for name, digest in about.files.items() if not DIGEST.fullmatch(digest)]
    return [f"lists.{kind}: {_short(names[0])} is no file of an array with its sha256"] if names else []


def batch_problems(prompts: Iterable[BatchPrompt], planned: set[str]) -> list[str]:
    """What contradicts the list of captures in the record of prompts that were given together."""
    problems, taken = [], set()
    for prompt in prompts:
        if prompt.capture not in planned:
            problems.append(f"batches: capture {_short(prompt.capture)} is not planned")
        if prompt.capture in taken:
            problems.append(f"batches: capture {prompt.capture} belongs to two prompts")
        taken.add(prompt.capture)
    return problems


def validate_capture(
    attributes: Mapping[str, Any], arrays: Mapping[str, ArrayDescription], *, where: str = ""
) -> list[Problem]:
    """Problems of one capture: the attributes of its group, and what its arrays say of themselves.

    Args:
        attributes: Attributes of the capture's group.
        arrays: Array name → description, for every array in the group.
        where: Name of the capture, which begins every problem's path.
    """
    ours = attributes.get(NAMESPACE)
    if not isinstance(ours, Mapping):
        return [Problem(where=where, kind="metadata", message=f"no attribute {NAMESPACE!r}")]
    about, problems = _read(CaptureMetadata, ours, where)
    if about is None:
        return problems
    problems += [_at(where, "metadata", message) for message in _disagreements(about, where)]
    sizes = _expected_sizes(about)
    seen: dict[str, tuple[int, str]] = {}
    for spec in specs([lens.name for lens in about.lenses]):
        here = f"{where}/{spec.name}" if where else spec.name
        found = arrays.get(spec.name)
        if found is None:
            complete = about.status == "complete"
            if _expected_now(about, spec, complete):
                problems.append(_at(here, "array", "is missing"))
            continue
        problems += [_at(here, "array", message) for message in _array_problems(spec, found, sizes, about, seen)]
    return problems


def _expected_now(about: CaptureMetadata, spec: ArraySpec, complete: bool) -> bool:
    """A planned capture may lack any array: it may have been cut short while they were made. So may a failed one."""
    if about.status in ("planned", "failed"):
        return False
    if about.crop is not None and spec.name in about.crop.dropped:
        return False
    return wanted(spec, mode=about.attention, lens=about.lens is not None, complete=complete, evidence=about.evidence)


def _array_problems(
    spec: ArraySpec,
    found: ArrayDescription,
    sizes: Mapping[str, int],
    about: CaptureMetadata,
    seen: dict[str, tuple[int, str]],
) -> list[str]:
    problems = []
    expected = _dtype(spec, about)
    if found.dtype != expected:
        problems.append(f"dtype is {found.dtype}, expected {expected}")
    if found.axes != spec.axes:
        names = ", ".join(map(str, found.axes))
        return [*problems, f"axes are ({names}), expected ({', '.join(spec.axes)})"]
    if len(found.shape) != len(spec.axes):
        return [*problems, f"has {len(found.shape)} dimensions, expected {len(spec.axes)}"]
    if len(found.chunk) != len(found.shape) or min(found.chunk, default=1) < 1:
        problems.append(f"chunk shape {found.chunk} does not fit shape {found.shape}")
    elif found.shard is not None and (
        len(found.shard) != len(found.chunk) or any(s % c for s, c in zip(found.shard, found.chunk, strict=True))
    ):
        problems.append(f"chunk shape {found.chunk} does not divide shard shape {found.shard}")
    growing = about.status != "complete"
    for axis, size in zip(spec.axes, found.shape, strict=True):
        least = sizes.get(axis)
        timeline = axis in TIMELINE or axis in ("edge", "generated")
        if least is not None and (size < least if growing and timeline else size != least):
            bound = "at least " if growing and timeline else ""
            problems.append(f"axis {axis} has {size} entries, expected {bound}{least}")
            continue
        if growing and (timeline or axis in ("entry", "byte")):
            continue  # arrays are made longer, and cut at the end, one after the other
        if axis == "byte":
            continue
        first = seen.setdefault(axis, (size, spec.name))
        if size != first[0]:
            problems.append(f"axis {axis} has {size} entries, but {first[0]} in {first[1]}")
    return problems


def _dtype(spec: ArraySpec, about: CaptureMetadata) -> str:
    if spec.name == "residual" and about.residual is not None:
        return MODEL_DTYPES[about.residual.dtype]
    if spec.presence == "qk" and spec.dtype == "model":
        return MODEL_DTYPES[about.attention_dtype or "float32"]
    return spec.dtype


def _expected_sizes(about: CaptureMetadata) -> dict[str, int]:
    length, n_layer = about.n_token, about.model.n_layer
    sizes: dict[str, int] = dict.fromkeys(map(str, TIMELINE), length)
    sizes |= {"edge": length + 1, "generated": length - about.n_prompt + 1}
    sizes |= {"layer": n_layer, "head": about.model.n_head, "depth": n_layer + 1}
    if about.lens is not None:
        sizes["rank"] = about.lens.top_k
    if about.tracked:
        sizes["tracked"] = len(about.tracked)
    if about.residual is not None:
        sizes["feature"] = about.residual.n_feature
    if about.attention == "qk":
        sizes["kv_head"], sizes["head_feature"] = vector_shape(about.model.layers)
    return sizes


def _disagreements(about: CaptureMetadata, where: str) -> list[str]:
    """Fields of the metadata that contradict each other."""
    problems = []
    if where and about.id != where.rsplit("/", 1)[-1]:
        problems.append(f"id is {about.id!r}, but the group is named {where!r}")
    if about.committed > about.n_fed:
        problems.append(f"committed is {about.committed}, more than n_fed, {about.n_fed}")
    if about.n_fed > about.n_token:
        problems.append(f"n_fed is {about.n_fed}, more than n_token, {about.n_token}")
    if about.status != "planned" and about.n_prompt > about.n_token:
        problems.append(f"n_prompt is {about.n_prompt}, more than n_token, {about.n_token}")
    if about.status != "failed" and about.n_prompt < 1:
        problems.append("n_prompt is 0, expected 1 or more in a capture that did not fail")
    if about.status == "planned" and about.committed:
        problems.append(f"status is planned, but {about.committed} rows are committed")
    if about.status == "complete" and about.committed != about.n_fed:
        problems.append(f"status is complete, but {about.committed} of {about.n_fed} rows are committed")
    if about.status == "complete" and (about.manifest is None or about.digest is None):
        problems.append("status is complete, but manifest or digest is missing")
    indices = [layer.index for layer in about.model.layers]
    if indices != list(range(about.model.n_layer)):
        problems.append(f"model.layers describes layers {_shown(indices)}, expected 0 … {about.model.n_layer - 1}")
    if about.attention is not None and not any(layer.kind != "none" for layer in about.model.layers):
        problems.append("attention is stored, but model.layers has no layer with attention")
    if about.attention == "qk":
        problems += qk_problems(about)
    if about.attention is None and about.attention_absent is None:
        problems.append("attention is absent, but attention_absent does not say why")
    if about.lens is None and about.lens_absent is None:
        problems.append("lens is absent, but lens_absent does not say why")
    return problems + _evidence_disagreements(about) + _crop_problems(about) + _change_problems(about)


def _change_problems(about: CaptureMetadata) -> list[str]:
    """What cannot be a label, or the digest of an adapter. Whatever characters a text has, readers show it as text."""
    problems = []
    if about.label is not None and len(about.label) > LABEL_LIMIT:
        problems.append(f"label has {len(about.label)} characters, expected at most {LABEL_LIMIT}")
    for adapter in about.model.adapters:
        if not DIGEST.fullmatch(adapter.digest):
            problems.append(f"model.adapters: digest of {_short(adapter.name)} is {_short(adapter.digest)}, no sha256")
    return problems


def _crop_problems(about: CaptureMetadata) -> list[str]:
    if about.crop is None:
        return []
    problems = []
    sizes = {"tokens": about.n_token, "layers": about.model.n_layer, "heads": about.model.n_head,
             "redacted": about.n_token}  # fmt: skip
    for name, size in sizes.items():
        runs = getattr(about.crop, name) or []
        edges = [edge for run in runs for edge in run]
        if any(len(run) != 2 for run in runs) or edges != sorted(set(edges)) or not all(0 <= e <= size for e in edges):
            problems.append(f"crop.{name} is {_short(runs)}, expected growing runs [start, stop) inside 0 … {size}")
    return problems


def _evidence_disagreements(about: CaptureMetadata) -> list[str]:
    problems = []
    names = [lens.name for lens in about.lenses]
    if names and about.lens is None:
        problems.append("lenses names further lenses, but there is no first one")
    if about.lens is not None and len({about.lens.name, *names}) != 1 + len(names):
        problems.append("lenses: two lenses have the same name")
    problems += [f"lenses: {_short(name)} is no name of a lens" for name in names if not LENS_NAME.fullmatch(name)]
    if about.lens is not None and any(lens.top_k != about.lens.top_k for lens in about.lenses):
        problems.append("lenses: top_k differs between lenses, which share the axis rank")
    for name in about.evidence:
        if name not in ARRAY or ARRAY[name].presence != "evidence":
            problems.append(f"evidence names {_short(name)}, which is no such array")
    if "residual" in about.evidence and about.residual is None:
        problems.append("evidence names residual, but residual does not say its dtype")
    if any(name.startswith("tracked_") for name in about.evidence) and not about.tracked:
        problems.append("evidence names tracked tokens, but tracked lists none")
    return problems


def _shown(indices: list[int]) -> str:
    return str(indices) if len(indices) <= 8 else f"[{indices[0]}, … {len(indices)} of them]"


def _read(model: type[AnyModel], values: Mapping[str, Any], where: str) -> tuple[AnyModel | None, list[Problem]]:
    try:
        return model.model_validate(dict(values)), []
    except ValidationError as error:
        return None, [
            _at(where, "metadata", f"{'.'.join(map(str, item['loc']))}: {item['msg']}, found {_short(item['input'])}")
            for item in error.errors()
        ]


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _at(where: str, kind: Kind, message: str) -> Problem:
    return Problem(where=where, kind=kind, message=message)
