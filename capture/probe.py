"""Before a capture: does the tap change nothing, and does what it takes mean what a store says it means?

A few tokens go through the model untapped and tapped. Every doubt is a refusal by name, before anything is written.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from attnlens.capture.agreement import relative_error, tolerance
from attnlens.capture.forward import CallStyle, attempt, forward, logits_of, style_of
from attnlens.capture.layer_table import layer_table
from attnlens.capture.lenses.logit import LogitLens
from attnlens.capture.lenses.tail import find_logit_lens
from attnlens.capture.override import eager_configuration, hooks_kept, tapped
from attnlens.capture.proof import REPLAY_LIMIT, Proof, prove, prove_step
from attnlens.capture.residual import LayerTracker, find_layers
from attnlens.capture.tap import AttentionTap, Block, Call
from attnlens.schemas.errors import ModelError
from attnlens.schemas.metadata import LayerInfo, ModelDType, SelfCheck

PROBE_TOKENS = 16
BLOCK_ROWS = 5
"""Rows a block in the probe, so that a mistake in cutting blocks shows here."""


@dataclass(frozen=True, kw_only=True)
class Probed:
    """What the probe learnt about a model.

    `lean`: layers whose output a fused kernel computes; `vector_dtype`: of queries and keys; `qk_refusal`: why these do
    not suffice to know where tokens look, or None.
    """

    path: str
    layers: nn.ModuleList
    table: tuple[LayerInfo, ...]
    style: CallStyle
    lens: LogitLens | None
    lens_absent: str | None
    vocabulary_size: int
    checks: tuple[SelfCheck, ...]
    lean: frozenset[int] = frozenset()
    vector_dtype: ModelDType | None = None
    qk_refusal: str | None = None


def probe(model: nn.Module, prompt: Tensor, *, lens: bool = True) -> Probed:
    """Runs the checks on the first tokens of `prompt` int64 (token).

    Raises:
        ModelError: the model cannot be captured truthfully; the message names the model, the layer and the reason.
    """
    name = type(model).__name__
    try:
        return _probe(model, prompt, lens=lens)
    except ModelError as refusal:
        if name in str(refusal):
            raise
        raise ModelError(f"{name}: {refusal}") from refusal


def _probe(model: nn.Module, prompt: Tensor, *, lens: bool) -> Probed:
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise ModelError(f"{type(model).__name__} is an encoder-decoder; attnlens captures decoder-only models")
    ids = prompt.repeat(-(-PROBE_TOKENS // len(prompt)))[:PROBE_TOKENS][None]
    style = style_of(model)
    with eager_configuration(model), hooks_kept(model):
        plain = attempt(model, ids, style, output_attentions=True)
        expected = logits_of(model, plain)
    path, layers = _locate(model, ids, style)

    checks = []
    tracker = LayerTracker(path, layers)
    blocks: list[Block] = []
    calls: list[Call] = []
    tap = AttentionTap(tracker, blocks.append, max_rows=BLOCK_ROWS, observe=calls.append, native=True)
    with tracker, tapped(model, tap):
        tracker.begin(ids.shape[1])
        tapped_logits = logits_of(model, attempt(model, ids, style))
        tracker.end()
    rows = _check_calls(tracker, calls, blocks)
    checks.append(
        _check(
            "probe: logits",
            relative_error(tapped_logits, expected),
            tolerance(expected.dtype),
            "the tap changes the model's logits",
        )
    )
    checks.append(_check_attentions(rows, plain, expected.dtype, tracker))
    checks.extend(_check_rows(tracker, rows, calls))
    proof = prove(layer_table(model, path, layers, calls), calls)
    lean, fused = _lean_layers(model, path, layers, ids, style, expected, proof)
    checks.extend([fused] if fused is not None else [])
    style, check, refusal = _check_cached(model, path, layers, ids, style, expected, proof, lean)
    checks.append(check)
    if refusal is None:
        checks.append(SelfCheck(name="probe: replay", passed=True, value=proof.worst, limit=REPLAY_LIMIT))
    found: LogitLens | None = None
    absent: str | None = "not asked for"
    if lens:
        found, absent = _find_lens(model, path, layers, ids, style)
    return Probed(
        path=path,
        layers=layers,
        table=proof.table,
        style=style,
        lens=found,
        lens_absent=absent,
        vocabulary_size=expected.shape[-1],
        checks=tuple(checks),
        lean=lean,
        vector_dtype=proof.dtype,
        qk_refusal=refusal,
    )


def _lean_layers(
    model: nn.Module, path: str, layers: nn.ModuleList, ids: Tensor, style: CallStyle, expected: Tensor, proof: Proof
) -> tuple[frozenset[int], SelfCheck | None]:
    """The layers that may use fused kernels: those that were proven, if the model's logits stay what they are."""
    if not proof.lean:
        return frozenset(), None
    tracker = LayerTracker(path, layers)
    tap = AttentionTap(tracker, lambda block: None, table=_by_index(proof), lean=proof.lean)
    with tracker, tapped(model, tap):
        tracker.begin(ids.shape[1])
        logits = logits_of(model, attempt(model, ids, style))
        tracker.end()
    error, limit = relative_error(logits, expected), tolerance(expected.dtype)
    if not error <= limit:  # the rounding of half precision, in a model that magnifies it
        return frozenset(), None
    return proof.lean, SelfCheck(name="probe: fused kernels", passed=True, value=error, limit=limit)


def _by_index(proof: Proof) -> dict[int, LayerInfo]:
    return {info.index: info for info in proof.table}


def _locate(model: nn.Module, ids: Tensor, style: CallStyle) -> tuple[str, nn.ModuleList]:
    """Where the layers are, from which modules call attention through transformers' attention functions."""
    calling: list[nn.Module] = []

    def note(own: Any, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        calling.append(module)
        return own(module, *args, **kwargs)

    with tapped(model, note):
        attempt(model, ids, style)
    if not calling:
        raise ModelError(
            f"{type(model).__name__}: its attention does not go through transformers' attention functions, so it "
            "cannot be captured (attnlens never guesses attention)"
        )
    return find_layers(model, calling)


def _check_calls(tracker: LayerTracker, calls: list[Call], blocks: list[Block]) -> dict[int, Tensor]:
    """One attention call a layer, equal head counts; returns float32 (head, query, key) of each layer."""
    seen: set[int] = set()
    for call in calls:
        if call.layer in seen:
            raise ModelError(
                f"{tracker.name(call.layer)} computes attention more than once a pass; "
                "which one a picture should show is not defined, so it is refused"
            )
        seen.add(call.layer)
    heads = {call.query.shape[1] for call in calls}
    if len(heads) > 1:
        raise ModelError(
            f"its layers have different numbers of heads ({', '.join(map(str, sorted(heads)))}); "
            "format version 1 stores one head axis, so this model is refused"
        )
    rows: dict[int, list[Tensor]] = {}
    for block in blocks:
        n_column = tracker.seen
        full = block.weights.new_zeros((*block.weights.shape[:2], n_column))
        full[..., block.first_key : block.first_key + block.weights.shape[2]] = block.weights
        rows.setdefault(block.layer, []).append(full)
    return {layer: torch.cat(parts, dim=1) for layer, parts in rows.items()}


def _check(name: str, value: float, limit: float, complaint: str) -> SelfCheck:
    if not value <= limit:
        raise ModelError(
            f"{complaint} ({name} is off by {value:.2g}, limit {limit:.2g}); it cannot be captured truthfully"
        )
    return SelfCheck(name=name, passed=True, value=value, limit=limit)


def _check_attentions(rows: dict[int, Tensor], plain: Any, dtype: torch.dtype, tracker: LayerTracker) -> SelfCheck:
    """The tap's rows against the model's own `output_attentions`."""
    own = [weights for weights in getattr(plain, "attentions", None) or () if isinstance(weights, Tensor)]
    limit = 2e-5 if dtype == torch.float32 else 2e-2
    if len(own) != len(rows):
        return SelfCheck(
            name="probe: attention",
            passed=True,
            limit=limit,
            detail=f"the model reports {len(own)} attentions itself, {len(rows)} were taken; not compared",
        )
    worst = 0.0
    for layer, weights in zip(sorted(rows), own, strict=True):
        error = (
            float((rows[layer].float() - weights[0].float()).abs().max())
            if weights[0].shape == rows[layer].shape
            else 1.0
        )
        _check(
            "probe: attention",
            error,
            limit,
            f"{tracker.name(layer)}: attention differs from the model's own output_attentions",
        )
        worst = max(worst, error)
    return SelfCheck(name="probe: attention", passed=True, value=worst, limit=limit)


def _check_rows(tracker: LayerTracker, rows: dict[int, Tensor], calls: list[Call]) -> list[SelfCheck]:
    """Rows are distributions over the past, and are what the values are mixed with."""
    worst_sum = worst_mix = 0.0
    by_layer = {call.layer: call for call in calls}
    sum_limit = 1e-4 if calls[0].query.dtype == torch.float32 else 2e-2
    for layer, weights in rows.items():
        name, call = tracker.name(layer), by_layer[layer]
        future = torch.ones(weights.shape[1:], dtype=torch.bool, device=weights.device).triu(1)
        leak = float(weights.masked_select(future).abs().max()) if weights.shape[1] > 1 else 0.0
        _check("probe: causality", leak, 0.0, f"{name} attends to later tokens: it is no causal language model")
        if not bool(torch.isfinite(weights).all()) or float(weights.min()) < 0:
            raise ModelError(f"{name}: its attention has values that are negative or not finite")
        total = weights.float().sum(dim=-1)
        excess = (total - 1).clamp(min=0) if call.sinks else (total - 1).abs()
        worst_sum = max(worst_sum, float(excess.max()))
        _check("probe: row sums", worst_sum, sum_limit, f"{name}: rows of its attention do not sum to 1")
        value = call.value[0].float().repeat_interleave(weights.shape[0] // call.value.shape[1], dim=0)
        mixed = (weights.float() @ value).transpose(0, 1)
        if mixed.shape == call.output.shape[1:]:
            error = relative_error(call.output[0], mixed)
            worst_mix = max(worst_mix, error)
            _check(
                "probe: attention × value",
                error,
                tolerance(call.query.dtype),
                f"{name}: its attention weights are not what its values are mixed with",
            )
    limit = tolerance(calls[0].query.dtype)
    return [
        SelfCheck(name="probe: causality", passed=True, value=0.0, limit=0.0),
        SelfCheck(name="probe: row sums", passed=True, value=worst_sum, limit=sum_limit),
        SelfCheck(name="probe: attention × value", passed=True, value=worst_mix, limit=limit),
    ]


def _check_cached(
    model: nn.Module,
    path: str,
    layers: nn.ModuleList,
    ids: Tensor,
    style: CallStyle,
    expected: Tensor,
    proof: Proof,
    lean: frozenset[int],
) -> tuple[CallStyle, SelfCheck, str | None]:
    """A prompt and one more token, as a generation runs them, against one pass over all tokens.

    Returns how to call the model, the check, and why queries and keys do not suffice (None: they do).

    Some families differ there by themselves (state-space layers); that is recorded, not refused. What is refused is
    a cache that cannot be used, or hands over keys that are no tokens.
    """
    best: tuple[float, CallStyle, str | None] | None = None
    trouble: ModelError | None = None
    for candidate in _styles(style):
        tracker = LayerTracker(path, layers)
        calls: list[Call] = []
        tap = AttentionTap(tracker, lambda block: None, observe=calls.append, table=_by_index(proof), lean=lean)
        try:
            with tracker, tapped(model, tap):
                tracker.begin(ids.shape[1] - 1)
                output = attempt(model, ids[:, :-1], candidate, use_cache=True, last=1)
                tracker.end()
                cache = getattr(output, "past_key_values", None)
                if cache is None:
                    raise ModelError(f"{type(model).__name__} returns no cache of keys and values")
                prompt, calls[:] = list(calls), []
                tracker.begin(1)
                output = attempt(
                    model, ids[:, -1:], candidate, cache=cache, use_cache=True, first=ids.shape[1] - 1, last=1
                )
                tracker.end()
        except ModelError as refusal:
            trouble = trouble or refusal
            continue
        error = relative_error(logits_of(model, output)[:, -1], expected[:, -1])
        if best is None or error < best[0] / 2:
            best = (error, candidate, proof.refusal or prove_step(proof, prompt, calls))
        if error <= tolerance(expected.dtype):
            break
    if best is None:
        assert trouble is not None
        raise trouble
    error, style, qk_refusal = best
    # Not a verdict: recurrent states and 8-bit activations make the two differ in the model itself.
    detail = "" if error <= tolerance(expected.dtype) else "the model itself differs; recorded, not judged"
    return style, SelfCheck(name="probe: cached against one pass", passed=True, value=error, detail=detail), qk_refusal


def _styles(style: CallStyle) -> list[CallStyle]:
    styles = [style, replace(style, cached_positions=True)]
    if style.keeps_logits:  # a few models cut queries, not only logits, when asked to keep the last ones
        styles += [replace(one, keeps_logits=False) for one in styles]
    return styles


def _find_lens(
    model: nn.Module, path: str, layers: nn.ModuleList, ids: Tensor, style: CallStyle
) -> tuple[LogitLens | None, str | None]:
    def run(tokens: Tensor) -> Tensor:
        return logits_of(model, forward(model, tokens, style))

    try:
        with eager_configuration(model):
            return find_logit_lens(model, path, layers, run, ids, ids.flip(1)), None
    except ModelError as error:
        return None, str(error)
