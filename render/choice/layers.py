"""Which rows of the picture are drawn."""

from __future__ import annotations

from collections.abc import Sequence

from attnlens.schemas.ranges import parse_ranges


def select_rows(text: str | None, n_layer: int, kept: Sequence[bool] | None = None) -> tuple[int, ...]:
    """Row numbers for a list or slice of layers, all layers (that a cropped store `kept`) for None.

    Row r shows layer r. Row `n_layer` is the final prediction, the output of the last layer: it is drawn whenever
    the last layer is.

    Raises:
        InputError: `text` is no list of layers of this model.
    """
    every = tuple(layer for layer in range(n_layer) if kept is None or kept[layer])
    layers = every if text is None else parse_ranges(text, n_layer, option="--layers", thing="layer")
    return (*layers, n_layer) if layers[-1] == n_layer - 1 else layers
