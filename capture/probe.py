"""Before a capture: does the tap change nothing, and does what it takes mean what a store says it means?

A few tokens go through the model untapped and tapped. Every doubt is a refusal by name, before anything is written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from attnlens.capture.agreement import relative_error, tolerance
from attnlens.capture.configuration import refuse_configuration
from attnlens.capture.context import context_of
from attnlens.capture.feeding import CallStyle, Feeder, feeds_again_at, is_out_of_memory, style_of
from attnlens.capture.finite import all_finite, check_finite, not_finite
from attnlens.capture.forward import attempt, logits_of
from attnlens.capture.layer_table import layer_table
from attnlens.capture.lenses.logit import LogitLens
from attnlens.capture.lenses.tail import find_logit_lens
from attnlens.capture.like_with_like import BothWays, distance_to_sdpa, measured
from attnlens.capture.mixing import check_mixing
from attnlens.capture.model_kind import check_logits
from attnlens.capture.override import eager_configuration, hooks_kept, tapped
from attnlens.capture.proof import REPLAY_LIMIT, Proof, prove, prove_step
from attnlens.capture.reported import Places, ReportTap, find_places, reported_table
from attnlens.capture.residual import LayerTracker, find_layers
from attnlens.capture.tap import AttentionTap, Block, Call
from attnlens.schemas.errors import ModelError
from attnlens.schemas.metadata import LayerInfo, ModelDType, SelfCheck

PROBE_TOKENS = 16
OTHER_POSITIONS = (
    "the model is told positions as in transformers' generate; called without them it computes something else"
)


@dataclass(frozen=True, kw_only=True)
class Probed:
    """What the probe learnt about a model.

    `lean`: layers whose output a fused kernel computes; `vector_dtype`: of queries and keys; `qk_refusal`: why these do
    not suffice to know where tokens look, or None; `late_sinks`: the model's function applies sinks after the softmax
    that it reports; `places`: where a model outside the attention functions reports its weights; `notes`: remarks.
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
    late_sinks: bool = False
    places: Places | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Taking:
    """How attention is taken: at the function, lean or by its own rows, or at `places` where it is reported."""

    proof: Proof
    lean: frozenset[int] = frozenset()
    late_sinks: bool = False
    places: Places | None = None

    def tap(
        self,
        model: nn.Module,
        tracker: LayerTracker,
        receive: Callable[[Block], None],
        observe: Callable[[Call], None],
    ) -> AbstractContextManager[Any]:
        """The tap, in place for as long as a `with` lasts."""
        if self.places is not None:
            return ReportTap(model, tracker, self.places, receive)
        table = _by_index(self.proof)
        tap = AttentionTap(tracker, receive, observe=observe, table=table, lean=self.lean, late_sinks=self.late_sinks)
        return tapped(model, tap)


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
        raise ModelError(f"{name}: ", *refusal.args) from refusal


def probe_ids(model: nn.Module, prompt: Tensor) -> Tensor:
    """Ids int64 (1, token) to try a model out with: the prompt's first, again and again, as far as its context goes."""
    wall = context_of(model).wall(PROBE_TOKENS)
    n_token = PROBE_TOKENS if wall is None else wall.n_token
    return prompt.repeat(-(-n_token // len(prompt)))[:n_token][None]


def _probe(model: nn.Module, prompt: Tensor, *, lens: bool) -> Probed:
    refuse_configuration(getattr(model, "config", None), type(model).__name__)
    ids = probe_ids(model, prompt)
    with eager_configuration(model), hooks_kept(model):
        style, plain = _first_output(model, ids)
        expected = logits_of(model, plain)
    check_logits(model, expected, ids)
    calling, notes = _calling(model, ids, style, expected)
    if not calling:
        return _probe_reported(model, ids, style, expected, notes, lens=lens)
    path, layers = find_layers(model, calling)
    check_finite(model, path, layers, ids, style, expected)
    checks: list[SelfCheck] = []
    trouble: ModelError | None = None
    for late_sinks in (False, True):
        tracker = LayerTracker(path, layers)
        blocks: list[Block] = []
        calls: list[Call] = []
        both = BothWays(tracker, ids.shape[1], blocks.append, calls.append, late_sinks=late_sinks)
        with tracker, tapped(model, both):
            tracker.begin(ids.shape[1])
            tapped_logits = logits_of(model, attempt(model, ids, style))
            tracker.end()
        rows = _check_calls(tracker, calls, blocks)
        try:
            checks = _check_rows(tracker, rows, calls)
            break
        except ModelError as doubt:
            trouble = trouble or doubt
            if late_sinks or not any(call.sinks for call in calls):
                raise trouble from doubt
    checks.insert(
        0,
        _check(
            "probe: logits",
            relative_error(tapped_logits, expected),
            tolerance(expected.dtype),
            "the tap changes the model's logits",
        ),
    )
    checks.append(_check_attentions(rows, plain, expected.dtype, tracker, late_sinks=late_sinks))
    checks.append(both.check())
    checks.extend(distance_to_sdpa(model, ids, style, expected))
    found, absent, reading = _find_lens(model, path, layers, ids, style) if lens else (None, "not asked for", [])
    proof = prove(layer_table(model, path, layers, calls), calls)
    lean, fused = _lean_layers(model, path, layers, ids, style, expected, proof)
    checks.extend([fused] if fused is not None else [])
    taking = Taking(proof=proof, lean=lean, late_sinks=late_sinks)
    style, check, refusal = _check_cached(model, path, layers, ids, style, expected, taking)
    checks.append(check)
    if refusal is None:
        checks.append(SelfCheck(name="probe: replay", passed=True, value=proof.worst, limit=REPLAY_LIMIT))
    checks.extend(reading)
    return Probed(
        path=path,
        layers=layers,
        table=proof.table,
        style=style,
        notes=notes,
        late_sinks=late_sinks,
        lens=found,
        lens_absent=absent,
        vocabulary_size=expected.shape[-1],
        checks=tuple(checks),
        lean=lean,
        vector_dtype=proof.dtype,
        qk_refusal=refusal,
    )


def _first_output(model: nn.Module, ids: Tensor) -> tuple[CallStyle, Any]:
    """How to call the model, and what it then says of ids int64 (1, token), its own attentions included if it can."""
    style = style_of(model)
    try:
        try:
            return style, attempt(model, ids, style, output_attentions=True)
        except ModelError as refusal:
            if not style.prepared or _ran_out_of_memory(refusal):
                raise
            style = replace(style, prepared=False)  # some only prepare what they do not get here, codes of sounds
            return style, attempt(model, ids, style, output_attentions=True)
    except ModelError as refusal:
        if _ran_out_of_memory(refusal):
            raise
        raise ModelError(f"{refusal}; attnlens captures causal language models, by token ids alone") from refusal


def _ran_out_of_memory(refusal: ModelError) -> bool:
    return refusal.__cause__ is not None and is_out_of_memory(refusal.__cause__)


def _probe_reported(
    model: nn.Module, ids: Tensor, style: CallStyle, expected: Tensor, notes: tuple[str, ...], *, lens: bool
) -> Probed:
    """The same of a model whose attention is had by its own report alone."""
    path, layers, places, reporting = find_places(model, ids, style)
    check_finite(model, path, layers, ids, style, expected)
    tracker = LayerTracker(path, layers)
    blocks: list[Block] = []
    with tracker, ReportTap(model, tracker, places, blocks.append):
        tracker.begin(ids.shape[1])
        tapped_logits = logits_of(model, attempt(model, ids, reporting))
        tracker.end()
    rows = {block.layer: block.weights for block in blocks}
    if len(rows) != len(blocks):
        raise ModelError("its layers report attention more than once a pass; which one to show is not defined")
    with eager_configuration(model), hooks_kept(model):
        unasked = logits_of(model, attempt(model, ids, style))
    complaint = "asking for its attention changes the model's logits"
    checks = [_check("probe: logits", relative_error(tapped_logits, unasked), tolerance(unasked.dtype), complaint)]
    for layer, weights in rows.items():
        checks = checks[:1] + _check_distributions(tracker.name(layer), weights, weights.dtype, sinks=False, limit=1e-4)
    checks.append(check_mixing(model, path, layers, ids, reporting, rows))
    table = reported_table(model, path, layers, {layer: row.shape[0] for layer, row in rows.items()})
    why = "its attention is had only as the model reports it, without queries and keys"
    proof = Proof(table=tuple(table), lean=frozenset(), dtype=None, refusal=why, worst=0.0)
    taking = Taking(proof=proof, places=places)
    chosen, check, refusal = _check_cached(model, path, layers, ids, reporting, expected, taking, rows)
    checks.append(check)
    found, absent, reading = _find_lens(model, path, layers, ids, style) if lens else (None, "not asked for", [])
    checks.extend(reading)
    return Probed(
        path=path,
        layers=layers,
        table=proof.table,
        style=chosen,
        notes=notes,
        places=places,
        lens=found,
        lens_absent=absent,
        vocabulary_size=expected.shape[-1],
        checks=tuple(checks),
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
    if not error <= limit:
        detail = "not used: the model magnifies their rounding (half precision, 8-bit activations); no limit"
        return frozenset(), SelfCheck(name="probe: fused kernels", passed=True, value=measured(error), detail=detail)
    return proof.lean, SelfCheck(name="probe: fused kernels", passed=True, value=error, limit=limit)


def _by_index(proof: Proof) -> dict[int, LayerInfo]:
    return {info.index: info for info in proof.table}


def _calling(
    model: nn.Module, ids: Tensor, style: CallStyle, expected: Tensor
) -> tuple[list[nn.Module], tuple[str, ...]]:
    """The modules that call attention through transformers' attention functions, and what there is to note.

    The model is called without what its own generation tells it: if that gives other logits than `expected`, it
    changes what is computed, as RoBERTa's positions do.
    """
    calling: list[nn.Module] = []

    def note(own: Any, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        calling.append(module)
        return own(module, *args, **kwargs)

    with tapped(model, note):
        if style.prepared:
            try:
                plain = logits_of(model, attempt(model, ids, replace(style, prepared=False)))
            except ModelError:  # it needs to be told
                calling.clear()
            else:
                same = relative_error(plain, expected) <= tolerance(expected.dtype)
                return calling, () if same else (OTHER_POSITIONS,)
        attempt(model, ids, style)
    return calling, ()


def _check_calls(tracker: LayerTracker, calls: list[Call], blocks: list[Block]) -> dict[int, Tensor]:
    """One attention call a layer; returns float32 (head, query, key) of each layer."""
    seen: set[int] = set()
    for call in calls:
        if call.layer in seen:
            raise ModelError(
                f"{tracker.name(call.layer)} computes attention more than once a pass; "
                "which one a picture should show is not defined, so it is refused"
            )
        seen.add(call.layer)
    rows: dict[int, list[Tensor]] = {}
    for block in blocks:
        n_column = tracker.seen
        full = block.weights.new_zeros((*block.weights.shape[:2], n_column))
        full[..., block.first_key : block.first_key + block.weights.shape[2]] = block.weights
        rows.setdefault(block.layer, []).append(full)
    return {layer: torch.cat(parts, dim=1) for layer, parts in rows.items()}


def _check(name: str, value: float, limit: float, complaint: str) -> SelfCheck:
    if not isfinite(value):
        raise ModelError(f"{complaint}: what was compared is not finite ({name}); it cannot be captured truthfully")
    if not value <= limit:
        raise ModelError(
            f"{complaint} ({name} is off by {value:.2g}, limit {limit:.2g}); it cannot be captured truthfully"
        )
    return SelfCheck(name=name, passed=True, value=value, limit=limit)


def _check_attentions(
    rows: dict[int, Tensor], plain: Any, dtype: torch.dtype, tracker: LayerTracker, *, late_sinks: bool
) -> SelfCheck:
    """The tap's rows against the model's own `output_attentions`."""
    own = [weights for weights in getattr(plain, "attentions", None) or () if isinstance(weights, Tensor)]
    limit = 1e-4 if dtype == torch.float32 else 2e-2
    if late_sinks:
        return SelfCheck(
            name="probe: attention",
            passed=True,
            limit=limit,
            detail="the model reports weights from before its sinks; those that its values are mixed with were taken",
        )
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
        if "sinks" in call.per_query and float(weights.float().sum(dim=-1).min()) > 1 - 1e-6:
            raise ModelError(f"{name}: it is given 'sinks', but all rows of its attention sum to 1, as if it had none")
        sums = _check_distributions(name, weights, call.query.dtype, sinks=call.sinks, limit=sum_limit)[-1]
        worst_sum = max(worst_sum, sums.value or 0.0)
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


def _check_distributions(
    name: str, weights: Tensor, dtype: torch.dtype, *, sinks: bool, limit: float
) -> list[SelfCheck]:
    """Rows (head, query, key) are distributions over the past."""
    if not all_finite(weights):
        raise not_finite(f"{name}: its attention is", dtype)
    future = torch.ones(weights.shape[1:], dtype=torch.bool, device=weights.device).triu(1)
    leak = float(weights.masked_select(future).abs().max()) if weights.shape[1] > 1 else 0.0
    complaint = f"{name} attends to later tokens: it is no causal language model"
    causal = _check("probe: causality", leak, 0.0, complaint)
    if float(weights.min()) < 0:
        raise ModelError(f"{name}: its attention has values that are negative")
    total = weights.float().sum(dim=-1)
    excess = (total - 1).clamp(min=0) if sinks else (total - 1).abs()
    return [
        causal,
        _check("probe: row sums", float(excess.max()), limit, f"{name}: rows of its attention do not sum to 1"),
    ]


def _check_cached(
    model: nn.Module,
    path: str,
    layers: nn.ModuleList,
    ids: Tensor,
    style: CallStyle,
    expected: Tensor,
    taking: Taking,
    rows: Mapping[int, Tensor] | None = None,
) -> tuple[CallStyle, SelfCheck, str | None]:
    """A prompt and one more token, as a generation runs them, against one pass over all tokens.

    Returns how to call the model, the check, and why queries and keys do not suffice (None: they do).

    Some families differ there by themselves (state-space layers); that is recorded, not refused. What is refused is
    a cache that cannot be used, or hands over keys that are no tokens. Where the logits agree, the row (head, query,
    key) of the last token must, too, if `rows` of one pass are given.
    """
    best: tuple[float, CallStyle, str | None] | None = None
    trouble: ModelError | None = None
    if feeds_again_at(model, style, ids.shape[1] - 1, ids.shape[1]) is not None:
        ids, expected = ids[:, :-1], expected[:, :-1]  # no cache to be tried at this very token
        rows = {layer: weights[:, :-1, :-1] for layer, weights in (rows or {}).items()}
    for candidate in _styles(style):
        if best is not None and (candidate.given_cache or best[1].prepared):
            continue
        tracker = LayerTracker(path, layers)
        blocks: list[Block] = []
        calls: list[Call] = []
        try:
            with tracker, taking.tap(model, tracker, blocks.append, calls.append):
                feeder = Feeder(model, candidate)
                for piece in (ids[:, :-1], ids[:, -1:]):
                    prompt, calls[:] = list(calls), []
                    step = feeder.prepare(piece, use_cache=True, last=1)
                    tracker.begin(piece.shape[1], step)
                    output = feeder.run(step)
                    tracker.end()
                    if feeder.cache is None:
                        raise ModelError(f"{type(model).__name__} returns no cache of keys and values")
        except ModelError as refusal:
            trouble = trouble or refusal
            continue
        logits = logits_of(model, output)[:, -1]
        if not all_finite(logits):
            trouble = trouble or not_finite("with a cache its logits are", logits.dtype)
            continue
        error = relative_error(logits, expected[:, -1])
        if error <= tolerance(expected.dtype):
            _check_last_rows(tracker, blocks, rows or {})
        if best is None or error < best[0] / 2:
            best = (error, candidate, taking.proof.refusal or prove_step(taking.proof, prompt, calls))
        if error <= tolerance(expected.dtype):
            break
    if best is None:
        assert trouble is not None
        raise trouble
    error, style, qk_refusal = best
    # Not a verdict: recurrent states and 8-bit activations make the two differ in the model itself.
    detail = "" if error <= tolerance(expected.dtype) else "the model itself differs; recorded, not judged"
    return style, SelfCheck(name="probe: cached against one pass", passed=True, value=error, detail=detail), qk_refusal


def _check_last_rows(tracker: LayerTracker, blocks: list[Block], rows: Mapping[int, Tensor]) -> None:
    for block in blocks:
        if block.layer in rows and block.first_query == tracker.seen - 1:
            expected = rows[block.layer][:, -1, block.first_key : block.first_key + block.weights.shape[2]]
            error = float((block.weights[:, -1] - expected).abs().max())
            _check("probe: cached row", error, 1e-3, f"{tracker.name(block.layer)}: with a cache it reports other rows")


def _styles(style: CallStyle) -> list[CallStyle]:
    """Ways to call a model with a cache: as its own generation does, whatever that gives, or else the one that fits."""
    styles = [replace(style, prepared=False), replace(style, prepared=False, cached_positions=True)]
    if style.keeps_logits:  # a few models cut queries, not only logits, when asked to keep the last ones
        styles += [replace(one, keeps_logits=False) for one in styles]
    styles.append(replace(styles[0], given_cache=True))
    if style.prepared:
        own = [style, replace(style, keeps_logits=False)] if style.keeps_logits else [style]
        styles = [*own, replace(style, given_cache=True), *styles]
    return styles


def _find_lens(
    model: nn.Module, path: str, layers: nn.ModuleList, ids: Tensor, style: CallStyle
) -> tuple[LogitLens | None, str | None, list[SelfCheck]]:
    """The lens, or why there is none, and what was checked of it."""

    def run(tokens: Tensor) -> Tensor:
        return logits_of(model, attempt(model, tokens, style))

    try:
        with eager_configuration(model):
            lens, check = find_logit_lens(model, path, layers, run, ids, ids.flip(1))
    except ModelError as error:
        return None, str(error), []
    parameters = [parameter for part in lens.modules for parameter in part.parameters()]
    # Elsewhere the thread could meet offloading, or the exchanges of several processes.
    if all(parameter.device.type == "cpu" and not hasattr(parameter, "full_tensor") for parameter in parameters):
        lens.hash_soon()
    return lens, None, [check]
