"""`lens crop`: a smaller store, in the numbering of the original. What is cut away is absent, never made up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from zarr.storage import LocalStore

from attnlens.progress import Progress, Silent
from attnlens.schemas.errors import AbsentError, InputError
from attnlens.schemas.metadata import CaptureMetadata, CropInfo, StoreMetadata
from attnlens.schemas.nearest import did_you_mean
from attnlens.schemas.ranges import both
from attnlens.store import quantize
from attnlens.store.files import remove_partials
from attnlens.store.manifest import PROOF_ARRAYS
from attnlens.store.places import stem_of
from attnlens.store.reader import Capture, open_store
from attnlens.store.tools.copy import copy_array
from attnlens.store.tools.dense import CHOICE, QK, VECTORS, lacks_keys, write_rows
from attnlens.store.tools.dense import NAME as ROWS
from attnlens.store.tools.keep import Keep, Kept, kept
from attnlens.store.tools.output import new_store
from attnlens.store.tools.redact import Redaction, redaction
from attnlens.store.tools.rewrite import Cells, Change, part_of, rewrite
from attnlens.store.tools.seal import seal_capture, seal_store


@dataclass(frozen=True, kw_only=True)
class CropReport:
    """What was written: where, which captures, bytes before and after, and what a person should know of it."""

    path: Path
    captures: list[str]
    bytes_before: int
    bytes: int
    notes: list[str]


def crop(
    store: str | PathLike[str],
    output: str | PathLike[str] | None = None,
    *,
    captures: Sequence[str] = (),
    keep: Keep | None = None,
    dtype: str | None = None,
    redact: Sequence[str] = (),
    overwrite: bool = False,
    progress: Progress | None = None,
) -> CropReport:
    """Write a store that holds less.

    Args:
        store: The store.
        output: The new one, `NAME-crop.zarr` beside it if None.
        captures: Names of those that stay, all if empty.
        keep: What stays of each.
        dtype: "uint8" keeps weights as an 8-bit square root; None as they are.
        redact: Texts, or ranges of tokens, of which no trace stays.
        overwrite: Replace a store that is there.
        progress: Where arrays are counted.

    Raises:
        InputError: what is to stay does not exist, or something is at `output`.
        AbsentError: a capture lacks it.
        StoreError: the store is damaged, or the disk refuses.
    """
    progress, keep = progress or Silent(), keep or Keep()
    if dtype not in (None, "uint8"):
        raise InputError(f"--dtype {dtype!r}: weights are kept as they are, or as uint8")
    source = open_store(store)
    names = _captures(source.ids, captures)
    path = Path(output) if output is not None else Path(f"{stem_of(store)}-crop.zarr")
    if path.suffix == ".zip":
        raise InputError(f"-o {path}: crop writes a folder; `lens pack` makes one file of it")
    plans = []
    for name in names:
        capture = source[name]
        if capture.status not in ("complete", "partial"):
            raise AbsentError(f"capture {name} is {capture.status}, there is nothing to crop")
        plans.append(_Plan(capture, kept(capture, keep), keep.lite, dtype, redaction(capture, redact)))
    if redact and not any(plan.redacts for plan in plans):
        raise InputError(f"--redact {redact[0]}: this text does not occur in any of the captures")
    progress.stage("cropping", sum(len(plan.names) for plan in plans), "arrays")
    with new_store(path, overwrite=overwrite) as temporary:
        temporary.mkdir()
        for plan in plans:
            plan.write(temporary, progress)
        about = source.metadata
        seal_store(temporary, StoreMetadata(created=about.created, writer=about.writer, planned=names))
        size = sum(file.stat().st_size for file in temporary.rglob("*") if file.is_file())
    progress.end()
    before = sum(source.place.files().values())
    return CropReport(path=path, captures=names, bytes_before=before, bytes=size, notes=_notes(plans))


def _notes(plans: Sequence[_Plan]) -> list[str]:
    """One line for all captures whose queries and keys became rows."""
    made = [plan for plan in plans if plan.dense]
    if not made:
        return []
    names = ", ".join(plan.name for plan in made[:TOLD]) + (f" and {len(made) - TOLD} more" if len(made) > TOLD else "")
    size = sum(plan.row_bytes for plan in made) / 1e3
    note = (
        f"capture {names}: keys of tokens or layers that were left out are needed for rows that stay, so these rows "
        f"are stored as dense attention ({size:,.0f} kB before compression), and no queries and keys"
    )
    return [note]


def _captures(there: list[str], wanted: Sequence[str]) -> list[str]:
    for name in wanted:
        if name not in there:
            near = did_you_mean(name, there)
            raise InputError(f"--captures {name}: there is none, the store holds {', '.join(there) or 'none'}{near}")
    if not there:
        raise AbsentError("the store holds no capture")
    return [name for name in there if not wanted or name in wanted]


TOLD = 4
"""Captures that a note names."""


class _Plan:
    """What becomes of one capture."""

    def __init__(
        self, capture: Capture, kept: Kept, lite: bool, dtype: str | None, redaction: Redaction | None
    ) -> None:
        self._capture, self._lite, self._dtype, self._redaction = capture, lite, dtype, redaction
        before = capture.metadata.crop or CropInfo()
        drop = set(kept.dropped)
        if redaction is not None:
            drop |= redaction.dropped(capture)
        self.dense, self.row_bytes = False, 0
        self._errors = dict(before.errors)
        crop = CropInfo(
            tokens=both(before.tokens, kept.tokens),
            layers=both(before.layers, kept.layers),
            heads=both(before.heads, kept.heads),
            redacted=redaction.runs(before.redacted) if redaction is not None else before.redacted,
        )
        self._masks = capture.kept_masks(crop)
        if not drop & VECTORS and lacks_keys(capture, self._masks):
            self.dense = True
            drop |= QK & set(capture.names)
        self.crop = crop.model_copy(update={"dropped": sorted({*before.dropped, *drop})})
        self.names = [name for name in capture.names if name not in drop and name not in PROOF_ARRAYS]

    def write(self, root: Path, progress: Progress) -> None:
        """Write the capture into the store at `root`."""
        capture, store = self._capture, LocalStore(root)
        (root / capture.id).mkdir()
        used: set[int] = set()
        bytes_, offsets = self._bytes()
        for name in sorted(self.names, key=lambda name: capture.descriptions[name].axes == ("entry",)):
            progress.advance()
            if name == "token_bytes":
                self._list(name, store, bytes_)
            elif name == "token_byte_offset":
                self._list(name, store, offsets)
            elif capture.descriptions[name].axes == ("entry",) and self._prunes:
                ids = capture["vocabulary_id"][:]
                self._list(name, store, np.asarray(capture[name][:])[: len(ids)][np.isin(ids, sorted(used))])
            else:
                self._array(name, store, root, used)
        if self.dense:
            self.row_bytes = write_rows(capture, store, self._masks, self._dtype)
            if self._dtype == "uint8":
                self._errors[ROWS] = quantize.SQRT_ERROR
        remove_partials(root / capture.id)
        about = self._about()
        seal_capture(root, about)

    @property
    def name(self) -> str:
        """Name of the capture."""
        return self._capture.id

    @property
    def redacts(self) -> bool:
        """Whether a token goes."""
        return self._redaction is not None and bool(self._redaction.tokens.any())

    @property
    def _prunes(self) -> bool:
        """Whether some vocabulary may no longer be in use."""
        return self._lite or self._redaction is not None or bool(self._masks) or bool(self.crop.dropped)

    def _array(self, name: str, store: LocalStore, root: Path, used: set[int]) -> None:
        """Copy an array that stays as it is, rewrite one that changes; note the ids of the vocabulary in it."""
        capture = self._capture
        array, spec = capture[name], capture.specs.get(name)
        changes: list[Change] = []
        coordinate = array.axes == (name,)
        masks = {number: self._masks[axis] for number, axis in enumerate(array.axes) if axis in self._masks}
        if masks and not coordinate:
            changes.append(_masked(masks, array.raw_fill))
        if self._redaction is not None and not coordinate and (change := self._redaction.change(capture, name)):
            changes.append(change)
        ranks = 1 if self._lite and array.axes[-1] == "rank" and array.shape[-1] > 1 else None
        weights = spec is not None and spec.dtype == "float16" and spec.unit == "probability"
        dtype, about = None, {}
        if weights and array.encoding is None and not coordinate:
            if self._dtype == "uint8":
                dtype, about = "uint8", {quantize.ENCODING: quantize.SQRT, quantize.MAX_ERROR: quantize.SQRT_ERROR}
                changes.append(lambda cells, _: quantize.encode_sqrt(cells))
                self._errors[name] = quantize.SQRT_ERROR
            elif self._lite:
                about = {quantize.MAX_ERROR: quantize.LEVEL_ERROR}
                changes.append(lambda cells, _: quantize.to_levels(cells))
                self._errors[name] = quantize.LEVEL_ERROR
        readings = spec is not None and spec.unit == "vocabulary id" and spec.axes[-1] in ("rank", "tracked")
        if readings and self._prunes:

            def note(cells: Cells, _: tuple[slice, ...]) -> Cells:
                used.update(np.unique(cells[..., :ranks]).tolist())
                return cells

            changes.append(note)
        if not changes and ranks is None:
            copy_array(capture, name, root / capture.id / name)
            return

        def change_all(cells: Cells, region: tuple[slice, ...]) -> Cells:
            for change in changes:
                cells = change(cells, region)
            return cells

        rewrite(array, store, f"{capture.id}/{name}", change_all, dtype=dtype, ranks=ranks, about=about)

    def _list(self, name: str, store: LocalStore, values: NDArray[Any]) -> None:
        """Write a list whose length may have changed."""
        from attnlens.store.create import create_array
        from attnlens.store.layout import list_layout

        spec = self._capture.specs[name]
        text = spec.dtype == "string"
        array = create_array(store, self._capture.id, name, (len(values),), list_layout(len(values)), spec=spec)
        if len(values):
            array[:] = np.asarray([str(v) for v in values], dtype=np.dtypes.StringDType()) if text else values

    def _bytes(self) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
        """Exact bytes of the tokens that stay, and their offsets; a token that is gone has none."""
        capture = self._capture
        gone = np.zeros(capture.n_token, bool)
        if "token" in self._masks:
            gone |= ~self._masks["token"]
        if self._redaction is not None:
            gone |= self._redaction.tokens
        parts = [b"" if gone[t] else capture.token_bytes(t) for t in range(capture.n_token)]
        offsets = np.cumsum([0, *map(len, parts)]).astype(np.int32)
        return np.frombuffer(b"".join(parts), np.uint8), offsets

    def _about(self) -> CaptureMetadata:
        before = self._capture.metadata
        dropped = set(self.crop.dropped)
        exact = self._dtype is None and self._redaction is None
        origin = (before.crop.origin if before.crop else None) or before.digest
        update: dict[str, Any] = {
            "crop": self.crop.model_copy(update={"errors": self._errors, "origin": origin if exact else None}),
            "evidence": [name for name in before.evidence if name not in dropped],
        }
        if self._lite and before.lens is not None:
            update["lens"] = before.lens.model_copy(update={"top_k": 1})
            update["lenses"] = []
        if self._lite or not any(name.startswith("tracked_") for name in update["evidence"]):
            update["tracked"] = []
        if self.dense:
            update |= {"attention": "dense", "attention_dtype": None, "attention_choice": CHOICE}
        if "residual" in dropped:
            update["residual"] = None
        if "token" in self._masks:
            update |= {"messages": None, "tools": None, "prompt": self._text(0, before.n_prompt),
                       "completion": self._text(before.n_prompt, before.n_token)}  # fmt: skip
        about = before.model_copy(update=update)
        if self._redaction is not None:
            about = self._redaction.metadata(about)
        return CaptureMetadata.model_validate(about.model_dump(mode="json"))

    def _text(self, start: int, stop: int) -> str:
        """The text of the tokens that stay, an ellipsis where some are gone."""
        parts: list[bytes] = []
        for token in range(start, stop):
            if self._masks["token"][token]:
                parts.append(self._capture.token_bytes(token))
            elif not parts or parts[-1] != GAP:
                parts.append(GAP)
        return b"".join(parts).decode("utf-8", "replace")


GAP = " … ".encode()


def _masked(masks: dict[int, NDArray[np.bool_]], fill: Any) -> Change:
    """Put the fill value where an axis keeps nothing."""

    def change(cells: Cells, region: tuple[slice, ...]) -> Cells:
        cells = cells.copy()
        for axis, mask in masks.items():
            cells[(slice(None),) * axis + (~part_of(mask, region[axis]),)] = fill
        return cells

    return change
