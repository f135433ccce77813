"""A capture as an `xarray.Dataset`, a store as an `xarray.DataTree`: coordinates are read, everything else waits."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from attnlens.schemas.arrays import FILL
from attnlens.schemas.errors import MissingExtraError
from attnlens.store.naming import told

if TYPE_CHECKING:
    import xarray

    from attnlens.store.lazy import LazyArray
    from attnlens.store.reader import Capture, Store

LEFT_OUT = frozenset({"manifest_file", "manifest_sha256"})
"""Arrays about files, not about the model."""
LABELS = frozenset({"token_id", "token_text", "token_special", "vocabulary_id", "vocabulary_text", "tracked_id",
                    "tracked_text"})  # fmt: skip
"""Arrays that say what the entries of an axis are: coordinates, beside those that number them."""
ABOUT = ("prompt_id", "status", "committed", "n_prompt", "n_token", "n_fed", "prompt", "completion", "attention",
         "attention_dtype", "lens_first", "device", "created", "error")  # fmt: skip
"""Metadata of a capture that become attributes of its dataset, those that have a value."""


def dataset(capture: Capture, *, dask: bool | None = None) -> xarray.Dataset:
    """What `Capture.to_xarray` returns."""
    require_xarray()
    import xarray

    from attnlens.store.lazy import LazyArray, ReplayedWeights

    names = [name for name in capture.names if name in capture.specs and name not in LEFT_OUT]
    arrays: dict[str, LazyArray] = {name: LazyArray(capture, name) for name in names}
    if {"attention_q", "attention_k"} <= arrays.keys():
        arrays["attention_weight"] = ReplayedWeights(capture)
    variables = _variables(capture, arrays)
    known = [name for name in variables if name in LABELS or name not in arrays or variables[name].dims == (name,)]
    if dask or (dask is None and find_spec("dask") is not None):
        numbers = {name: array for name, array in arrays.items() if name not in known}
        sizes = _least((array.axes, array.files) for array in numbers.values())
        for name, array in numbers.items():
            variables[name] = variables[name].chunk({axis: sizes[axis] for axis in array.axes})
    coordinates = {name: variables.pop(name) for name in known}
    return xarray.Dataset(variables, coordinates, _about(capture))


def datatree(store: Store, *, dask: bool | None = None) -> xarray.DataTree:
    """What `Store.to_datatree` returns."""
    require_xarray()
    import xarray

    about = {"created": store.metadata.created, "writer": store.metadata.writer, "version": store.metadata.version}
    children = {capture.id: dataset(capture, dask=dask) for capture in store}
    return xarray.DataTree.from_dict({"/": xarray.Dataset(attrs=about), **children})


def require_xarray() -> None:
    """Return if xarray can be imported.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import xarray  # noqa: F401
    except ImportError:
        raise MissingExtraError(
            "datasets need xarray, which is not installed: pip install 'attnlens[xarray]' (or pip install xarray)"
        ) from None


def _variables(capture: Capture, arrays: Mapping[str, LazyArray]) -> dict[str, xarray.Variable]:
    """Each array with its axes, unit and meaning; the texts of tokens along every axis that tokens have."""
    from xarray import Variable
    from xarray.core.indexing import LazilyIndexedArray

    found = {
        name: Variable(array.axes, LazilyIndexedArray(array), _meaning(capture, name, array))
        for name, array in arrays.items()
    }
    sizes = _least((item.dims, item.shape) for item in found.values())  # lists may still grow at different times
    found = {name: item.isel({axis: slice(sizes[axis]) for axis in item.dims}) for name, item in found.items()}
    for axis in ("query", "key", "generated"):
        if axis in found:
            texts = LazilyIndexedArray(arrays["token_text"])
            along = Variable(axis, texts, {"units": "text", "meaning": f"display text of each {axis}"})
            first = capture.n_prompt - 1 if axis == "generated" else 0
            found[f"{axis}_text"] = along.isel({axis: slice(first, first + sizes[axis])})
    return found


def _least(shapes: Iterable[tuple[tuple[Hashable, ...], tuple[int, ...]]]) -> dict[Hashable, int]:
    """The least size of each axis."""
    found: dict[Hashable, int] = {}
    for axes, shape in shapes:
        found |= {axis: min(size, found.get(axis, size)) for axis, size in zip(axes, shape, strict=True)}
    return found


def _meaning(capture: Capture, name: str, array: LazyArray) -> dict[str, Any]:
    """Attributes of a variable: unit and meaning, and of integers the one that stands for none (as CF says it)."""
    spec = capture.specs[name]
    about: dict[str, Any] = {"units": spec.unit, "meaning": spec.meaning}
    if array.dtype == "int32" and spec.axes != (name,):
        about["missing_value"] = FILL["int32"]
    return about


def _about(capture: Capture) -> dict[str, Any]:
    """Attributes of a dataset: numbers and texts, so that any file format takes them."""
    about: dict[str, Any] = {"capture": capture.id, "model": capture.metadata.model.id}
    for name, value in told(capture.metadata).items():
        about[name] = "; ".join(value) if isinstance(value, list) else value
    about |= {name: value for name in ABOUT if (value := getattr(capture.metadata, name)) is not None}
    return about | {"lenses": ", ".join(capture.lens_names)}
