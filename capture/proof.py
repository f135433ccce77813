"""Do stored queries and keys suffice? Proven on the probe's tokens against the model's own function in float32.

The same proof says for which layers a fused kernel is the same function as the model's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from attnlens.capture.agreement import relative_error, tolerance
from attnlens.capture.fused import fused_output, plain_weights
from attnlens.capture.sight import Sight
from attnlens.capture.tap import Call
from attnlens.schemas.metadata import LayerInfo, ModelDType
from attnlens.schemas.qk import unequal_shapes
from attnlens.store.replay import score, weigh

DTYPES: Mapping[torch.dtype, ModelDType] = {
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
}
REPLAY_LIMIT = 1e-5
"""How far a replayed weight may be from the model's own function in float32."""


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What queries and keys are good for in this model.

    table: the layers, with the scaling, sinks and source of keys that the replay used.
    lean: layers whose output a fused kernel computes.
    dtype: of queries and keys. refusal: why they do not suffice, or None.
    worst: largest error of a replayed weight.
    """

    table: tuple[LayerInfo, ...]
    lean: frozenset[int]
    dtype: ModelDType | None
    refusal: str | None
    worst: float


def prove(table: Sequence[LayerInfo], calls: Sequence[Call]) -> Proof:
    """Replays the queries and keys of one pass over all tokens.

    Args:
        table: the layers as declared and as their masks show them.
        calls: one for each layer with attention.
    """
    layers, lean, worst = {info.index: info for info in table}, set[int](), 0.0
    refusal: str | None = None
    for call in calls:
        info, why, error = _layer(layers[call.layer], call)
        layers[call.layer] = info
        refusal = refusal or why
        worst = max(worst, error)
        if why is None and _is_lean(info, call):
            lean.add(call.layer)
    for call, source in _shared_keys(calls):
        layers[call.layer] = layers[call.layer].model_copy(update={"key_source": source})
    found = tuple(layers[index] for index in sorted(layers))
    dtypes = {tensor.dtype for call in calls for tensor in (call.query, call.key)}
    dtype = DTYPES.get(next(iter(dtypes))) if len(dtypes) == 1 else None
    if dtype is None:
        told = ", ".join(sorted(str(one).removeprefix("torch.") for one in dtypes))
        refusal = refusal or f"queries and keys are {told}, expected one of {', '.join(DTYPES.values())}"
    refusal = refusal or unequal_shapes(found)
    return Proof(table=found, lean=frozenset(lean), dtype=dtype, refusal=refusal, worst=worst)


def prove_step(proof: Proof, prompt: Sequence[Call], step: Sequence[Call]) -> str | None:
    """Why keys kept from the pass of a prompt do not serve the next token, or None if they do."""
    kept: Mapping[int, Tensor] = {call.layer: call.key for call in prompt}
    infos = {info.index: info for info in proof.table}
    for call in step:
        info = infos[call.layer]
        before = kept[call.layer]
        source = next((one for one in step if one.layer == info.key_source), call)
        if before.shape[2] + 1 < call.key.shape[2] or source.key.shape != call.key.shape:
            return f"{info.path}: its keys are not those of the tokens before"
        key = torch.cat([kept[source.layer], source.key[:, :, -1:]], dim=2)
        own = _own_weights(call)
        error = _error(own, call.query, key, info, n_key=own.shape[2])
        if not error <= REPLAY_LIMIT:
            return f"{info.path}: with the keys of the tokens before, a row is off by {error:.2g}"
    return None


def _layer(info: LayerInfo, call: Call) -> tuple[LayerInfo, str | None, float]:
    """The layer with the scaling and sinks that replay it; why it cannot be replayed; the error."""
    n_row, n_key = call.query.shape[2], call.key.shape[2]
    if info.sinks:
        values = call.sink_values.detach().float().reshape(-1).tolist() if call.sink_values is not None else []
        info = info.model_copy(update={"sink_values": values})
    seen = Sight().of(call.mask, info, n_row, n_row, n_key)
    if seen is None:
        return info, f"{info.path}: its mask depends on the data or on the head, or adds a bias to the scores", 0.0
    if call.query.shape[1] % call.key.shape[1]:
        return info, f"{info.path}: {call.query.shape[1]} heads cannot share {call.key.shape[1]} heads of keys", 0.0
    own = _own_weights(call)
    best: tuple[float, LayerInfo] | None = None
    for scaling in _scalings(call):
        tried = seen.model_copy(update={"scaling": scaling})
        error = _error(own, call.query, call.key, tried, n_key=n_key)
        if best is None or error < best[0]:
            best = (error, tried)
        if error <= REPLAY_LIMIT:
            break
    assert best is not None
    error, found = best
    if not error <= REPLAY_LIMIT:
        return info, f"{info.path}: weights made of its queries and keys are off by {error:.2g}", error
    return found, None, error


def _scalings(call: Call) -> Iterator[float]:
    """What the scores may be multiplied by: what the call or the module says, or what is usual."""
    usual = call.query.shape[3] ** -0.5
    named = [getattr(call.module, name, None) for name in ("scaling", "scale", "softmax_scale")]
    for value in (call.scaling, *named, usual, 1.0, usual / (call.layer + 1)):
        if isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value):
            yield float(value)


def _own_weights(call: Call) -> Tensor:
    assert call.float_weights is not None
    return call.float_weights()


def _error(own: Tensor, query: Tensor, key: Tensor, info: LayerInfo, *, n_key: int) -> float:
    """Largest difference between `own` (head, query, key) and what a reader of the store makes of query and key.

    Both end with the last token; `own` may lack the first keys.
    """
    n_head, n_row, total = query.shape[1], query.shape[2], key.shape[2]
    positions = np.arange(total - n_row, total)
    found = np.zeros((n_head, n_row, total), np.float32)
    heads = range(n_head)
    q, k = query[0].detach().float().cpu().numpy(), key[0].detach().float().cpu().numpy()
    with np.errstate(all="ignore"):
        score(q, np.ascontiguousarray(k.swapaxes(0, 1)), heads, n_head // key.shape[1], found)
        weigh(found, info, heads, positions, 0)
    expected = np.zeros_like(found)
    expected[..., total - n_key :] = own.detach().float().cpu().numpy()
    error = float(np.abs(found - expected).max())
    return error if np.isfinite(error) else float("inf")


def _is_lean(info: LayerInfo, call: Call) -> bool:
    """Whether a fused kernel gives the layer's output, in float32 closely, and the plain formula its weights."""
    if info.sinks or info.softcap is not None or call.value.shape[3] > call.key.shape[3] or info.scaling is None:
        return False
    own, query, key, value = _own_weights(call), call.query, call.key, call.value
    mask = call.mask.float() if call.mask is not None and call.mask.is_floating_point() else call.mask
    try:
        output = fused_output(query, key, value, call.mask, info, query.shape[2])
        exact = fused_output(query.float(), key.float(), value.float(), mask, info, query.shape[2])
    except RuntimeError:  # no kernel for these shapes on this device
        return False
    mixed = own @ value[0].float().repeat_interleave(own.shape[0] // value.shape[1], dim=0)
    if output.shape != call.output.shape or not relative_error(output, call.output) <= tolerance(query.dtype):
        return False
    if not relative_error(exact[0], mixed.transpose(0, 1)) <= REPLAY_LIMIT:
        return False
    weights = plain_weights(query[0], key[0], mask[0] if mask is not None else None, info.scaling)
    return float((weights - own).abs().max()) <= REPLAY_LIMIT


def _shared_keys(calls: Sequence[Call]) -> Iterator[tuple[Call, int]]:
    """Calls whose keys are those of an earlier layer, and which."""
    first: list[Call] = []
    for call in calls:
        same = next((one for one in first if one.key.shape == call.key.shape and torch.equal(one.key, call.key)), None)
        if same is None:
            first.append(call)
        else:
            yield call, same.layer
