"""An array of a capture with named axes, read lazily."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin
from numpy.typing import DTypeLike, NDArray

from attnlens.schemas.arrays import FILL, LENS_ROWS
from attnlens.schemas.errors import AbsentError, InputError
from attnlens.store.bfloat16 import BFLOAT16, decode, from_whole_exponent, has_bits, has_whole_exponent
from attnlens.store.descriptions import ours
from attnlens.store.positions import Positions, check_kept, no_position, positions
from attnlens.store.quantize import ENCODING, MAX_ERROR, SQRT, decode_sqrt

if TYPE_CHECKING:
    import zarr

    from attnlens.store.places import Place
    from attnlens.store.reader import Capture

Index = Positions
BLOCK_BYTES = 16 << 20
"""What iteration reads at a time, if that is more than a row."""
ROW_AXES = ("query", "generated", "token", "key")
"""Axes whose rows a capture commits; the first that an array has counts."""
NOT_ROWS = frozenset({"token", "token_id", "token_text", "token_special", "query", "generated", "key"})
"""Arrays with such an axis that are known for every token, fed or not."""
NEVER_FILL = frozenset({"attention_weight", "attention_q", "attention_k", "attention_max", "attention_mean",
                        "lens_token", "lens_probability", "lens_entropy", "value_norm", "tracked_rank",
                        "tracked_probability", "mid_token", "mid_probability", "mid_entropy"})  # fmt: skip
"""Arrays in which a committed row cannot hold the fill value, so that one there means a missing chunk."""


class NamedArray(NDArrayOperatorsMixin):
    """One array of a capture, on the disk. Indexing reads and returns a numpy array; nothing is kept.

    It goes where arrays go: numpy, pandas, xarray and matplotlib read all of it (`numpy.asarray`), arithmetic and
    comparisons too; `len` and iteration follow its first axis, and iteration reads block by
    block. An index may have a number, a slice, a mask, a list of numbers or a list as text (`3,5-7`) for each axis;
    negative numbers count from the end. A number removes its axis. Lists of several axes select their crossings, as in
    xarray, not pairs.

    What is not committed, or was cropped away, is never shown: asked for by number it raises AbsentError, inside a
    slice it is the fill value (NaN, -1). bfloat16 is returned as float32.
    """

    def __init__(
        self, capture: Capture, name: str, array: zarr.Array[Any], place: Place, shape: tuple[int, ...]
    ) -> None:
        self.name = name
        self.axes: tuple[str, ...] = tuple(map(str, capture.descriptions[name].axes))
        self.shape = shape
        about = ours(array.attrs.asdict())
        self.unit = str(about.get("unit", ""))
        self._spec = capture.specs.get(name)
        self.encoding = SQRT if about.get(ENCODING) == SQRT and str(array.dtype) == "uint8" else None
        self._bits = has_bits(str(array.dtype), about)
        self._whole_exponent = has_whole_exponent(str(array.dtype), about)
        text = self._spec is not None and self._spec.dtype == "string"
        self.kind = "string" if text else BFLOAT16 if self._bits else "float16" if self.encoding else str(array.dtype)
        self._capture = capture
        self._array = array
        self._place = place

    def __repr__(self) -> str:
        sizes = ", ".join(f"{axis} {size}" for axis, size in zip(self.axes, self.shape, strict=True))
        return f"<{self.name} ({sizes}) {self.kind}, {self.unit}>"

    __hash__ = object.__hash__  # == compares cells

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of what indexing returns. `kind` says what is stored: "bfloat16" comes as float32."""
        return np.dtype(np.float32 if self._bits else np.float16 if self.encoding else self._array.dtype)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.axes)

    @property
    def size(self) -> int:
        """Number of cells."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that all cells take in memory; of a text those of its header."""
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[Any]:
        """Along the first axis; rows that are not there are fill values."""
        row = max(1, self.nbytes // max(1, len(self)))
        step = max(1, min(self.chunks[0], BLOCK_BYTES // row))
        for start in range(0, len(self), step):
            yield from self[start : start + step]

    @property
    def path(self) -> str:
        """Where the array is in the store, as "0000/attention_weight"."""
        return self._array.path

    @property
    def zarr(self) -> zarr.Array[Any]:
        """The array as zarr sees it: not cut to the timeline, uncommitted rows and all."""
        return self._array

    @property
    def raw_fill(self) -> Any:
        """The fill value as it is stored."""
        if self.kind == "string":
            return ""
        return self._array.fill_value if self.encoding else self._fill()

    @property
    def max_error(self) -> float:
        """The most by which a value may differ from what the model computed in float16."""
        stated = ours(self._array.attrs.asdict()).get(MAX_ERROR, 0.0)
        return float(stated) if isinstance(stated, int | float) and 0 <= stated <= 1 else 0.0

    @property
    def known(self) -> bool:
        """Whether the format knows the array."""
        return self._spec is not None

    @property
    def far(self) -> bool:
        """Whether a read asks a network, so that little should be read."""
        return self._place.blocking

    @property
    def chunks(self) -> tuple[int, ...]:
        """Shape of what one read decodes."""
        return self._array.chunks

    @property
    def files(self) -> tuple[int, ...]:
        """Shape of what one file holds."""
        return self._array.shards or self._array.chunks

    def chunk_key(self, cell: Sequence[int]) -> str:
        """Name of the file that holds a cell, as "c/0/0/3/0"."""
        return self._array.metadata.encode_chunk_key(
            tuple(at // size for at, size in zip(cell, self.files, strict=True))
        )

    def from_bits(self, stored: NDArray[np.uint16]) -> NDArray[np.float32]:
        """The numbers that cells of an array of bfloat16 stand for, exactly."""
        return decode(from_whole_exponent(stored) if self._whole_exponent else stored)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        """All of it, for `numpy.asarray`: what is not committed, or was cropped away, is the fill value.

        Raises:
            StoreError: a chunk is damaged.
            ValueError: no copy is allowed, and every read is one.
        """
        if copy is False:
            raise ValueError(f"{self.name} is read from its files, so numpy gets a copy")
        values = self[...]
        return values if dtype is None else values.astype(dtype, copy=False)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        """Arithmetic and comparisons, on all cells."""
        plain = [np.asarray(item) if isinstance(item, NamedArray) else item for item in inputs]
        return getattr(ufunc, method)(*plain, **options)

    def isel(self, **indices: Index) -> NDArray[Any]:
        """Cells by position: `isel(layer=-1, query=slice(0, 8))`. Axes not named are taken whole.

        Raises:
            InputError: no such axis, or a position outside it.
            AbsentError: a position that is not committed, or was cropped away.
            StoreError: a chunk is damaged.
        """
        self._check_axes(indices)
        asked: Mapping[str, Any] = indices
        for axis, part in asked.items():
            if part is None or part is Ellipsis:  # what indexing takes for a new axis, or for all others
                raise no_position(part, axis, self.name)
        return self[tuple(indices.get(axis, slice(None)) for axis in self.axes)]

    def sel(self, **labels: Index) -> NDArray[Any]:
        """Cells by the numbers of the coordinate arrays, which a cropped store keeps. Slices include their end.

        Raises:
            InputError: no such axis, or a number that the axis does not have; -1 is none.
            AbsentError: a row that is not committed, or cells that were cropped away.
            StoreError: a chunk is damaged.
        """
        self._check_axes(labels)
        return self.isel(**{axis: self._positions(axis, label) for axis, label in labels.items()})

    def __getitem__(self, index: Any) -> NDArray[Any]:
        return self._cells_at(index, check=True)

    def filled(self, index: tuple[Index, ...]) -> NDArray[Any]:
        """The same, with fill values for cells that were cropped away, however they are asked for.

        Raises:
            InputError, AbsentError, StoreError: as indexing.
        """
        return self._cells_at(index, check=False)

    def _cells_at(self, index: Any, *, check: bool) -> NDArray[Any]:
        """Cells by an index; `check`: refuse positions that a crop took away."""
        given = index if isinstance(index, tuple) else (index,)
        parts = self._expand(tuple(part for part in given if part is not None))
        selection: list[slice | NDArray[np.intp]] = []
        dropped, backwards = [], []
        row, committed = self._row_axis()
        for number, (part, size) in enumerate(zip(parts, self.shape, strict=True)):
            cells = self._cells(part, number, size)
            if isinstance(cells, range):
                if cells.step < 0:
                    cells = cells[::-1]
                    backwards.append(number)
            else:
                if number == row:
                    self._check_rows(cells, committed)
                if check and self.axes != (self.name,):
                    check_kept(self._capture, self.axes[number], cells, self.name)
                if number == row and min(cells, default=self.first_row) < self.first_row:
                    raise AbsentError(self._unread(int(min(cells))))
                if np.ndim(part) == 0 and not isinstance(part, str):
                    dropped.append(number)
            selection.append(_as_slice(cells))
        values = self._read(tuple(selection), row, committed)
        values = np.flip(self.from_bits(values) if self._bits else values, tuple(backwards))
        values = values.reshape([size for number, size in enumerate(values.shape) if number not in dropped])
        shaped: NDArray[Any] = values[tuple(_shaped(given))]  # a scalar where every axis got a number
        return shaped

    def _check_rows(self, cells: NDArray[np.intp], committed: int) -> None:
        """Refuse rows that are not committed."""
        if max(cells, default=-1) >= committed:
            raise AbsentError(self._absent(int(max(cells))))

    def _read(self, selection: tuple[slice | NDArray[np.intp], ...], row: int | None, committed: int) -> NDArray[Any]:
        """Read committed rows; the others are fill values."""
        from attnlens.store.chunks import missing_chunk, read
        from attnlens.store.faults import damaged

        shape = tuple(_count(part) for part in selection)
        known = list(selection)
        if row is not None:
            part = known[row]
            if isinstance(part, slice):
                known[row] = slice(part.start, max(part.start, min(part.stop, committed)), part.step)
        if 0 in (counts := tuple(_count(part) for part in known)):
            return np.full(shape, self._fill(), np.float16 if self.encoding else self._array.dtype)
        values = read(self._array, tuple(known))
        self.check_there(tuple(known))
        if self.encoding:
            values = decode_sqrt(values)
        whole_rows = self._capture.metadata.crop is None  # what was cut away is a fill value, and the manifest tells
        never = whole_rows and self._spec is not None and (self._spec.base or self.name) in NEVER_FILL
        if never and self._has_fill(values, known, row):
            key = missing_chunk(self._array, self._place, tuple(known))
            raise damaged(self._array.path, key, reason="a committed row is missing from it")
        if counts == shape:
            return values
        whole = np.full(shape, self._fill(), values.dtype)
        whole[tuple(slice(0, count) for count in counts)] = values
        return whole

    def check_there(self, selection: tuple[slice | NDArray[np.intp], ...] | None = None) -> None:
        """Of a capture that is not finished, whose manifest would tell: are the files there of what was committed?

        Args:
            selection: Committed cells; None for all.

        Raises:
            StoreError: one is missing, so that its cells are absent and not what stands for them.
        """
        from attnlens.store.faults import damaged
        from attnlens.store.presence import missing_file

        key = missing_file(self._capture, self, selection)
        if key is not None:
            raise damaged(self._array.path, key, reason="it is missing")

    def committed_cells(self) -> tuple[slice, ...]:
        """The cells of the timeline that were committed, all of an axis that has no rows."""
        row, committed = self._row_axis()
        return tuple(
            slice(0, min(size, committed) if number == row else size, 1) for number, size in enumerate(self.shape)
        )

    def _has_fill(
        self, values: NDArray[Any], selection: list[slice | NDArray[np.intp]], row: int | None = None
    ) -> bool:
        """Whether a cell that must hold data is missing. One column of each block of keys tells."""
        if row is not None and self.first_row:
            values = values.compress(np.arange(self.shape[row])[selection[row]] >= self.first_row, axis=row)
        if "layer" in self.axes:
            layers = self._capture.key_layers if self.name == "attention_k" else self._capture.attention_layers
            axis = self.axes.index("layer")
            part = selection[axis]
            chosen = np.arange(self.shape[axis])[part]
            values = values.compress(layers[chosen], axis=axis)
            chosen = chosen[layers[chosen]]
        if self.axes[-1] == "key":
            part = selection[-1]
            columns = np.arange(self.shape[-1])[part]
            _, first = np.unique(columns // self._array.chunks[-1], return_index=True)
            values = values[..., first]
        if self.axes[-1] == "head_feature":
            values = values[..., 0]
        if self._bits:
            missing = values == self._fill()
        else:
            missing = np.isnan(values) if values.dtype.kind == "f" else values == -1
        if self.axes[:2] == ("layer", "head") and not self._capture.heads_there.all():
            heads = self._capture.heads_there[chosen][:, np.arange(self.shape[1])[selection[1]]]
            missing &= heads.reshape(*heads.shape, *(1,) * (missing.ndim - 2))
        return bool(missing.any())

    def _row_axis(self) -> tuple[int | None, int]:
        """The axis along which rows are committed, and how many entries of it are."""
        if self.name in NOT_ROWS:
            return None, 0
        for axis in ROW_AXES:
            if axis in self.axes:
                committed = self._capture.committed
                if axis == "generated":
                    committed = max(0, committed - self._capture.n_prompt + 1)
                return self.axes.index(axis), committed
        return None, 0

    @property
    def first_row(self) -> int:
        """The first row that there is: lenses may have read later tokens only."""
        base = self.name if self._spec is None else self._spec.base or self.name
        return self._capture.lens_start if base in LENS_ROWS else 0

    def _unread(self, position: int) -> str:
        about = self._capture
        return (
            f"capture {about.id}: {self.name} has no row {position}: the lens was asked to read the tokens from "
            f"{about.metadata.lens_first} on (--lens-tokens)"
        )

    def _absent(self, position: int) -> str:
        about = self._capture
        if self.axes[self._row_axis()[0] or 0] == "generated":
            position += about.n_prompt - 1
        where = f"capture {about.id}: {self.name} has no row {position}"
        if position >= about.n_fed:
            return f"{where}: token {position} was not fed to the model ({about.n_fed} of {about.n_token} tokens were)"
        return f"{where}: only {about.committed} rows were committed (status {about.status})"

    def _fill(self) -> Any:
        return self._array.fill_value if self._spec is None or self._bits else FILL[self._spec.dtype]

    def _expand(self, index: tuple[Any, ...]) -> tuple[Any, ...]:
        """The index with one part for each axis."""
        if sum(part is Ellipsis for part in index) > 1 or len([p for p in index if p is not Ellipsis]) > len(self.axes):
            raise InputError(
                f"{self.name} has {len(self.axes)} axes ({', '.join(self.axes)}), got {len(index)} indices"
            )
        at = next((number for number, part in enumerate(index) if part is Ellipsis), len(index))
        before, after = index[:at], index[at + 1 :]
        return (*before, *(slice(None),) * (len(self.axes) - len(before) - len(after)), *after)

    def _cells(self, part: Any, number: int, size: int) -> NDArray[np.intp] | range:
        """Positions that one part of an index selects, a range for a slice."""
        if not isinstance(part, slice):
            return positions(part, size, axis=self.axes[number], where=self.name)
        try:
            return range(*part.indices(size))
        except (TypeError, ValueError):
            raise no_position(part, self.axes[number], self.name) from None

    def _positions(self, axis: str, label: Index) -> Index:
        if axis not in self._capture.descriptions:
            return label
        numbers = self._capture[axis][:] if self.name != axis else np.asarray(self[:])
        if isinstance(label, slice):
            if label.step is not None:
                raise InputError(f"{self.name}: a slice of numbers takes no step")
            low = 0 if label.start is None else int(np.searchsorted(numbers, label.start, "left"))
            high = len(numbers) if label.stop is None else int(np.searchsorted(numbers, label.stop, "right"))
            return slice(low, high)
        wanted = np.asarray(label)
        if wanted.dtype.kind not in "iu" and wanted.size:
            raise InputError(f"{self.name}: {label!r} is no {axis}; expected numbers of the coordinate {axis}")
        wanted = wanted.astype(np.int64)
        found = np.searchsorted(numbers, wanted)
        bad = (found >= len(numbers)) | (numbers[np.minimum(found, len(numbers) - 1)] != wanted)
        if bad.any():
            missing = int(np.atleast_1d(wanted)[np.atleast_1d(bad)][0])
            raise InputError(f"{self.name}: no {axis} {missing}, there are {numbers[0]} … {numbers[-1]}")
        return operator.index(found) if found.ndim == 0 else found

    def _check_axes(self, names: Mapping[str, Index]) -> None:
        for name in names:
            if name not in self.axes:
                raise InputError(f"{self.name} has no axis {name!r}; it has {', '.join(self.axes)}")


def _as_slice(cells: NDArray[np.intp] | range) -> slice | NDArray[np.intp]:
    """Positions as a slice where they are evenly spaced."""
    if isinstance(cells, range):
        return slice(cells.start, cells.stop if len(cells) else cells.start, cells.step)
    if len(cells) and (np.diff(cells) == 1).all():
        return slice(int(cells[0]), int(cells[-1]) + 1, 1)
    return cells


def _shaped(index: tuple[Any, ...]) -> Iterator[Any]:
    """What of an index is left for cells that were read by it: axes of length 1 (`numpy.newaxis`), and where they go.

    A number has removed its axis.
    """
    for part in index:
        if part is None or part is Ellipsis:
            yield part
        elif isinstance(part, slice | str) or np.ndim(part):
            yield slice(None)


def _count(part: slice | NDArray[np.intp]) -> int:
    return len(range(part.start, part.stop, part.step)) if isinstance(part, slice) else len(part)
