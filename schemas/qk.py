"""What the per-layer table must say in a capture that keeps queries and keys, so that a reader needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence

from attnlens.schemas.metadata import CaptureMetadata, LayerInfo


def attending(layers: Sequence[LayerInfo]) -> list[LayerInfo]:
    """The layers that have attention."""
    return [layer for layer in layers if layer.kind != "none"]


def vector_shape(layers: Sequence[LayerInfo]) -> tuple[int, int]:
    """Heads of keys and features of a query or key, the same in all layers with attention; (0, 0) if there are none."""
    found = attending(layers)
    return (found[0].n_kv_head, found[0].key_features) if found else (0, 0)


def unequal_shapes(layers: Sequence[LayerInfo]) -> str | None:
    """What is wrong with layers whose queries or keys differ in shape, or None: one array holds those of all layers."""
    shapes = {(layer.n_head, layer.n_kv_head, layer.key_features): layer.path for layer in reversed(attending(layers))}
    if len(shapes) < 2:
        return None
    told = (f"{path} has {h} heads, {kv} of keys, {features} features" for (h, kv, features), path in shapes.items())
    return f"queries and keys of its layers have different shapes: {'; '.join(sorted(told)[:2])}"


def qk_problems(about: CaptureMetadata) -> list[str]:
    """Fields that a replay needs and that are missing, or that contradict each other."""
    problems = []
    if about.attention_dtype is None:
        problems.append("attention is qk, but attention_dtype does not say what queries and keys are")
    layers = about.model.layers
    unequal = unequal_shapes(layers)
    if unequal is not None:
        problems.append(f"model.layers: {unequal}")
    for layer in attending(layers):
        problems += [f"model.layers.{layer.index}: {problem}" for problem in _layer_problems(layer, about)]
    return problems


def _layer_problems(layer: LayerInfo, about: CaptureMetadata) -> list[str]:
    problems = []
    if layer.n_head != about.model.n_head:
        problems.append(f"has {layer.n_head} heads, the model {about.model.n_head}")
    if layer.n_kv_head < 1 or layer.n_head % layer.n_kv_head:
        problems.append(f"{layer.n_head} heads cannot share {layer.n_kv_head} heads of keys")
    if layer.key_features < 1:
        problems.append("queries and keys have no features")
    if layer.scaling is None:
        problems.append("scaling is missing")
    if layer.softcap is not None and layer.softcap <= 0:
        problems.append(f"softcap is {layer.softcap}, expected more than 0")
    if layer.kind in ("sliding", "chunked") and layer.window is None:
        problems.append(f"kind is {layer.kind}, but window is missing")
    if layer.sinks != (layer.sink_values is not None):
        problems.append("sinks and sink_values contradict each other")
    if layer.sink_values is not None and len(layer.sink_values) != layer.n_head:
        problems.append(f"has {len(layer.sink_values)} sink values for {layer.n_head} heads")
    if layer.key_source is not None:
        source = next((one for one in about.model.layers if one.index == layer.key_source), None)
        if source is None or source.kind == "none" or source.key_source is not None or source.index == layer.index:
            problems.append(f"key_source is {layer.key_source}, which is no layer with keys of its own")
    return problems
