"""Reading a store. Metadata are read when asked for and zarr is imported with the first array, so opening is fast."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from os import PathLike
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from attnlens.schemas.arrays import ArraySpec, group_of, reading, specs
from attnlens.schemas.errors import AbsentError, InputError, StoreError
from attnlens.schemas.metadata import CaptureMetadata, CropInfo, Status, StoreMetadata
from attnlens.schemas.nearest import did_you_mean
from attnlens.schemas.problems import Problem, summary
from attnlens.schemas.validate import ArrayDescription, validate_capture
from attnlens.schemas.version import NAMESPACE
from attnlens.store.attention import Attention, attention_of
from attnlens.store.descriptions import Limits, default_limits, describe_array
from attnlens.store.fronted import fronted
from attnlens.store.lists import batches_of, prompt_ids_of
from attnlens.store.manifest import MANIFEST_ARRAYS, document_digest, manifest_hash
from attnlens.store.named import NamedArray
from attnlens.store.naming import model_name
from attnlens.store.places import Place, open_place
from attnlens.store.places.place import FRONT, GROUP_DOCUMENT, join
from attnlens.store.positions import position
from attnlens.store.root import read_root

if TYPE_CHECKING:
    import xarray
    import zarr

    from attnlens.store.digests import Digests, Hashed
    from attnlens.store.places.zarr_store import PlaceStore

Viewer = Callable[..., Any]
"""Shows a capture in a notebook: (capture, state by name, height)."""

ARRAY_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")


def open_store(path: str | PathLike[str], *, limits: Limits | None = None, checked: bool = True) -> Store:
    """Open the store at `path` for reading. A store that is being written may be opened at any moment.

    Args:
        path: A folder, or a packed store.
        limits: The largest things that are read.
        checked: Compare each file of a finished capture with the manifest before a byte of it is used.

    Raises:
        StoreError: `path` is not a store, is damaged, or has another format version.
    """
    place = open_place(path)
    return Store(place, read_root(place), limits or default_limits(), checked=checked)


class Store:
    """A store: a sequence of captures, by number or by name."""

    def __init__(self, place: Place, metadata: StoreMetadata, limits: Limits, *, checked: bool = True) -> None:
        self.place = place
        self.viewer: Viewer | None = None
        self._checked = checked
        self.metadata = metadata
        self._limits = limits
        self._captures: dict[str, Capture] = {}

    def __repr__(self) -> str:
        return f"<Store {self.path}: {', '.join(self.ids) or 'no captures'}>"

    @property
    def path(self) -> str:
        """What names the store: the path or URL that it was opened by."""
        return self.place.name

    @cached_property
    def ids(self) -> list[str]:
        """Names of the captures that have begun. One that the index has and that is gone is among them: an error."""
        known = self._indexed
        return [
            name for name in self.metadata.planned if name in known or self.place.exists(join(name, GROUP_DOCUMENT))
        ]

    @cached_property
    def _indexed(self) -> dict[str, str | None]:
        """Capture → id of its prompt, as the index says. A writer may have put another in the place of the one that
        was there when the store was opened.
        """
        try:
            return prompt_ids_of(self.place, self.metadata)
        except StoreError:
            now = read_root(self.place)
            if now.lists == self.metadata.lists:
                raise
            self.metadata = now
            return prompt_ids_of(self.place, now)

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Capture]:
        return (self[name] for name in self.ids)

    def __getitem__(self, key: SupportsIndex | str) -> Capture:
        """A capture: by number, by name ("0003"), or by the id of its prompt ("my-id").

        A name goes before an id; "id:0003" is always the id 0003.

        Raises:
            AbsentError: there is none of that name or number.
            InputError: several prompts have that id, or `key` is neither a name nor a number.
            StoreError: its metadata are damaged.
        """
        if isinstance(key, str):
            name = self.find(key)
        elif isinstance(key, bool | np.bool_) or not hasattr(key, "__index__"):
            raise InputError(f"{self.path}: {key!r} is no capture; expected a number, a name or the id of a prompt")
        elif -len(self.ids) <= (number := operator.index(key)) < len(self.ids):
            name = self.ids[number]
        else:
            raise AbsentError(f"{self.path} has {len(self.ids)} captures, there is no number {key}")
        if name not in self._captures:
            self._captures[name] = self.open(name)
        return self._captures[name]

    def open(self, name: str) -> Capture:
        """A capture by its name, not kept here: for going through thousands.

        Raises:
            StoreError: its metadata are damaged.
        """
        place = fronted(self.place, name) if self._checked else self.place
        capture = Capture(place, name, self._limits, checked=self._checked)
        capture.viewer = self.viewer
        return capture

    def to_datatree(self, *, dask: bool | None = None) -> xarray.DataTree:
        """The captures as an `xarray.DataTree`, each a node of its name; see `Capture.to_xarray`.

        Raises:
            MissingExtraError: xarray is not installed.
            StoreError: metadata or coordinates of a capture are damaged.
        """
        from attnlens.store.dataset import datatree

        return datatree(self, dask=dask)

    def find(self, key: str) -> str:
        """Name of the capture with this name or prompt id, as `store[key]` understands it.

        Raises:
            AbsentError: there is none.
            InputError: several prompts have that id.
        """
        if key in self.ids:
            return key
        wanted = key.removeprefix("id:")
        known: Mapping[str, str | None] = self._indexed
        if len(known) < len(self.metadata.planned):
            known = {**known, **self.prompt_ids}
        found = [name for name in self.ids if known.get(name) in (key, wanted)]
        if not found:  # a store put together of others may keep ids in its captures only
            rest = {name: self.open(name).metadata.prompt_id for name in self.ids if name not in known}
            found = [name for name, prompt in rest.items() if prompt is not None and prompt in (key, wanted)]
            known = {**known, **rest}
        if len(found) > 1:
            raise InputError(f"{self.path}: {len(found)} prompts have the id {wanted!r}: {', '.join(found[:4])}")
        if not found:
            prompt_ids = [prompt for prompt in known.values() if prompt is not None]
            prompts = f", of the prompts {_some(prompt_ids)}" if prompt_ids else ""
            near = did_you_mean(wanted, [*self.ids, *prompt_ids])
            raise AbsentError(f"{self.path} has no capture {key!r}; it has {_some(self.ids)}{prompts}{near}")
        return found[0]

    @cached_property
    def prompt_ids(self) -> dict[str, str]:
        """Ids of prompts by the names of their captures, as far as the store's own metadata tell."""
        batches = batches_of(self.place, self.metadata)
        return {prompt.capture: prompt.prompt_id for batch in batches for prompt in batch.prompts}


def _some(names: Sequence[str], most: int = 12) -> str:
    """Names for a message: all of a few, the first and the last of many."""
    if len(names) > most:
        return f"{len(names)}, {names[0]} … {names[-1]}"
    return ", ".join(names) or "none"


class Capture:
    """One prompt and what the model said, as it was committed when this object was made."""

    def __init__(self, place: Place, name: str, limits: Limits, *, checked: bool = True) -> None:
        self.id = name
        self.viewer: Viewer | None = None
        self._place = place
        self._checked = checked
        self._limits = limits
        group, documents, problems = read_capture(place, name, limits)
        self.descriptions = {key: describe_array(document, limits) for key, document in documents.items()}
        attributes = group.get("attributes", {})
        problems = problems or validate_capture(attributes, self.descriptions, where=name)
        if problems:
            raise StoreError(f"{place}: {summary(problems)}; run `lens verify`")
        self.metadata = CaptureMetadata.model_validate(attributes[NAMESPACE])
        self._group = group
        self._documents = documents
        self._arrays: dict[str, NamedArray] = {}

    def __repr__(self) -> str:
        about = f"{self.status}, {self.n_token} tokens, {self.committed} rows"
        return f"<Capture {self.id}: {about}, {model_name(self.metadata)}>"

    @property
    def place(self) -> Place:
        """Where its store is."""
        return self._place

    @property
    def document(self) -> Mapping[str, Any]:
        """The zarr.json of its group, as it was read when the capture was opened."""
        return self._group

    @property
    def documents(self) -> Mapping[str, Mapping[str, Any]]:
        """The zarr.json of each of its arrays."""
        return self._documents

    def view(self, *, height: int = 720, **state: object) -> Any:
        """Show the capture in a notebook, without network. The last line of a cell displays what this returns.

        Args:
            height: Pixels.
            state: What to begin with, by the names in the address of `lens view`: query=41, heads="mean", view="map" …

        Raises:
            InputError: the capture is too large for a notebook, or it was not opened by `attnlens.open`.
        """
        if self.viewer is None:
            raise InputError("a capture opened without a viewer cannot be shown: open its store with attnlens.open")
        return self.viewer(self, state, height)

    def to_xarray(self, *, dask: bool | None = None) -> xarray.Dataset:
        """The capture as an `xarray.Dataset`: every array by its name, with units, meaning, and texts of tokens as
        coordinates. Coordinates are read, everything else when it is asked for. Of a capture in qk mode the variable
        `attention_weight` makes its rows when it is indexed. What is absent is NaN, or -1; float16 comes as float32.

        Args:
            dask: Whether variables are dask arrays, in chunks as the files are; None: if dask is installed.

        Raises:
            MissingExtraError: xarray is not installed.
            StoreError: coordinates are damaged. What is read later raises StoreError then.
        """
        from attnlens.store.dataset import dataset

        return dataset(self, dask=dask)

    @property
    def status(self) -> Status:
        """Planned, partial, complete or failed."""
        return self.metadata.status

    @property
    def n_prompt(self) -> int:
        """Tokens of the prompt."""
        return self.metadata.n_prompt

    @property
    def n_token(self) -> int:
        """Length of the timeline, prompt and generated tokens together."""
        return self.metadata.n_token

    @property
    def n_fed(self) -> int:
        """Tokens that went through the model."""
        return self.metadata.n_fed

    @property
    def committed(self) -> int:
        """Rows that are safe in every array."""
        return self.metadata.committed

    @cached_property
    def token_id(self) -> NDArray[np.int32]:
        """Vocabulary ids (token)."""
        return self["token_id"][:]

    @cached_property
    def token_text(self) -> list[str]:
        """Display text of each token."""
        return [str(text) for text in self["token_text"][:]]

    @cached_property
    def token_special(self) -> NDArray[np.bool_]:
        """Whether the tokenizer calls the token special (token)."""
        return self["token_special"][:]

    def token_bytes(self, token: SupportsIndex) -> bytes:
        """The exact bytes of one token, none of one that was cropped away; -1 is the last.

        Raises:
            InputError: the timeline has no such token.
        """
        token = position(token, self.n_token, axis="token", where=f"capture {self.id}")
        start, stop = self._byte_offset[token], self._byte_offset[token + 1]
        return self._bytes[start:stop].tobytes()

    @cached_property
    def vocabulary(self) -> Mapping[int, str]:
        """Display text of every token id that the lens arrays use.

        Raises:
            AbsentError: the capture has no lens.
        """
        ids, texts = self["vocabulary_id"][:], self["vocabulary_text"][:]
        ids, texts = ids[: len(texts)], texts[: len(ids)]  # one may have been made longer before the other
        known = ids >= 0
        return {int(number): str(text) for number, text in zip(ids[known], texts[known], strict=True)}

    @cached_property
    def attention(self) -> Attention:
        """Rows of attention.

        Raises:
            AbsentError: the capture has none.
        """
        return attention_of(self)

    @cached_property
    def attention_layers(self) -> NDArray[np.bool_]:
        """Which layers have attention (layer)."""
        return np.asarray([layer.kind != "none" for layer in self.metadata.model.layers], np.bool_)

    @cached_property
    def heads_there(self) -> NDArray[np.bool_]:
        """Which heads each layer has (layer, head); some models have fewer in some layers."""
        model = self.metadata.model
        return np.arange(model.n_head) < np.asarray([layer.n_head for layer in model.layers])[:, None]

    @cached_property
    def key_layers(self) -> NDArray[np.bool_]:
        """Which layers have attention over keys of their own (layer)."""
        layers = self.metadata.model.layers
        return np.asarray([layer.kind != "none" and layer.key_source is None for layer in layers], np.bool_)

    @cached_property
    def lens_start(self) -> int:
        """Place on the timeline of the first token that the lenses read: 0, unless only later ones were asked for."""
        first = self.metadata.lens_first
        return int(np.searchsorted(self["token"][:], first)) if first else 0

    @cached_property
    def specs(self) -> dict[str, ArraySpec]:
        """What the contract says of every array that this capture may have, those of further lenses included."""
        return {spec.name: spec for spec in specs([lens.name for lens in self.metadata.lenses])}

    @property
    def lens_names(self) -> list[str]:
        """Names of the lenses, the first one first."""
        first = self.metadata.lens
        return [lens.name for lens in ([first] if first else []) + self.metadata.lenses]

    def reading(self, array: str, lens: str | None = None) -> NamedArray:
        """An array of one of the lenses, by the name that it has for the first: `reading("lens_token", "tuned")`.

        Raises:
            AbsentError: there is no such lens, or it has no such array.
            StoreError: its metadata are damaged.
        """
        return self[self.reading_name(array, lens)]

    def reading_name(self, array: str, lens: str | None = None) -> str:
        """Name of an array of one of the lenses, None for the first.

        Raises:
            AbsentError: there is no such lens.
        """
        if lens is not None and lens not in self.lens_names:
            names = ", ".join(self.lens_names) or f"none ({self.metadata.lens_absent or 'no reason given'})"
            near = did_you_mean(lens, self.lens_names)
            raise AbsentError(f"capture {self.id} has no lens {lens!r}: it has {names}{near}")
        return reading(array, None if lens is None or lens == self.lens_names[0] else lens)

    @property
    def names(self) -> list[str]:
        """Names of the arrays."""
        return sorted(self.descriptions)

    def __contains__(self, name: object) -> bool:
        return name in self.descriptions

    def __getitem__(self, name: str) -> NamedArray:
        """An array, read lazily, cut to the timeline.

        Raises:
            AbsentError: the capture does not have it; the reason is named.
            StoreError: its metadata are damaged.
        """
        if name not in self.descriptions:
            raise AbsentError(f"capture {self.id} has no {name}: {self.why_absent(name)}")
        if name not in self._arrays:
            self._arrays[name] = self._open(name)
        return self._arrays[name]

    def _open(self, name: str) -> NamedArray:
        return NamedArray(self, name, self._zarr_array(name), self._place, self._known_shape(name))

    def _zarr_array(self, name: str) -> zarr.Array[Any]:
        import zarr
        from zarr.storage import StorePath

        from attnlens.store.bounded import bounded
        from attnlens.store.faults import DECODE_ERRORS

        try:
            document = bounded(self._documents[name])
            return zarr.Array.from_dict(StorePath(self._zarr_store, f"{self.id}/{name}"), document)
        except DECODE_ERRORS as error:
            raise StoreError(f"{self.id}/{name}: zarr.json is damaged ({error}); run `lens verify`") from error

    def _known_shape(self, name: str) -> tuple[int, ...]:
        """Shape of an array, cut to what is known: lists of a capture that is not complete end in empty room."""
        shape = self.shape_of(name)
        if self.status == "complete" or self.descriptions[name].axes not in (("entry",), ("byte",)):
            return shape
        if name == "token_bytes" and "token_byte_offset" in self.descriptions:
            return (min(shape[0], int(self._byte_offset.max(initial=0))),)
        return (min(shape[0], self._entries),) if name in ("vocabulary_id", "vocabulary_text") else shape

    @cached_property
    def _entries(self) -> int:
        """Entries of the vocabulary that are known; ids and texts are made longer one after the other."""
        from attnlens.store.presence import missing_file

        name = "vocabulary_id"
        if name not in self.descriptions:
            return 0
        ids = NamedArray(self, name, self._zarr_array(name), self._place, self.shape_of(name))
        if missing_file(self, ids) is not None:  # which is told when entries are read
            return len(ids)
        return int(np.flatnonzero(ids[:] >= 0).max(initial=-1)) + 1

    @cached_property
    def kept(self) -> Mapping[str, NDArray[np.bool_]]:
        """Axis → which of its entries a cropped store kept, for the axes of which it kept some only."""
        return {} if self.metadata.crop is None else self.kept_masks(self.metadata.crop)

    def kept_masks(self, crop: CropInfo) -> dict[str, NDArray[np.bool_]]:
        """The same for a crop of this capture."""
        model, masks = self.metadata.model, {}
        if crop.tokens is not None:
            tokens = masks["token"] = _mask(crop.tokens, self.n_token)
            masks |= {"query": tokens, "key": tokens, "generated": tokens[max(0, self.n_prompt - 1) :]}
        if crop.layers is not None:
            layers = masks["layer"] = _mask(crop.layers, model.n_layer)
            masks["depth"] = np.append(layers, True)  # the last is the prediction, which belongs to no layer
        if crop.heads is not None:
            heads = masks["head"] = _mask(crop.heads, model.n_head)
            if "kv_head" in self.descriptions:
                size = self.descriptions["kv_head"].shape[0]
                groups = np.minimum(np.arange(model.n_head) * size // model.n_head, size - 1)
                masks["kv_head"] = np.bincount(groups, heads, size) > 0
        return masks

    def shape_of(self, name: str) -> tuple[int, ...]:
        """Shape of an array of this capture, cut to the timeline."""
        found = self.descriptions[name]
        return tuple(self._length(axis, size) for axis, size in zip(found.axes, found.shape, strict=True))

    def _length(self, axis: str | None, size: int) -> int:
        """How much of an axis is known: arrays of a capture that is not complete may be longer."""
        match axis:
            case "token" | "query" | "key":
                return min(size, self.n_token)
            case "generated":
                return min(size, max(0, self.n_token - self.n_prompt + 1))
            case "edge":
                return min(size, self.n_token + 1)
            case _:
                return size

    def why_absent(self, name: str) -> str:
        """Why the capture does not have an array."""
        about = self.metadata
        spec = self.specs.get(name)
        if about.crop is not None and name in about.crop.dropped:
            return "it was left out when the store was cropped"
        if spec is None:
            return f"there is no such array; it has {', '.join(self.names)}{did_you_mean(name, self.names)}"
        match spec.presence:
            case "evidence":
                return about.absent.get(group_of(name), "it was not asked for")
            case "lens" | "depth" if about.lens is None:
                return f"it was captured without a lens ({about.lens_absent or 'no reason given'})"
            case "attention" | "dense" | "qk" if about.attention is None:
                return f"it was captured without attention ({about.attention_absent or 'no reason given'})"
            case "dense" | "qk" as mode if about.attention != mode:
                return f"attention was captured in mode {about.attention}"
            case _:
                return f"the capture is {about.status}"

    @property
    def sealed(self) -> bool:
        """Whether a digest and a manifest vouch for it: if it is complete, or a tool made it of one that is not."""
        return self.status == "complete" or None not in (self.metadata.digest, self.metadata.manifest)

    @cached_property
    def hashes(self) -> Mapping[str, str] | None:
        """Sha256 of each of its files, by path inside it, but of those that its digest vouches for: its zarr.json and
        the manifest. None if nothing vouches for the capture, since it is not finished.

        Raises:
            StoreError: the capture's metadata or its manifest were changed.
        """
        if not self.sealed:
            return None
        if document_digest(self._group) != self.metadata.digest:
            raise StoreError(
                f"{self._place}: {self.id}/{GROUP_DOCUMENT} was changed after it was written, it does not have its "
                "digest; run `lens verify`"
            )
        front = {} if self.metadata.front is None else {FRONT: self.metadata.front}
        return self.manifest() | front

    @cached_property
    def checked_place(self) -> Place:
        """Where files are read from; of a finished capture none that is not what was written.

        Raises:
            StoreError: the capture's metadata or its manifest were changed.
        """
        from attnlens.store.places.checked import Checked

        if not self._checked or self.hashes is None:
            return self._place
        own = (GROUP_DOCUMENT, *(f"{name}/" for name in MANIFEST_ARRAYS))
        return Checked(self._place, self.id, self.hashes, own, self.digests())

    @cached_property
    def _zarr_store(self) -> PlaceStore:
        from attnlens.store.places.zarr_store import PlaceStore

        return PlaceStore(self.checked_place)

    def digests(self) -> Digests | None:
        """Digests of chunks, None if the capture has none.

        Raises:
            StoreError: they are not as the format says.
        """
        from attnlens.store.digests import DIGESTS, Digests

        if DIGESTS not in self._documents:
            return None
        try:
            return Digests(self._documents[DIGESTS], self.descriptions)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise StoreError(f"{self.id}/{DIGESTS}: {error}; run `lens verify`") from None

    def hashed_chunks(self, keep: Callable[[str], bool]) -> dict[str, Hashed]:
        """Digests of chunks of the arrays that `keep` takes, for a capture that keeps their files.

        Raises:
            StoreError: they are not those that were written.
        """
        from attnlens.store.digests import DIGESTS, Hashed

        known = self.digests()
        chosen = {} if known is None else {name: part for name, part in known.parts.items() if keep(name)}
        if not chosen:
            return {}
        table = self[DIGESTS][:]
        return {name: Hashed(part, table[part.first : part.first + part.count], {}) for name, part in chosen.items()}

    def manifest(self) -> dict[str, str]:
        """Sha256 of each of the files of a sealed capture, by path inside it, as its manifest lists them.

        Raises:
            StoreError: it is not the manifest that the metadata name.
        """
        plain = Capture(self._place, self.id, self._limits, checked=False)
        paths, hashes = ([str(text) for text in plain[name][:]] for name in MANIFEST_ARRAYS)
        found = dict(zip(paths, hashes, strict=True))
        if manifest_hash(found) != self.metadata.manifest:
            raise StoreError(
                f"{self.id}/manifest_sha256: is not the manifest that the metadata name; run `lens verify`"
            )
        return found

    @cached_property
    def _byte_offset(self) -> NDArray[np.int32]:
        offset = self["token_byte_offset"][:]
        if (np.diff(offset, prepend=0) < 0).any():
            raise StoreError(f"{self.id}/token_byte_offset: offsets do not grow; run `lens verify`")
        return offset

    @cached_property
    def _bytes(self) -> NDArray[np.uint8]:
        return self["token_bytes"][: int(self._byte_offset[-1])]


def _mask(runs: list[list[int]], size: int) -> NDArray[np.bool_]:
    mask = np.zeros(size, np.bool_)
    for start, stop in runs:
        mask[start:stop] = True
    return mask


def read_capture(
    place: Place, name: str, limits: Limits
) -> tuple[dict[str, Any], dict[str, dict[str, Any]], list[Problem]]:
    """The zarr.json of a capture's group and of each of its arrays, and what is wrong with them.

    The group's consolidated metadata are used where it has some. Arrays with problems are left out.
    """
    problems: list[Problem] = []
    try:
        document = place.document(name)
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        return (
            {},
            {},
            [Problem(where=f"{name}/{GROUP_DOCUMENT}", kind="metadata", message=f"cannot be read ({reason})")],
        )
    attributes = document.get("attributes")
    if document.get("node_type") != "group" or not isinstance(attributes, dict):
        return (
            {},
            {},
            [Problem(where=f"{name}/{GROUP_DOCUMENT}", kind="metadata", message="is no group with attributes")],
        )
    found: dict[str, dict[str, Any]] = {}
    listed = _array_documents(place, name, document)
    if len(listed) > limits.arrays:
        what = f"lists {len(listed)} arrays, more than {limits.arrays}"
        return {}, {}, [Problem(where=f"{name}/{GROUP_DOCUMENT}", kind="metadata", message=what)]
    for key, text in listed:
        try:
            if not ARRAY_NAME.fullmatch(key):
                raise ValueError("is no name of an array")
            read = text if isinstance(text, dict) else place.document(join(name, key))
            describe_array(read, limits)
        except (OSError, ValueError, RecursionError) as error:
            reason = getattr(error, "strerror", None) or error
            problems.append(Problem(where=f"{name}/{key}", kind="array", message=str(reason)))
        else:
            found[key] = read
    return document, found, problems


def _array_documents(place: Place, name: str, document: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Names of the arrays, each with its zarr.json where the group's document holds it."""
    consolidated = document.get("consolidated_metadata")
    if isinstance(consolidated, Mapping) and isinstance(consolidated.get("metadata"), Mapping):
        return sorted((str(key), value) for key, value in consolidated["metadata"].items())
    return [(key, None) for key in arrays_of(place, name)]


def arrays_of(place: Place, name: str) -> list[str]:
    """Names of the arrays of a capture that have a zarr.json of their own, sorted."""
    return [key for key in place.folders(name) if place.exists(f"{name}/{key}/{GROUP_DOCUMENT}")]


__all__ = ["ArrayDescription", "Capture", "Limits", "Store", "arrays_of", "open_store", "read_capture"]
